"""Fixtures of the port's tests."""

import contextlib

import pytest


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path):
    with contextlib.chdir(tmp_path):
        yield


@pytest.fixture(scope="session")
def modules():
    """Torch modules with random weights and statistics."""
    from tests.porting.torch_reference import random_module

    return {name: random_module(name) for name in ("vgg16", "resnet50_layer4")}


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory, modules):
    """Each module's state dict in a file."""
    import torch

    paths = {name: tmp_path_factory.mktemp("torch") / f"{name}.ckpt" for name in modules}
    for name, path in paths.items():
        torch.save(modules[name].state_dict(), path)
    return paths
