"""Layers with torch's semantics, on NHWC images, called as ``layer(x, train=...)``.

They compute in the dtype of ``x`` and keep parameters in float32, or float64 when ``x`` is.
"""

from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.nn.initializers import Initializer

from jaxcifar.core.conv import conv2d

Layer = Callable[..., Any]  # a constructor of a layer with everything bound but its name
# torch's default for Conv2d and Linear weights and biases: U(-1/sqrt(fan_in), 1/sqrt(fan_in)).
torch_uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
BATCH_NORM_EPSILON = 1e-5
BATCH_NORM_MOMENTUM = 0.9  # weight of the old value; torch's 0.1 is that of the new one


def _torch_bias(kernel: jax.Array) -> Callable[..., jax.Array]:
    bound = (kernel.size // kernel.shape[-1]) ** -0.5
    return partial(jax.random.uniform, minval=-bound, maxval=bound)


class Sequential(nn.Module):
    """Apply layers in order, each named by its index, as ``torch.nn.Sequential`` does."""

    layers: Sequence[Layer]

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        for index, layer in enumerate(self.layers):
            x = layer(name=str(index))(x, train=train)
        return x


class Conv(nn.Module):
    """``torch.nn.Conv2d`` with a square kernel; a ``bias_init`` of None is torch's default."""

    features: int
    kernel_size: int
    stride: int = 1
    padding: int = 0
    kernel_init: Initializer = torch_uniform
    bias_init: Initializer | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        dtype = jnp.promote_types(x.dtype, jnp.float32)
        kernel = self.param("kernel", self.kernel_init, shape, dtype)
        bias = self.param("bias", self.bias_init or _torch_bias(kernel), shape[-1:], dtype)
        y = conv2d(x, kernel.astype(x.dtype), stride=self.stride, padding=self.padding)
        # Added in the dtype of the bias, whose gradient is a sum over all pixels.
        return (y.astype(dtype) + _per_channel(bias, x)).astype(x.dtype)


class Linear(nn.Module):
    """``torch.nn.Linear``."""

    features: int
    kernel_init: Initializer = torch_uniform

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        shape, dtype = (x.shape[-1], self.features), jnp.promote_types(x.dtype, jnp.float32)
        kernel = self.param("kernel", self.kernel_init, shape, dtype)
        bias = self.param("bias", _torch_bias(kernel), shape[-1:], dtype)
        return x @ kernel.astype(x.dtype) + _per_channel(bias.astype(x.dtype), x)


class BatchNorm(nn.Module):
    """``torch.nn.BatchNorm1d`` and ``2d``: unlike Flax's, it keeps the unbiased variance."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        channels, dtype = (x.shape[-1],), jnp.promote_types(x.dtype, jnp.float32)
        scale = self.param("scale", nn.initializers.ones, channels, dtype)
        bias = self.param("bias", nn.initializers.zeros, channels, dtype)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels, dtype)
        running_var = self.variable("batch_stats", "var", jnp.ones, channels, dtype)
        batches = self.variable("batch_stats", "num_batches_tracked", jnp.zeros, (), jnp.int32)
        if not train:
            factor = scale * lax.rsqrt(running_var.value + BATCH_NORM_EPSILON)
            mean, factor, bias = (_per_channel(v, x) for v in (running_mean.value, factor, bias))
            return ((x.astype(dtype) - mean) * factor + bias).astype(x.dtype)
        count = x.size // x.shape[-1]
        if count < 2:  # as torch does
            raise ValueError(f"BatchNorm cannot train on one value per channel, shape {x.shape}")
        y, mean, var = _normalize(x, scale, bias)
        if not self.is_initializing():
            for running, new in (running_mean, mean), (running_var, var * (count / (count - 1))):
                old = BATCH_NORM_MOMENTUM * running.value
                running.value = old + (1 - BATCH_NORM_MOMENTUM) * new
            batches.value += 1
        return y


def _per_channel(vector: jax.Array, x: jax.Array) -> jax.Array:
    """Reshape a value per channel to the rank of ``x``; rank promotion may be an error."""
    return vector.reshape((1,) * (x.ndim - 1) + vector.shape)


def _normalize_forward(x: jax.Array, scale: jax.Array, bias: jax.Array) -> Any:
    axes = tuple(range(x.ndim - 1))
    wide = x.astype(scale.dtype)
    mean = jnp.mean(wide, axes)
    centered = wide - _per_channel(mean, x)
    var = jnp.mean(jnp.square(centered), axes)
    inverse = lax.rsqrt(var + BATCH_NORM_EPSILON)
    y = centered * _per_channel(inverse * scale, x) + _per_channel(bias, x)
    return (y.astype(x.dtype), mean, var), (x, mean, inverse, scale)


def _normalize_backward(residuals: Any, cotangents: Any) -> Any:
    """Closed form with two sums over the batch; automatic differentiation has five."""
    x, mean, inverse, scale = residuals
    dy = cotangents[0].astype(scale.dtype)  # none flow through the mean and the variance
    axes = tuple(range(x.ndim - 1))
    normalized = (x.astype(scale.dtype) - _per_channel(mean, x)) * _per_channel(inverse, x)
    d_bias = jnp.sum(dy, axes)
    d_scale = jnp.sum(dy * normalized, axes)
    count = x.size // x.shape[-1]
    centered = dy - _per_channel(d_bias / count, x) - normalized * _per_channel(d_scale / count, x)
    return (centered * _per_channel(inverse * scale, x)).astype(x.dtype), d_scale, d_bias


# Of x, scale and bias: the normalized x, the mean and the biased variance.
_normalize = jax.custom_vjp(lambda *arguments: _normalize_forward(*arguments)[0])
_normalize.defvjp(_normalize_forward, _normalize_backward)


class ReLU(nn.Module):
    """``torch.nn.ReLU``."""

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        return nn.relu(x)


class Dropout(nn.Module):
    """``torch.nn.Dropout``; training needs ``rngs={"dropout": key}``."""

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        return nn.Dropout(self.rate)(x, deterministic=not train)


class MaxPool(nn.Module):
    """``torch.nn.MaxPool2d``, which pads with minus infinity."""

    window: int
    stride: int
    padding: int = 0

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        y = x.astype(jnp.promote_types(x.dtype, jnp.float32))  # on CPU, bfloat16 is slow here
        if self.padding:
            sides = (self.padding, self.padding)
            y = jnp.pad(y, ((0, 0), sides, sides, (0, 0)), constant_values=-jnp.inf)
        for axis in (1, 2):  # shifted views, whose gradient is much cheaper than reduce_window's
            end = (y.shape[axis] - self.window) // self.stride * self.stride + 1
            views = [lax.slice_in_dim(y, i, i + end, self.stride, axis) for i in range(self.window)]
            y = reduce(jnp.maximum, views)
        return y.astype(x.dtype)
