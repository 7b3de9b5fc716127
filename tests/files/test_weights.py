"""Weights of runs and checkpoints: read by what their metadata says, intact or not at all."""

import shutil
from functools import partial

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from jaxcifar import UserError, create_model
from jaxcifar.core.state import make_optimizer, state_from
from jaxcifar.core.steps import Metrics
from jaxcifar.files import torch_files, weights
from jaxcifar.files.run import RunDirectory
from tests.conftest import random_variables
from tests.files.test_checkpoints import each_damage


def test_the_last_checkpoint_of_a_run_is_read(tmp_path):
    variables, model = random_variables("vgg16_bn"), create_model("vgg16_bn")
    state = state_from(variables, model, make_optimizer(1e-3))
    metadata = {"model": "vgg16_bn", "dataset": "digits", "class_names": list("0123456789")}
    with RunDirectory(tmp_path).open_checkpoints(keep=2) as checkpoints:
        for step in (9, 10):
            params = jax.tree.map(partial(np.full_like, fill_value=step), variables["params"])
            checkpoints.save(state.replace(step=step, params=params), Metrics.zeros(), metadata)
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
