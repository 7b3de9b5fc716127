"""Normalization with torch's semantics, where channels are the last axis."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike


class BatchNorm(nn.Module):
    """``torch.nn.BatchNorm1d`` and ``2d``: unlike Flax's, it keeps the unbiased variance.

    ``momentum`` is torch's, the weight of the new value; None averages over all batches.
    """

    eps: float = 1e-5
    momentum: float | None = 0.1
    affine: bool = True
    track_running_stats: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        channels, dtype = (x.shape[-1],), jnp.promote_types(x.dtype, jnp.float32)
        scale, bias = _scale_and_bias(self, channels, dtype, self.affine, self.affine)
        if self.track_running_stats:
            running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels, dtype)
            running_var = self.variable("batch_stats", "var", jnp.ones, channels, dtype)
            batches = self.variable("batch_stats", "num_batches_tracked", jnp.zeros, (), jnp.int32)
        if self.track_running_stats and not train:
            factor = scale * lax.rsqrt(running_var.value + self.eps)
            mean, factor, bias = (per_channel(v, x) for v in (running_mean.value, factor, bias))
            return ((x.astype(dtype) - mean) * factor + bias).astype(x.dtype)
        count = x.size // x.shape[-1]
        if count < 2 and (train or not self.is_initializing()):  # as torch does
            raise ValueError(f"BatchNorm cannot train on one value per channel, shape {x.shape}")
        y, mean, var = _normalize(x, scale, bias, self.eps)
        if self.track_running_stats and not self.is_initializing():
            weight: Any = self.momentum
            if weight is None:
                weight = 1 / (batches.value + 1).astype(dtype)
            for running, new in (running_mean, mean), (running_var, var * (count / (count - 1))):
                running.value = (1 - weight) * running.value + weight * new
            batches.value += 1
        return y


class GroupNorm(nn.Module):
    """``torch.nn.GroupNorm``."""

    num_groups: int
    eps: float = 1e-5
    affine: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        channels, dtype = x.shape[-1], jnp.promote_types(x.dtype, jnp.float32)
        if channels % self.num_groups:
            raise ValueError(f"GroupNorm cannot split {channels} channels by {self.num_groups}")
        grouped = x.reshape(*x.shape[:-1], self.num_groups, channels // self.num_groups)
        y = _standardize(grouped.astype(dtype), (*range(1, x.ndim - 1), x.ndim), self.eps)
        scale, bias = _scale_and_bias(self, (channels,), dtype, self.affine, self.affine)
        return (y.reshape(x.shape) * per_channel(scale, x) + per_channel(bias, x)).astype(x.dtype)


class LayerNorm(nn.Module):
    """``torch.nn.LayerNorm``, over the last axes of ``x``, or the last if it is a number.

    Scale and bias keep their axes in reverse, as kernels do; the port takes at most two.
    """

    normalized_shape: int | tuple[int, ...]
    eps: float = 1e-5
    elementwise_affine: bool = True
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        given, dtype = self.normalized_shape, jnp.promote_types(x.dtype, jnp.float32)
        shape = (given,) if isinstance(given, int) else tuple(given)
        if x.shape[-len(shape) :] != shape:
            raise ValueError(f"LayerNorm of {shape} does not fit the shape {x.shape}")
        y = _standardize(x.astype(dtype), tuple(range(-len(shape), 0)), self.eps)
        affine, use_bias = self.elementwise_affine, self.elementwise_affine and self.use_bias
        scale, bias = _scale_and_bias(self, shape[::-1], dtype, affine, use_bias)
        return (y * per_channel(scale.T, x) + per_channel(bias.T, x)).astype(x.dtype)


def per_channel(values: jax.Array, x: jax.Array) -> jax.Array:
    """Reshape values of the last axes to the rank of ``x``; rank promotion may be an error."""
    return values.reshape((1,) * (x.ndim - values.ndim) + values.shape)


def _scale_and_bias(
    layer: nn.Module, shape: tuple[int, ...], dtype: DTypeLike, scale: bool, bias: bool
) -> tuple[jax.Array, jax.Array]:
    """Create the parameters that a layer has; the others are constants."""
    ones, zeros = nn.initializers.ones, nn.initializers.zeros
    return (
        layer.param("scale", ones, shape, dtype) if scale else jnp.ones(shape, dtype),
        layer.param("bias", zeros, shape, dtype) if bias else jnp.zeros(shape, dtype),
    )


def _standardize(x: jax.Array, axes: tuple[int, ...], eps: float) -> jax.Array:
    centered = x - jnp.mean(x, axes, keepdims=True)
    return centered * lax.rsqrt(jnp.mean(jnp.square(centered), axes, keepdims=True) + eps)


def _normalize_forward(x: jax.Array, scale: jax.Array, bias: jax.Array, eps: float) -> Any:
    axes = tuple(range(x.ndim - 1))
    wide = x.astype(scale.dtype)
    mean = jnp.mean(wide, axes)
    centered = wide - per_channel(mean, x)
    var = jnp.mean(jnp.square(centered), axes)
    inverse = lax.rsqrt(var + eps)
    y = centered * per_channel(inverse * scale, x) + per_channel(bias, x)
    return (y.astype(x.dtype), mean, var), (x, mean, inverse, scale)


def _normalize_backward(eps: float, residuals: Any, cotangents: Any) -> Any:
    """Closed form with two sums over the batch; automatic differentiation has five."""
    x, mean, inverse, scale = residuals
    dy = cotangents[0].astype(scale.dtype)  # none flow through the mean and the variance
    axes = tuple(range(x.ndim - 1))
    normalized = (x.astype(scale.dtype) - per_channel(mean, x)) * per_channel(inverse, x)
    d_bias = jnp.sum(dy, axes)
    d_scale = jnp.sum(dy * normalized, axes)
    count = x.size // x.shape[-1]
    centered = dy - per_channel(d_bias / count, x) - normalized * per_channel(d_scale / count, x)
    return (centered * per_channel(inverse * scale, x)).astype(x.dtype), d_scale, d_bias


# Of x, scale, bias and epsilon: the normalized x, the mean and the biased variance.
_normalize = partial(jax.custom_vjp, nondiff_argnums=(3,))(
    lambda *arguments: _normalize_forward(*arguments)[0]
)
_normalize.defvjp(_normalize_forward, _normalize_backward)
