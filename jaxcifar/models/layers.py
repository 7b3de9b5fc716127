"""Layers that mean what torch's mean, on NHWC images.

A layer is called as ``layer(x, train=...)`` and computes in the dtype of ``x``; its
parameters are float32, or float64 when ``x`` is. Kernels are ``(kh, kw, in, out)``.
``Sequential`` names its layers ``0, 1, 2, ...`` as ``torch.nn.Sequential`` does, so that
a leaf's path in the tree is its key in the state dict.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.nn.initializers import Initializer

from jaxcifar.ops.conv import conv2d

# torch's default for Conv2d and Linear weights and biases: U(-1/sqrt(fan_in), 1/sqrt(fan_in)).
torch_uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
BATCH_NORM_EPSILON = 1e-5
BATCH_NORM_MOMENTUM = 0.9  # of the old value; torch calls the same thing 0.1


class Layer(Protocol):
    """A constructor of a layer: everything but its name is bound."""

    def __call__(self, *, name: str) -> Callable[..., jax.Array]: ...


def param_dtype(dtype: jnp.dtype) -> jnp.dtype:
    """The dtype in which parameters are kept when computing in ``dtype``."""
    return jnp.promote_types(dtype, jnp.float32)


def _torch_bias(fan_in: int) -> Initializer:
    """Draws torch's default bias: a bias alone cannot tell the fan-in of its weight."""

    def init(key: jax.Array, shape: Any, dtype: Any = jnp.float32, out_sharding: Any = None) -> Any:
        del out_sharding  # of jax's Initializer; placement is jit's
        return jax.random.uniform(key, shape, dtype, -(fan_in**-0.5), fan_in**-0.5)

    return init


class Sequential(nn.Module):
    """Applies layers in turn, each named by its index."""

    layers: Sequence[Layer]

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        for index, layer in enumerate(self.layers):
            x = layer(name=str(index))(x, train=train)
        return x


class Conv(nn.Module):
    """``torch.nn.Conv2d`` with a square kernel; ``(N, H, W, C) -> (N, H', W', features)``."""

    features: int
    kernel_size: int
    stride: int = 1
    padding: int = 0
    kernel_init: Initializer = torch_uniform
    bias_init: Initializer | None = None  # None: torch's default

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        del train
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        fan_in = self.kernel_size**2 * x.shape[-1]
        dtype = param_dtype(x.dtype)
        kernel = self.param("kernel", self.kernel_init, shape, dtype)
        bias = self.param("bias", self.bias_init or _torch_bias(fan_in), (self.features,), dtype)
        kernel, bias = kernel.astype(x.dtype), bias.astype(x.dtype)
        return conv2d(x, kernel, stride=self.stride, padding=self.padding) + _last(bias, x)


class Linear(nn.Module):
    """``torch.nn.Linear``; ``(N, C) -> (N, features)``."""

    features: int
    kernel_init: Initializer = torch_uniform

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        del train
        fan_in = x.shape[-1]
        dtype = param_dtype(x.dtype)
        kernel = self.param("kernel", self.kernel_init, (fan_in, self.features), dtype)
        bias = self.param("bias", _torch_bias(fan_in), (self.features,), dtype)
        return x @ kernel.astype(x.dtype) + _last(bias.astype(x.dtype), x)


class BatchNorm(nn.Module):
    """``torch.nn.BatchNorm1d`` and ``2d``: normalises over all axes but the last.

    Flax's own keeps the biased batch variance as running statistic, torch the unbiased
    one; hence this layer. Statistics are computed and kept in float32 or wider, with the
    number of batches that went into them, as torch does.

    Raises:
      ValueError: in training, when the batch has one value per channel (as torch does).
    """

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        channels = (x.shape[-1],)
        dtype = param_dtype(x.dtype)
        scale = self.param("scale", nn.initializers.ones, channels, dtype)
        bias = self.param("bias", nn.initializers.zeros, channels, dtype)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels, dtype)
        running_var = self.variable("batch_stats", "var", jnp.ones, channels, dtype)
        batches = self.variable("batch_stats", "num_batches_tracked", jnp.zeros, (), jnp.int32)

        if train:
            count = x.size // x.shape[-1]
            if count < 2:
                raise ValueError(
                    f"BatchNorm cannot train on one value per channel, got shape {x.shape}"
                )
            axes = tuple(range(x.ndim - 1))
            wide = x.astype(dtype)
            mean = jnp.mean(wide, axes)
            var = jnp.mean(jnp.square(wide - _last(mean, x)), axes)
            if not self.is_initializing():
                running_mean.value = _running(running_mean.value, mean)
                running_var.value = _running(running_var.value, var * (count / (count - 1)))
                batches.value += 1
        else:
            mean, var = running_mean.value, running_var.value

        factor = scale * lax.rsqrt(var + BATCH_NORM_EPSILON)
        y = (x.astype(dtype) - _last(mean, x)) * _last(factor, x) + _last(bias, x)
        return y.astype(x.dtype)


def _last(vector: jax.Array, like: jax.Array) -> jax.Array:
    """A value per channel, shaped to broadcast over ``like`` (rank promotion stays an error)."""
    return vector.reshape((1,) * (like.ndim - 1) + vector.shape)


def _running(old: jax.Array, new: jax.Array) -> jax.Array:
    return BATCH_NORM_MOMENTUM * old + (1 - BATCH_NORM_MOMENTUM) * new


class ReLU(nn.Module):
    """``torch.nn.ReLU``."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        del train
        return nn.relu(x)


class Dropout(nn.Module):
    """``torch.nn.Dropout``: zeroes with probability ``rate`` and scales the rest up."""

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        return nn.Dropout(self.rate)(x, deterministic=not train)


class MaxPool(nn.Module):
    """``torch.nn.MaxPool2d``: the padding is minus infinity, and explicit."""

    window: int
    stride: int
    padding: int = 0

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        del train
        if (self.window, self.stride, self.padding) == (2, 2, 0):
            # Three maxima of strided views: the gradient is much cheaper than reduce_window's.
            x = x[:, : x.shape[1] // 2 * 2, : x.shape[2] // 2 * 2]
            rows = jnp.maximum(x[:, ::2], x[:, 1::2])
            return jnp.maximum(rows[:, :, ::2], rows[:, :, 1::2])
        pad = (self.padding, self.padding)
        window, stride = (self.window, self.window), (self.stride, self.stride)
        return nn.max_pool(x, window, stride, padding=(pad, pad))
