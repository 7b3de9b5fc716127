"""Layers with torch's semantics, on NHWC images, called as ``layer(x, train=...)``.

They compute in the dtype of ``x`` and keep parameters in float32, or float64 when ``x`` is.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer

from jaxcifar.core.activations import Function
from jaxcifar.core.conv import conv2d
from jaxcifar.core.conv.window import Size, pair
from jaxcifar.core.norms import per_channel

Layer = Callable[..., Any]  # a constructor of a layer with everything bound but its name
# torch's default for Conv2d and Linear weights and biases: U(-1/sqrt(fan_in), 1/sqrt(fan_in)).
torch_uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def _torch_bias(kernel: jax.Array) -> Callable[..., jax.Array]:
    bound = (kernel.size // kernel.shape[-1]) ** -0.5
    return partial(jax.random.uniform, minval=-bound, maxval=bound)


class Sequential(nn.Module):
    """Apply layers in order, each named by its index, as ``torch.nn.Sequential`` does.

    A layer is a constructor: a class, or a ``functools.partial`` of one.
    """

    layers: Sequence[Layer]

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        for index, layer in enumerate(self.layers):
            x = layer(name=str(index))(x, train=train)
        return x


Identity = partial(Function, lambda x: x)
# In torch's order: the channels of an image come before its pixels.
Flatten = partial(Function, lambda x: jnp.moveaxis(x, -1, 1).reshape(x.shape[0], -1))


class Dropout(nn.Module):
    """``torch.nn.Dropout``; training needs ``rngs={"dropout": key}``."""

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        return nn.Dropout(self.rate)(x, deterministic=not train)


class Conv(nn.Module):
    """``torch.nn.Conv2d``; a ``bias_init`` of None is torch's default."""

    features: int
    kernel_size: Size
    stride: Size = 1
    padding: Size | str = 0
    dilation: Size = 1
    groups: int = 1
    use_bias: bool = True
    kernel_init: Initializer = torch_uniform
    bias_init: Initializer | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        shape = (*pair(self.kernel_size), x.shape[-1] // self.groups, self.features)
        dtype = jnp.promote_types(x.dtype, jnp.float32)
        kernel = self.param("kernel", self.kernel_init, shape, dtype)
        y = conv2d(
            x,
            kernel.astype(x.dtype),
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
        )
        if not self.use_bias:
            return y
        bias = self.param("bias", self.bias_init or _torch_bias(kernel), y.shape[-1:], dtype)
        # In the dtype of the bias, whose gradient is a sum over all pixels.
        return (y.astype(dtype) + per_channel(bias, y)).astype(x.dtype)


class Linear(nn.Module):
    """``torch.nn.Linear``."""

    features: int
    use_bias: bool = True
    kernel_init: Initializer = torch_uniform

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        shape, dtype = (x.shape[-1], self.features), jnp.promote_types(x.dtype, jnp.float32)
        kernel = self.param("kernel", self.kernel_init, shape, dtype)
        y = x @ kernel.astype(x.dtype)
        if not self.use_bias:
            return y
        bias = self.param("bias", _torch_bias(kernel), shape[-1:], dtype)
        return y + per_channel(bias.astype(x.dtype), x)
