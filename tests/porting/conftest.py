"""Fixtures of the port's tests."""

import pytest


@pytest.fixture
def folder(tmp_path):
    return tmp_path


@pytest.fixture(scope="session")
def modules():
    """Torch modules with random weights and statistics."""
    from jaxcifar.porting.torch_models import create_torch_model
    from tests.porting.torch_reference import randomize

    return {name: randomize(create_torch_model(name)) for name in ("vgg16", "resnet50_layer4")}


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory, modules):
    """Each module's state dict in a file."""
    import torch

    paths = {name: tmp_path_factory.mktemp("torch") / f"{name}.ckpt" for name in modules}
    for name, path in paths.items():
        torch.save(modules[name].state_dict(), path)
    return paths
