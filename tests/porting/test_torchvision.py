"""Networks that nobody here wrote: those of torchvision and timm, with the classes in examples."""

import importlib.util
import sys
import warnings
from functools import partial
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcifar.files import networks, torch_names
from jaxcifar.porting import compare
from tests.porting import torch_reference
from tests.porting.files import assert_equal, port, torch


def import_networks():
    """Import torchvision and timm, also without the compiled operators, which no network needs."""
    for package in ("torchvision", "timm"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed", allow_module_level=True)
    try:
        importlib.import_module("torchvision")
    except RuntimeError:  # a wheel for CUDA beside a torch for CPUs
        for name in [name for name in sys.modules if name.startswith("torchvision")]:
            del sys.modules[name]
        for name in ("nms", "qnms"):
            LIBRARY.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    importlib.import_module("timm")


LIBRARY = torch.library.Library("torchvision", "FRAGMENT")
with warnings.catch_warnings(action="ignore"):
    import_networks()
pytestmark = pytest.mark.slow
EXAMPLES = Path(__file__).parents[2] / "examples"
NETWORKS = [
    ("torchvision_models.py:ResNet18", "torchvision.models:resnet18"),
    ("torchvision_models.py:ResNet50", "torchvision.models:resnet50"),
    ("torchvision_models.py:VGG11_bn", "torchvision.models:vgg11_bn"),
    ("torchvision_models.py:MobileNetV2", "torchvision.models:mobilenet_v2"),
    ("torchvision_models.py:DenseNet121", "torchvision.models:densenet121"),
    ("torchvision_models.py:ResNet18", "timm.models:resnet18"),
    ("timm_models.py:MobileNetV2", "timm.models:mobilenetv2_100"),
]
# Those with kinds of layers whose gradients no other has.
TRAINED = [pair for pair in NETWORKS if pair[1].endswith(("vision.models:resnet18", "_v2"))]


def build(theirs, num_classes):
    """Random weights, and statistics at random about those of images, so that nothing dies out."""
    module = networks.call(theirs, "--against", {"num_classes": num_classes})
    module = torch_reference.randomize(module).train()
    norms = [layer for layer in module.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    generator = torch.Generator().manual_seed(1)
    for layer in norms:
        layer.momentum = 1.0
    with torch.no_grad():
        module(torch.randn(4, 3, 64, 64, generator=generator))
    for layer in norms:
        layer.momentum, shape = 0.1, layer.running_var.shape
        layer.running_var *= torch.rand(shape, generator=generator) + 0.5
        noise = torch.rand(shape, generator=generator) - 0.5
        layer.running_mean += 0.6 * noise * layer.running_var.sqrt()
    return module


@pytest.mark.parametrize(("ours", "theirs"), NETWORKS, ids=[pair[1] for pair in NETWORKS])
def test_every_layer_is_torchs_and_every_bit_comes_back(ours, theirs, capsys):
    module, name = build(theirs, 1000), f"{EXAMPLES}/{ours}"
    torch.save(module.state_dict(), "in.pth")
    large = "VGG" in ours  # 128 million values take long to write
    size, flags = ("3x32x32", ["--dry-run"]) if large else ("3x96x96", [])
    port("in.pth", "flax", "--model", name, "--against", theirs, "--input", size, *flags)
    assert f"verified against {theirs}" in capsys.readouterr().out
    if large:
        return
    port("flax", "out.pth", "--model", name, "--input", size, "--no-verify")
    assert_equal(module.state_dict(), torch.load("out.pth"))


@pytest.mark.parametrize(("ours", "theirs"), TRAINED, ids=[pair[1] for pair in TRAINED])
@jax.enable_x64(True)
def test_a_float64_step_is_torchs(ours, theirs, rng):
    module = build(theirs, 10).double()
    model = networks.create(f"{EXAMPLES}/{ours}", num_classes=10, dtype="float64")
    variables = torch_names.to_flax(module.state_dict(), model)
    images, weights = rng.standard_normal((4, 32, 32, 3)), rng.standard_normal((4, 10))
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2)

    module.eval()
    expected = module(pixels).detach().numpy()
    logits = jax.jit(partial(model.apply, train=False))(variables, images)
    assert np.abs(logits - expected).max() <= 1e-9 * np.abs(expected).max()

    module.train()
    for layer in module.modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.p = 0.0
    (module(pixels) * torch.from_numpy(weights)).sum().backward()

    def loss(params):
        state = {**variables, "params": params}
        logits, updates = model.apply(state, images, train=True, mutable=["batch_stats"])
        return jnp.sum(logits * weights), updates

    with nn.intercept_methods(compare.without_dropout):
        gradients, statistics = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    expected = {name: parameter.grad for name, parameter in module.named_parameters()}
    expected |= dict(module.named_buffers())
    ours = torch_names.torch_view({"params": gradients, **statistics})
    assert ours.keys() == expected.keys()
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for key, array in ours.items():
        wanted = expected[key].numpy()
        bound = 1e-9 * max(np.abs(wanted).max(), 1e-6 * largest)  # of a bias before a batch norm: 0
        assert np.abs(array - wanted).max() <= bound, key
