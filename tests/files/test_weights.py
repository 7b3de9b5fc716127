"""Weights of runs and checkpoints: read by what their metadata says, intact or not at all."""

from functools import partial

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from jaxcifar import TrainConfig, UserError, data, train
from jaxcifar.core.models import abstract_variables
from jaxcifar.core.state import make_optimizer, state_from
from jaxcifar.core.steps import Metrics
from jaxcifar.files import torch_files, weights
from jaxcifar.files.checkpoints import Checkpoints
from jaxcifar.files.run import RunDirectory
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


def test_every_path_may_be_a_str_and_no_repr_is_long(tmp_path):
    path = str(tmp_path / "w.safetensors")
    weights.write(path, LINEAR, weights.format_of(path), {})
    assert torch_files.read(path)[0]["1.weight"].shape == (10, 3072)
    loaded = weights.load(path, model=LINEAR.model)
    run = RunDirectory(str(tmp_path / "run"))
    with Checkpoints(run.checkpoints_dir, {}, keep=1) as checkpoints:
        checkpoints.save(loaded.state(), Metrics.zeros())
    assert run.last_step() == 0
    config = TrainConfig(workdir=run.path)
    run.write_config(config, {})
    assert TrainConfig.from_json(str(run.path / "config.json")) == config
    history = train.History(run.path, [{"step": step} for step in range(99)], 0.5, loaded.state())
    for each in (loaded, history, data.load("digits")):
        assert repr(each).startswith(f"{type(each).__name__}(")
        assert "\n" not in repr(each)
        assert len(repr(each)) < 700


@pytest.mark.parametrize("bad", ["{", '["one"]', "7", "[" * 100_000])
def test_metadata_without_a_name_for_each_class_is_ignored(bad, tmp_path):
    path = tmp_path / "weights.safetensors"
    torch_files.write_safetensors(path, weights.to_torch(LINEAR), {"class_names": bad})
    assert weights.load(path, model=LINEAR.model).class_names is None


@each_damage
def test_a_damaged_checkpoint_is_refused_without_noise(damage, tmp_path):
    weights.write(tmp_path / "saved", LINEAR, "orbax", {})
    damage(tmp_path / "saved")
    with pytest.raises(UserError, match="saved is no whole checkpoint"):
        weights.load(tmp_path / "saved", model=LINEAR.model)


def test_a_checkpoint_of_another_program_is_refused(tmp_path):
    ocp.save(tmp_path / "other", {"params": {"kernel": np.ones(3)}, "batch_stats": {}})
    with pytest.raises(UserError, match="other is no whole checkpoint"):
        weights.load(tmp_path / "other")
