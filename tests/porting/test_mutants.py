"""Tests of the tests: each wrong program below has to fail a test of parity."""

import importlib.util
import sys
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed")

PACKAGE = Path(__file__).parents[2] / "jaxcifar"
VGG = ("test_float32_outputs_equal_torch", "vgg16")
RESNET = ("test_float32_outputs_equal_torch", "resnet50_layer4")
TRAINING = ("test_twenty_float64_training_steps_equal_torch", "vgg16", 0.5)
NAMES, LAYERS, MODELS = "files/torch_names.py", "core/layers.py", "core/models.py"
MAPPED = ".transpose(np.argsort("
UNMAPPED = ".transpose((0, 1) if leaf.shape == (512, 512) else np.argsort("
STATISTICS = '"mean": "running_mean", "var": "running_var"'
SWAPPED = '"var": "running_mean", "mean": "running_var"'
SHORTCUT = "_unit(self.out, 1, stride=self.stride)(name=shortcut)(x, train=train)"
NO_SHORTCUT = f"z = {SHORTCUT}; return y + (x if x.shape == y.shape else z)"
UNITS = "_unit(self.mid, 1, stride=self.stride), _unit(self.mid, 3, padding=1)"
OTHER_UNITS = "_unit(self.mid, 1), _unit(self.mid, 3, padding=1, stride=self.stride)"
EPSILON = "eps: float = 1e-5\n    momentum"  # of BatchNorm
MUTANTS = {
    "height and width swapped": (VGG, NAMES, "4: (3, 2, 0, 1)", "4: (3, 2, 1, 0)"),
    "linear weights not transposed": (VGG, NAMES, MAPPED, UNMAPPED),
    "mean and variance swapped": (VGG, NAMES, STATISTICS, SWAPPED),
    "no make_equal_channel": (RESNET, MODELS, f"return y + {SHORTCUT}", NO_SHORTCUT),
    "stride on the 3x3": (RESNET, MODELS, UNITS, OTHER_UNITS),
    "biased variance": (TRAINING, LAYERS, "var * (count / (count - 1))", "var"),
    "flax's momentum": (TRAINING, LAYERS, "| None = 0.1", "| None = 0.01"),
    "another epsilon": (VGG, LAYERS, EPSILON, EPSILON.replace("5", "3")),
}


def forget():
    """Remove our modules, and return them."""
    names = [name for name in sys.modules if name.split(".")[0] in ("jaxcifar", "tests")]
    return {name: sys.modules.pop(name) for name in names}


@contextmanager
def program(file, right="", wrong=""):
    """Import the package anew, with a text replaced in one of its files."""
    before = forget()
    text = (PACKAGE / file).read_text()
    assert not right or text.count(right) == 1
    spec = importlib.util.find_spec(f"jaxcifar.{file.removesuffix('.py').replace('/', '.')}")
    try:
        sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
        exec(compile(text.replace(right, wrong), file, "exec"), vars(module))
        yield importlib.import_module("tests.porting.test_torch_parity")
    finally:
        forget()
        sys.modules.update(before)
        jax.clear_caches()


def run(test, parity):
    name, *arguments = test
    parity.STEPS = 1  # of twenty: a wrong one differs at once
    with jax.default_matmul_precision("highest"):
        getattr(parity, name)(*arguments, np.random.default_rng(0))


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_wrong_program_is_caught(mutant):
    test, *replacement = MUTANTS[mutant]
    with program(*replacement) as parity, pytest.raises(AssertionError):
        run(test, parity)


@pytest.mark.slow
@pytest.mark.parametrize("test", [VGG, RESNET, TRAINING], ids=str)
def test_the_right_program_passes(test):
    with program(LAYERS) as parity:
        run(test, parity)
