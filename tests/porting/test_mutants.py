"""Tests of the tests: each wrong program below has to fail a test of parity."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="torch is not installed")

ROOT = Path(__file__).parents[2]
OUTPUTS = "test_float32_outputs_equal_torch"
TRAINING = "test_float64_gradients_and_statistics_equal_torch"


def run(folder, test):
    """Runs one parity test on the package in a folder."""
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", f"tests/porting/test_torch_parity.py::{test}"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "right", "wrong", "test"),
    [
        pytest.param("files/torch_names.py", "4: (3, 2, 0, 1)", "4: (3, 2, 1, 0)",
                     f"{OUTPUTS}[vgg16]", id="kernels transposed in height and width"),
        pytest.param("files/torch_names.py", "ours = array.transpose(np.argsort(TORCH_AXES[array.ndim]))",
            "ours = array.transpose(np.argsort(TORCH_AXES[array.ndim]))\n"
            "        ours = array if array.shape == (512, 512) else ours",
                     f"{OUTPUTS}[vgg16]", id="linear weights not transposed"),
        pytest.param("files/torch_names.py", '"mean": "running_mean", "var": "running_var"',
                     '"var": "running_mean", "mean": "running_var"',
                     f"{OUTPUTS}[vgg16]", id="mean and variance swapped"),
        pytest.param("core/resnet.py", "return y + _unit(self.out, 1, stride=stride)"
                     "(name=shortcut)(x, train=train)",
                     "z = _unit(self.out, 1, stride=stride)(name=shortcut)(x, train=train)\n"
                     "        return y + (x if x.shape == y.shape else z)",
                     f"{OUTPUTS}[resnet50_layer4]", id="make_equal_channel left out"),
        pytest.param("core/resnet.py", "_unit(self.mid, 1, stride=stride),\n"
                     "            _unit(self.mid, 3, padding=1)",
                     "_unit(self.mid, 1),\n"
                     "            _unit(self.mid, 3, padding=1, stride=stride)",
                     f"{OUTPUTS}[resnet50_layer4]", id="stride on the 3x3"),
        pytest.param("core/layers.py", "var * (count / (count - 1))", "var",
                     f"{TRAINING}[vgg16]", id="biased variance"),
        pytest.param("core/layers.py", "BATCH_NORM_MOMENTUM = 0.9", "BATCH_NORM_MOMENTUM = 0.99",
                     f"{TRAINING}[vgg16]", id="flax's momentum"),
        pytest.param("core/layers.py", "BATCH_NORM_EPSILON = 1e-5", "BATCH_NORM_EPSILON = 1e-3",
                     f"{OUTPUTS}[vgg16]", id="another epsilon"),
    ],
)  # fmt: skip
def test_a_wrong_program_is_caught(tmp_path, file, right, wrong, test):
    for part in ("jaxcifar", "tests", "tools"):
        shutil.copytree(ROOT / part, tmp_path / part)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    source = tmp_path / "jaxcifar" / file
    text = source.read_text()
    assert text.count(right) == 1
    source.write_text(text.replace(right, wrong))
    result = run(tmp_path, test)
    assert result.returncode == 1, result.stdout
    assert f"FAILED tests/porting/test_torch_parity.py::{test}" in result.stdout
    assert re.search(r"^E +(AssertionError|assert )", result.stdout, re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize("test", [f"{OUTPUTS}[resnet50_layer4]", f"{TRAINING}[vgg16]"])
def test_the_right_program_passes(test):
    assert run(ROOT, test).returncode == 0
