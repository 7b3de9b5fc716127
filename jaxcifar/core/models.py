"""The networks, by name."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.typing import DTypeLike

from jaxcifar.core.resnet import ResNet50Layer4
from jaxcifar.core.vgg import VGG16

INPUT_SHAPE = (32, 32, 3)
MODELS: dict[str, Callable[..., nn.Module]] = {
    "vgg16": VGG16,
    "vgg16_bn": partial(VGG16, batch_norm=True),
    "resnet50_layer4": ResNet50Layer4,
}


@cache  # jit finds a compiled program only by the identical model
def create_model(
    name: str, *, num_classes: int = 10, dropout_rate: float = 0.5, dtype: DTypeLike = jnp.float32
) -> nn.Module:
    """Create a network of ``MODELS`` that computes in float32, bfloat16, or float64 under x64."""
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}: use one of {', '.join(MODELS)}")
    options = {} if name == "resnet50_layer4" else {"dropout_rate": dropout_rate}
    return MODELS[name](num_classes=num_classes, dtype=jnp.dtype(dtype), **options)


def init(key: jax.Array, model: nn.Module, input_shape: tuple[int, ...] = INPUT_SHAPE) -> Any:
    """Draw ``{"params": ..., "batch_stats": ...}``; jit it to leave the forward pass out."""
    with jax.default_matmul_precision("highest"):  # plain convolutions are traced faster
        return model.init(key, jnp.zeros((1, *input_shape)), train=False)


def abstract_variables(
    model: nn.Module, input_shape: tuple[int, ...] = INPUT_SHAPE
) -> dict[str, dict[str, jax.ShapeDtypeStruct]]:
    """Return shapes and dtypes of the variables, in the order of torch's state dict."""
    leaves = {}

    def record(key: jax.Array) -> None:
        for path, leaf in flatten_dict(init(key, model, input_shape)).items():
            leaves[path] = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)

    jax.eval_shape(record, jax.random.key(0))  # whose result would have sorted keys
    return unflatten_dict(leaves)


def head(model: nn.Module) -> tuple[str, ...]:
    """Return the path of the last layer, such as ``("classifier", "5")``."""
    *_, last = flatten_dict(abstract_variables(model)["params"])
    return last[:-1]
