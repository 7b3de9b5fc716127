"""Layers with torch's semantics, on NHWC images, called as ``layer(x, train=...)``.

They compute in the dtype of ``x`` and keep parameters in float32, or float64 when ``x`` is.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.nn.initializers import Initializer

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


class Identity(nn.Module):
    """``torch.nn.Identity``."""

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        return x


class Flatten(nn.Module):
    """``torch.nn.Flatten`` in torch's order: the channels of an image come before its pixels."""

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        return jnp.moveaxis(x, -1, 1).reshape(x.shape[0], -1)


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
        return _add_bias(self, y, kernel, self.bias_init) if self.use_bias else y


class ConvTranspose(nn.Module):
    """``torch.nn.ConvTranspose2d``; the kernel is ``(H, W, out / groups, in)``.

    These are torch's axes in the order of Conv's, so the port treats both alike.
    """

    features: int
    kernel_size: Size
    stride: Size = 1
    padding: Size = 0
    output_padding: Size = 0
    groups: int = 1
    use_bias: bool = True
    dilation: Size = 1

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        if x.shape[-1] % self.groups or self.features % self.groups:
            split = f"{x.shape[-1]} to {self.features}"
            raise ValueError(f"ConvTranspose cannot split {split} channels by {self.groups}")
        shape = (*pair(self.kernel_size), self.features // self.groups, x.shape[-1])
        dtype, dilations = jnp.promote_types(x.dtype, jnp.float32), pair(self.dilation)
        kernel = self.param("kernel", torch_uniform, shape, dtype)
        # The same as a convolution: flipped, and inputs and outputs of each group swapped.
        swapped = jnp.flip(kernel, (0, 1)).reshape(*shape[:3], self.groups, -1)
        swapped = swapped.transpose(0, 1, 4, 3, 2).reshape(*shape[:2], -1, self.features)
        sizes = zip(shape, dilations, pair(self.padding), pair(self.output_padding), strict=False)
        paddings = [(d * (k - 1) - p, d * (k - 1) - p + extra) for k, d, p, extra in sizes]
        y = lax.conv_general_dilated(
            *(x, swapped.astype(x.dtype), (1, 1), paddings, pair(self.stride), dilations),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=self.groups,
        )
        return _add_bias(self, y, kernel) if self.use_bias else y


def _add_bias(
    layer: nn.Module, y: jax.Array, kernel: jax.Array, init: Initializer | None = None
) -> jax.Array:
    """Add in the dtype of the bias, whose gradient is a sum over all pixels."""
    bias = layer.param("bias", init or _torch_bias(kernel), y.shape[-1:], kernel.dtype)
    return (y.astype(kernel.dtype) + per_channel(bias, y)).astype(y.dtype)


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
