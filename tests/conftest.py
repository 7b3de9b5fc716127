"""Settings for all tests: silent broadcasting across ranks is an error."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the equivalences are proved on CPU
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Several tests train the same network: compile it once.
_cache = tempfile.TemporaryDirectory(prefix="jaxcifar-compiled-")
jax.config.update("jax_compilation_cache_dir", _cache.name)
os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache.name  # for the commands that tests start


@pytest.fixture(autouse=True, scope="module")
def _forget_programs() -> Iterator[None]:
    """A program takes hundreds of memory maps, of which Linux gives a process 65,530 in all."""
    yield
    jax.clear_caches()


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def real_cifar10() -> Path:
    """The folder of real, prepared CIFAR-10 beside the repository."""
    folder = Path(__file__).parents[2] / "shared" / "data" / "tfds"
    if not folder.exists():
        pytest.skip("real CIFAR-10 is not beside the repository")
    return folder


def loaded_by(imports: str, names: tuple[str, ...]) -> list[str]:
    """Which of these modules a fresh process has loaded after ``import`` of others."""
    code = f"import sys, {imports}; print(*[m for m in {names} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return out.stdout.split()


def load_few_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes every data set forty training and twenty test digits: runs of seconds."""
    from jaxcifar import data

    digits = data.load("digits")
    small = data.Dataset(
        data.Examples(*(a[:40] for a in digits.train)),
        data.Examples(*(a[:20] for a in digits.test)),
        digits.class_names,
    )
    monkeypatch.setattr(data, "load", lambda name, data_dir=None: small)


@pytest.fixture
def few_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    load_few_digits(monkeypatch)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ported ResNet with random weights and statistics; its classes are named a to j."""
    from jaxcifar.core import models
    from jaxcifar.files import weights

    rng = np.random.default_rng(0)

    def draw(path: tuple[jax.tree_util.DictKey, ...], leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        if len(leaf.shape) > 1:  # a kernel
            return rng.normal(0, np.sqrt(2 / np.prod(leaf.shape[:-1])), leaf.shape).astype("f4")
        # Such scales let the images' differences through, and keep the logits small.
        low = {"scale": 0.6, "var": 1}.get(path[-1].key, -0.25)
        return np.asarray(rng.uniform(low, low + 0.5, leaf.shape), leaf.dtype)

    model = models.create_model("resnet50_layer4")
    variables = jax.tree_util.tree_map_with_path(draw, models.abstract_variables(model))
    loaded = weights.Weights(
        *("resnet50_layer4", 10, variables, None, None, {}, ()), class_names=tuple("abcdefghij")
    )
    path = tmp_path_factory.mktemp("weights") / "resnet"
    weights.save(path, loaded, {})
    return path
