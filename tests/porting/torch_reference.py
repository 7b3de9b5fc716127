"""What the tests need of torch: random weights, and a map to Flax that is not the port's."""

import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

torch = pytest.importorskip("torch", reason="torch is not installed")
from torch import nn  # noqa: E402

from jaxcifar.porting.torch_models import create_torch_model  # noqa: E402

NORMS = nn.BatchNorm1d | nn.BatchNorm2d
RANGES = {"weight": (0.5, 1.5), "bias": (0, 1), "running_mean": (-0.3, 0.3)}
RANGES["running_var"] = RANGES["weight"]


def random_module(name, *, seed=0, dtype=torch.float32, **options):
    """Random statistics, scales and biases: fresh ones would hide errors of mapping.

    The biases of batch norms are not centred: at +-0.3 the ResNet in training mode amplifies
    rounding so much that float32 gradients, of either program, are 1.4e-4 from float64's; as
    here, 3e-5.
    """
    with torch.device("meta"):  # draws no weights that would be replaced
        module = create_torch_model(name, **options).to(dtype)
    return randomize(module.to_empty(device="cpu"), seed)


def randomize(module, seed=0):
    """Draw all weights and statistics of a module."""
    generator = torch.Generator().manual_seed(seed)
    for layer in module.modules():
        if isinstance(layer, NORMS):
            for name, (low, high) in RANGES.items():
                getattr(layer, name).data.uniform_(low, high, generator=generator)
            layer.num_batches_tracked.random_(1, 10**6, generator=generator)
        elif isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_uniform_(layer.weight, generator=generator)
            if layer.bias is not None:
                layer.bias.data.uniform_(-0.1, 0.1, generator=generator)
    return module


def to_flax(tensors, module):
    """Tensors by their names in a module, as variables of the same names."""
    variables = {}
    for key, tensor in tensors.items():
        path, _, name = key.rpartition(".")
        collection = "batch_stats" if name.startswith(("running", "num_batches")) else "params"
        array = tensor.detach().numpy()
        if name == "num_batches_tracked":
            array = array.astype(np.int32)
        if name == "weight":
            name = "scale" if isinstance(module.get_submodule(path), NORMS) else "kernel"
            array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
        variables[collection, *path.split("."), name.removeprefix("running_")] = array.copy()
    return unflatten_dict(variables)


def moments(adam, module):
    """Both moments of torch's Adam, each as params."""
    named = module.named_parameters()
    states = {key: adam.state[parameter] for key, parameter in named}
    return [
        to_flax({key: state[name] for key, state in states.items()}, module)["params"]
        for name in ("exp_avg", "exp_avg_sq")
    ]
