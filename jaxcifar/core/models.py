"""The networks, by name."""

from collections.abc import Callable
from functools import cache, partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.typing import DTypeLike

from jaxcifar.core.resnet import ResNet50Layer4
from jaxcifar.core.vgg import VGG16

__all__ = [
    "INPUT_SHAPE",
    "MODELS",
    "VGG16",
    "ResNet50Layer4",
    "abstract_variables",
    "create_model",
    "head",
]

INPUT_SHAPE = (32, 32, 3)
MODELS: dict[str, Callable[..., nn.Module]] = {
    "vgg16": VGG16,
    "vgg16_bn": partial(VGG16, batch_norm=True),
    "resnet50_layer4": ResNet50Layer4,
}


@cache  # of the same model jit knows its program again
def create_model(
    name: str,
    *,
    num_classes: int = 10,
    dropout_rate: float = 0.5,
    dtype: DTypeLike = jnp.float32,
) -> nn.Module:
    """Builds a model that maps images ``(N, 32, 32, 3)`` to logits ``(N, num_classes)``.

    Args:
      name: a key of ``MODELS``.
      num_classes: length of the logits.
      dropout_rate: for the VGG head; ``resnet50_layer4`` has no dropout and ignores it.
      dtype: what is computed in: float32, bfloat16, or float64 under x64. Parameters
        are float32, or float64 with float64.

    Raises:
      ValueError: the name is not known.
    """
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}: choose one of {', '.join(MODELS)}")
    options = {} if name == "resnet50_layer4" else {"dropout_rate": dropout_rate}
    return MODELS[name](num_classes=num_classes, dtype=jnp.dtype(dtype), **options)


def abstract_variables(model: nn.Module) -> dict[str, dict[str, jax.ShapeDtypeStruct]]:
    """Shapes and dtypes of ``{"params": ..., "batch_stats": ...}``, without computing anything.

    The keys are in the order of the layers' calls, which is that of torch's state dict.
    """
    images = jax.ShapeDtypeStruct((1, *INPUT_SHAPE), jnp.float32)
    leaves = {}

    def init(key: jax.Array, images: jax.Array) -> None:
        for path, leaf in flatten_dict(model.init(key, images, train=False)).items():
            leaves[path] = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)

    jax.eval_shape(init, jax.random.key(0), images)  # would sort what it returns
    return unflatten_dict(leaves)


def head(model: nn.Module) -> tuple[str, ...]:
    """The path of the last layer, which gives the logits, as ``("classifier", "5")``."""
    *_, last = flatten_dict(abstract_variables(model)["params"])
    return last[:-1]
