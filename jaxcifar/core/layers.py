"""Layers that mean what torch's mean, on NHWC images.

A layer is called as ``layer(x, train=...)`` and computes in the dtype of ``x``; its
parameters are float32, or float64 when ``x`` is. Kernels are ``(kh, kw, in, out)``.
``Sequential`` names its layers ``0, 1, 2, ...`` as ``torch.nn.Sequential`` does, so that
a leaf's path in the tree is its key in the state dict.
"""

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.nn.initializers import Initializer

from jaxcifar.core.conv import conv2d

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
    """Applies layers in turn, each named by its index.

    Attributes:
      layers: constructors, as ``ReLU`` or ``partial(Linear, 10)``.
    """

    layers: Sequence[Layer]

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        for index, layer in enumerate(self.layers):
            x = layer(name=str(index))(x, train=train)
        return x


class Conv(nn.Module):
    """``torch.nn.Conv2d`` with a square kernel; ``(N, H, W, C) -> (N, H', W', features)``.

    Attributes:
      features: channels of the result.
      kernel_size: height and width of the kernel, in pixels.
      stride: pixels between two windows.
      padding: zeros on each side, in pixels.
      kernel_init: draws the kernel; torch's default unless given.
      bias_init: draws the bias; None is torch's default.
    """

    features: int
    kernel_size: int
    stride: int = 1
    padding: int = 0
    kernel_init: Initializer = torch_uniform
    bias_init: Initializer | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        del train
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        fan_in = self.kernel_size**2 * x.shape[-1]
        dtype = param_dtype(x.dtype)
        kernel = self.param("kernel", self.kernel_init, shape, dtype)
        bias = self.param("bias", self.bias_init or _torch_bias(fan_in), (self.features,), dtype)
        y = conv2d(x, kernel.astype(x.dtype), stride=self.stride, padding=self.padding)
        # In the bias's dtype: its gradient is a sum over all pixels.
        return (y.astype(dtype) + _last(bias, x)).astype(x.dtype)


class Linear(nn.Module):
    """``torch.nn.Linear``; ``(N, C) -> (N, features)``.

    Attributes:
      features: length of the result.
      kernel_init: draws the kernel ``(C, features)``; torch's default unless given.
    """

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
    number of batches that went into them, as torch does. Epsilon (1e-5) and momentum are
    torch's defaults.

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
            y, mean, var = _normalize(x, scale, bias)
            if not self.is_initializing():
                running_mean.value = _running(running_mean.value, mean)
                running_var.value = _running(running_var.value, var * (count / (count - 1)))
                batches.value += 1
            return y

        factor = scale * lax.rsqrt(running_var.value + BATCH_NORM_EPSILON)
        y = (x.astype(dtype) - _last(running_mean.value, x)) * _last(factor, x) + _last(bias, x)
        return y.astype(x.dtype)


@jax.custom_vjp
def _normalize(
    x: jax.Array, scale: jax.Array, bias: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """``(x - mean) / sqrt(var + epsilon) * scale + bias`` with the mean and variance of ``x``.

    Returns the two as well, as constants: no gradient flows through them but by ``y``.
    """
    return _normalize_forward(x, scale, bias)[0]


def _normalize_forward(x: jax.Array, scale: jax.Array, bias: jax.Array) -> Any:
    axes = tuple(range(x.ndim - 1))
    wide = x.astype(scale.dtype)
    mean = jnp.mean(wide, axes)
    centred = wide - _last(mean, x)
    var = jnp.mean(jnp.square(centred), axes)
    inverse = lax.rsqrt(var + BATCH_NORM_EPSILON)
    y = centred * _last(inverse * scale, x) + _last(bias, x)
    return (y.astype(x.dtype), mean, var), (x, mean, inverse, scale)


def _normalize_backward(residuals: Any, cotangents: Any) -> Any:
    """The closed form has two sums over the batch; autodiff's has five."""
    x, mean, inverse, scale = residuals
    dy = cotangents[0].astype(scale.dtype)
    axes = tuple(range(x.ndim - 1))
    normalized = (x.astype(scale.dtype) - _last(mean, x)) * _last(inverse, x)
    d_bias = jnp.sum(dy, axes)
    d_scale = jnp.sum(dy * normalized, axes)
    count = x.size // x.shape[-1]
    centred = dy - _last(d_bias / count, x) - normalized * _last(d_scale / count, x)
    return (centred * _last(inverse * scale, x)).astype(x.dtype), d_scale, d_bias


_normalize.defvjp(_normalize_forward, _normalize_backward)


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
    """``torch.nn.Dropout``: zeroes with probability ``rate`` and scales the rest up.

    In training it needs a key: ``apply(..., train=True, rngs={"dropout": key})``.

    Attributes:
      rate: at least 0 and below 1.
    """

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        return nn.Dropout(self.rate)(x, deterministic=not train)


class MaxPool(nn.Module):
    """``torch.nn.MaxPool2d``: the padding is minus infinity, and explicit.

    Attributes:
      window: height and width of the window, in pixels.
      stride: pixels between two windows.
      padding: on each side, in pixels.
    """

    window: int
    stride: int
    padding: int = 0

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        del train
        wide = x.astype(param_dtype(x.dtype))  # XLA's CPU backend is slow at bfloat16 here
        if self.padding:
            sides = (self.padding, self.padding)
            wide = jnp.pad(wide, ((0, 0), sides, sides, (0, 0)), constant_values=-jnp.inf)
        for axis in (1, 2):
            wide = self._maximum(wide, axis)
        return wide.astype(x.dtype)

    def _maximum(self, x: jax.Array, axis: int) -> jax.Array:
        """Maxima of shifted views: their gradient is much cheaper than reduce_window's."""
        end = (x.shape[axis] - self.window) // self.stride * self.stride + 1
        views = [lax.slice_in_dim(x, i, i + end, self.stride, axis) for i in range(self.window)]
        return reduce(jnp.maximum, views)
