"""Weights of runs and checkpoints: read by what their metadata says, intact or not at all."""

from functools import partial

import jax
import numpy as np
import pytest

from jaxcifar import UserError, data, train
from jaxcifar.core.models import abstract_variables
from jaxcifar.core.state import make_optimizer, state_from
from jaxcifar.core.steps import Metrics
from jaxcifar.files import weights
from jaxcifar.files.checkpoints import Checkpoints
from jaxcifar.layers import Flatten, Linear, Sequential
from tests.conftest import TINY
from tests.files.test_checkpoints import each_damage
from tests.tiny import Tiny


def linear(num_classes):
    return Sequential((Flatten, partial(Linear, num_classes)))


LAYER = {"kernel": np.ones((3072, 10), "f4"), "bias": np.zeros(10, "f4")}
VARIABLES = {"params": {"1": LAYER}, "batch_stats": {}}
LINEAR = weights.Weights(f"{__name__}:linear", 10, VARIABLES, class_names=tuple("abcdefghij"))


def test_the_last_checkpoint_of_a_run_is_read(tmp_path):
    ones = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), abstract_variables(Tiny()))
    state = state_from(ones, Tiny(), make_optimizer(1e-3))
    metadata = {"model": TINY, "dataset": "digits", "class_names": list("0123456789")}
    with Checkpoints(tmp_path / "checkpoints", metadata, keep=2) as checkpoints:
        for step in (9, 10):
            params = jax.tree.map(partial(np.full_like, fill_value=step), state.params)
            checkpoints.save(state.replace(step=step, params=params), Metrics.zeros())
    load = partial(weights.load, model=TINY)
    loaded = load(tmp_path)
    assert (loaded.model, loaded.num_classes, loaded.dataset) == (TINY, 10, "digits")
    assert loaded.class_names == tuple("0123456789")
    assert loaded.adam is None
    assert load(tmp_path, optimizer=True).adam.count == 0
    for path, step in (("", 10), ("checkpoints", 10), ("checkpoints/9", 9)):
        params = load(tmp_path / path).variables["params"]
        assert all(np.all(leaf == step) for leaf in jax.tree.leaves(params))
    with pytest.raises(UserError, match=f"is of your own network {TINY}: name it with --model"):
        weights.load(tmp_path)


def test_no_repr_is_long(tmp_path):
    history = train.History(tmp_path, [{"step": step} for step in range(99)], 0.5, LINEAR.state())
    for each in (LINEAR, history, data.load("digits")):
        assert repr(each).startswith(f"{type(each).__name__}(")
        assert "\n" not in repr(each)
        assert len(repr(each)) < 700


@each_damage
def test_a_damaged_checkpoint_is_refused_without_noise(damage, tmp_path):
    weights.write(tmp_path / "saved", LINEAR, "orbax", {})
    damage(tmp_path / "saved")
    with pytest.raises(UserError, match="saved is no whole checkpoint"):
        weights.load(tmp_path / "saved", model=LINEAR.model)
