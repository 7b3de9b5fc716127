"""Weights of runs and checkpoints: read by what their metadata says, intact or not at all."""

import shutil
from functools import partial

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from jaxcifar import TrainConfig, UserError, create_model, data, train
from jaxcifar.core.state import make_optimizer, state_from
from jaxcifar.core.steps import Metrics
from jaxcifar.files import torch_files, weights
from jaxcifar.files.checkpoints import Checkpoints, last_step
from jaxcifar.files.run import RunDirectory
from jaxcifar.layers import Flatten, Linear, Sequential
from tests.conftest import random_variables
from tests.files.test_checkpoints import each_damage


def test_the_last_checkpoint_of_a_run_is_read(tmp_path):
    variables, model = random_variables("vgg16_bn"), create_model("vgg16_bn")
    state = state_from(variables, model, make_optimizer(1e-3))
    metadata = {"model": "vgg16_bn", "dataset": "digits", "class_names": list("0123456789")}
    with Checkpoints(tmp_path / "checkpoints", metadata, keep=2) as checkpoints:
        for step in (9, 10):
            params = jax.tree.map(partial(np.full_like, fill_value=step), variables["params"])
            checkpoints.save(state.replace(step=step, params=params), Metrics.zeros())
    loaded = weights.load(tmp_path)
    assert (loaded.model, loaded.num_classes, loaded.dataset) == ("vgg16_bn", 10, "digits")
    assert loaded.class_names == tuple("0123456789")
    assert loaded.adam is None
    assert weights.load(tmp_path, optimizer=True).adam.count == 0
    for path, step in (("", 10), ("checkpoints", 10), ("checkpoints/9", 9)):
        params = weights.load(tmp_path / path).variables["params"]
        assert all(np.all(leaf == step) for leaf in jax.tree.leaves(params))
    with pytest.raises(UserError, match="is vgg16_bn, not vgg16: use --model vgg16_bn"):
        weights.load(tmp_path, model="vgg16")


def test_every_path_may_be_a_str_and_no_repr_is_long(tmp_path):
    linear = {"kernel": np.ones((3072, 10), "f4"), "bias": np.zeros(10, "f4")}
    variables, path = {"params": {"1": linear}, "batch_stats": {}}, str(tmp_path / "w.safetensors")
    given = weights.Weights(f"{__name__}:linear", 10, variables, class_names=tuple("abcdefghij"))
    weights.write(path, given, weights.format_of(path), {})
    assert torch_files.read(path)[0]["1.weight"].shape == (10, 3072)
    loaded = weights.load(path, model=given.model)
    run = RunDirectory(str(tmp_path / "run"))
    with Checkpoints(run.checkpoints_dir, {}, keep=1) as checkpoints:
        checkpoints.save(loaded.state(), Metrics.zeros())
    assert last_step(str(run.checkpoints_dir)) == run.last_step() == 0
    config = TrainConfig(workdir=run.path)
    run.write_config(config, {})
    assert TrainConfig.from_json(str(run.path / "config.json")) == config
    history = train.History(run.path, [{"step": step} for step in range(99)], 0.5, loaded.state())
    for each in (given, loaded, loaded.state(), history, data.load("digits")):
        assert repr(each).startswith(f"{type(each).__name__}(")
        assert "\n" not in repr(each)
        assert len(repr(each)) < 700
    assert "variables=<2 arrays, 30,730 values>" in repr(loaded)


def linear(num_classes):
    return Sequential((Flatten, partial(Linear, num_classes)))


@pytest.mark.parametrize("bad", ["{", '["one"]', "7", "[" * 100_000])
def test_metadata_without_a_name_for_each_class_is_ignored(bad, checkpoint, tmp_path):
    path, loaded = tmp_path / "weights.safetensors", weights.load(checkpoint)
    torch_files.write_safetensors(path, weights.to_torch(loaded), {"class_names": bad})
    assert weights.load(path).class_names is None


@each_damage
def test_a_damaged_checkpoint_is_refused_without_noise(damage, checkpoint, tmp_path):
    path = shutil.copytree(checkpoint, tmp_path / "copy")
    damage(path)
    with pytest.raises(UserError, match="copy is no whole checkpoint"):
        weights.load(path)


def test_a_checkpoint_of_another_program_is_refused(tmp_path):
    ocp.save(tmp_path / "other", {"params": {"kernel": np.ones(3)}, "batch_stats": {}})
    with pytest.raises(UserError, match="other is no whole checkpoint"):
        weights.load(tmp_path / "other")
