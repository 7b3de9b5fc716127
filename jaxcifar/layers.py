"""Layers with torch's semantics, on NHWC images, called as ``layer(x, train=...)``."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxcifar.core.conv.matmul import per_channel
from jaxcifar.core.conv.window import Size, Window, pair
from jaxcifar.core.layers import *  # noqa: F403 - its __all__
from jaxcifar.core.layers import Function, affine, pool


def _relu6(x: jax.Array) -> jax.Array:  # torch's gradients, also where they jump
    return jnp.where(x >= 6, 6, nn.relu(x))


Identity = partial(Function, lambda x: x)
# In torch's order: the channels of an image come before its pixels.
Flatten = partial(Function, lambda x: jnp.moveaxis(x, -1, 1).reshape(x.shape[0], -1))
ReLU6 = partial(Function, _relu6)
SiLU = partial(Function, nn.silu)
GELU = partial(Function, partial(nn.gelu, approximate=False))
Sigmoid = partial(Function, nn.sigmoid)
Tanh = partial(Function, jnp.tanh)
Hardsigmoid = partial(Function, lambda x: _relu6(x + 3) / 6)
Hardswish = partial(Function, lambda x: x * _relu6(x + 3) / 6)


class LeakyReLU(nn.Module):
    """``torch.nn.LeakyReLU``."""

    negative_slope: float = 0.01

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        return jnp.where(x > 0, x, self.negative_slope * x)


class GroupNorm(nn.Module):
    """``torch.nn.GroupNorm``."""

    num_groups: int
    eps: float = 1e-5
    affine: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        grouped = x.reshape(*x.shape[:-1], self.num_groups, -1)
        y = _standardize(grouped, (*range(1, x.ndim - 1), x.ndim), self.eps).reshape(x.shape)
        scale, bias = affine(self, x, self.affine, self.affine)
        return (y * per_channel(scale, x) + per_channel(bias, x)).astype(x.dtype)


class LayerNorm(nn.Module):
    """``torch.nn.LayerNorm`` over the last axis."""

    normalized_shape: int
    eps: float = 1e-5
    elementwise_affine: bool = True
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        if x.shape[-1] != self.normalized_shape:
            raise ValueError(f"LayerNorm({self.normalized_shape}) does not fit {x.shape}")
        y, has_scale = _standardize(x, (-1,), self.eps), self.elementwise_affine
        scale, bias = affine(self, x, has_scale, has_scale and self.use_bias)
        return (y * per_channel(scale, x) + per_channel(bias, x)).astype(x.dtype)


def _standardize(x: jax.Array, axes: tuple[int, ...], eps: float) -> jax.Array:
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return jax.nn.standardize(x, axes, variance=jnp.var(x, axes, keepdims=True), epsilon=eps)


class AvgPool(nn.Module):
    """``torch.nn.AvgPool2d``."""

    window: Size
    stride: Size | None = None
    padding: Size = 0
    ceil_mode: bool = False
    count_include_pad: bool = True

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        window = Window.of(self.window, self.stride or self.window, self.padding)
        y = pool(x, window, jnp.add, 0.0, ceil_mode=self.ceil_mode)
        ones, border = jnp.ones((1, *x.shape[1:3], 1), y.dtype), float(self.count_include_pad)
        padded = jnp.pad(ones, ((0, 0), *window.paddings, (0, 0)), constant_values=border)
        window = window._replace(paddings=((0, 0), (0, 0)))
        counts = pool(padded, window, jnp.add, 0.0, ceil_mode=True)
        return (y / counts[:, : y.shape[1], : y.shape[2]]).astype(x.dtype)


class AdaptiveAvgPool(nn.Module):
    """``torch.nn.AdaptiveAvgPool2d``."""

    output_size: Size = 1

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        for axis, outputs in enumerate(pair(self.output_size), start=1):
            side = x.shape[axis]
            windows = [(i * side // outputs, -(-(i + 1) * side // outputs)) for i in range(outputs)]
            parts = [lax.slice_in_dim(y, *window, axis=axis) for window in windows]
            y = jnp.stack([part.mean(axis) for part in parts], axis)
        return y.astype(x.dtype)
