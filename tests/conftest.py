"""Settings and fixtures for all tests."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["OMP_WAIT_POLICY"] = "passive"  # torch's threads yield to other processes
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the comparisons with torch are made on a CPU
# Many tests compile the same programs, in several workers and in the commands that they start.
if "JAXCIFAR_TEST_CACHE" not in os.environ:
    _cache = tempfile.TemporaryDirectory(prefix="jaxcifar-compiled-")
    for name in ("JAXCIFAR_TEST_CACHE", "JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME"):
        os.environ[name] = _cache.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"  # also the small ones

import jax
import numpy as np
import pytest
from PIL import Image

from jaxcifar import TrainConfig, data
from jaxcifar.core import models
from jaxcifar.files import networks, weights

TINY, SMALL = "tests.tiny:Tiny", "tests.tiny:Small"
create = networks.create  # which a test may replace
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_numpy_rank_promotion", "raise")

COLOURS = {"ant": (255, 0, 0), "bee": (0, 255, 0), "Cat": (0, 0, 255)}  # sorted: Cat, ant, bee


@pytest.fixture(autouse=True, scope="module")
def _programs(request: pytest.FixtureRequest) -> Iterator[None]:
    """Compile in half the time where no bound on numbers depends on it, and forget it at the end.

    A program takes hundreds of memory maps, of which Linux gives a process 65,530.
    """
    quick = request.path.parent.name in ("commands", "reporting", "runtime")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", str(int(quick)))  # of started processes
        jax.config.update("jax_disable_most_optimizations", quick)
        yield
    jax.clear_caches()


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def run_config(workdir: Path, **changes: Any) -> TrainConfig:
    """A short run of the ResNet on whatever ``data.load`` gives."""
    options = {"model": "resnet50_layer4", "dataset": "digits", "batch_size": 8, "log_every": 2}
    return TrainConfig(workdir=str(workdir), **options | {"report": False} | changes)


def assert_same(first: Any, second: Any) -> None:
    """Two trees are equal to the bit."""
    jax.tree.map(np.testing.assert_array_equal, first, second)


def use_few_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every data set forty training and twenty test digits."""
    digits = data.load("digits")
    train, test = (
        jax.tree.map(lambda array, count=count: array[:count], examples)
        for examples, count in ((digits.train, 40), (digits.test, 20))
    )
    few = digits._replace(train=train, test=test)
    monkeypatch.setattr(data, "load", lambda name, data_dir=None, **options: few)


def use_small_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every network a small one, for tests that need no names of weights."""
    monkeypatch.setattr(networks, "create", lambda name, **options: create(SMALL, **options))


@pytest.fixture
def few_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    use_few_digits(monkeypatch)


@pytest.fixture
def small_network(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_network(monkeypatch)


def write_image(path: Path, colour: Any, size: Any = (32, 32), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).convert(mode).save(path)


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """Two training images and a test image of each class, each class in its own colour."""
    path = tmp_path / "pets"
    for name, colour in COLOURS.items():
        write_image(path / "train" / name / "b.PNG", colour, (7, 50), "RGBA")
        write_image(path / "train" / name / "a.jpeg", colour, (64, 33))
        write_image(path / "test" / name / "1.bmp", colour, (1, 1), "P")
    for name in (".thumbnails/a.png", "README.md", "ant/.a.png", "ant/._a.jpeg", "ant/Thumbs.db"):
        (path / "train" / name).parent.mkdir(exist_ok=True)
        (path / "train" / name).write_text("not an image: to be skipped")
    (path / "train" / "ant" / "folder.png").mkdir()
    return path


def random_variables(name: str) -> dict[str, Any]:
    """Random weights and statistics that let the differences between images through."""
    rng = np.random.default_rng(0)

    def draw(path: tuple[jax.tree_util.DictKey, ...], leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        if len(leaf.shape) > 1:  # a kernel
            return rng.normal(0, np.sqrt(2 / np.prod(leaf.shape[:-1])), leaf.shape).astype("f4")
        low = {"scale": 0.6, "var": 1}.get(path[-1].key, -0.25)
        return np.asarray(rng.uniform(low, low + 0.5, leaf.shape), leaf.dtype)

    model = networks.create(name)
    return jax.tree_util.tree_map_with_path(draw, models.abstract_variables(model))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights and statistics of the tiny network; its classes are named a to j."""
    path = tmp_path_factory.mktemp("weights") / "tiny"
    variables, names = random_variables(TINY), tuple("abcdefghij")
    weights.write(path, weights.Weights(TINY, 10, variables, class_names=names), "orbax", {})
    return path
