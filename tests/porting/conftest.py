"""Fixtures of the port's tests."""

import shutil

import pytest


@pytest.fixture
def folder(tmp_path):
    """An empty folder, removed at once: pytest would keep gigabytes."""
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.fixture(scope="session")
def modules():
    """Torch modules with random weights and statistics."""
    from jaxcifar.porting.torch_models import create_torch_model
    from tests.porting import torch_reference

    names = ("vgg16", "resnet50_layer4")
    return {name: torch_reference.randomize(create_torch_model(name)) for name in names}


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory, modules):
    """Each module's state dict in a file."""
    import torch

    home = tmp_path_factory.mktemp("checkpoints")
    for name, module in modules.items():
        torch.save(module.state_dict(), home / f"{name}.ckpt")
    yield {name: home / f"{name}.ckpt" for name in modules}
    shutil.rmtree(home)
