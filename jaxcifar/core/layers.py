"""The layers of the built-in networks, with torch's semantics; ``jaxcifar.layers`` has more."""

from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.nn.initializers import Initializer, ones, variance_scaling, zeros

from jaxcifar.core.conv import conv2d
from jaxcifar.core.conv.matmul import finish, per_channel
from jaxcifar.core.conv.window import Size, Window

__all__ = ["BatchNorm", "Conv", "Dropout", "Function", "Linear", "MaxPool", "ReLU", "Sequential"]
Layer = Callable[..., Any]  # a constructor of a layer with everything bound but its name
# torch's default for Conv2d and Linear weights and biases: U(-1/sqrt(fan_in), 1/sqrt(fan_in)).
torch_uniform = variance_scaling(1 / 3, "fan_in", "uniform")


class Sequential(nn.Module):
    """``torch.nn.Sequential`` of constructors of layers, each named by its index."""

    layers: Sequence[Layer]

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        calls = list[Layer]()
        apart = self.is_mutable_collection("intermediates")  # the output of each layer is asked for
        for index, layer in enumerate(self.layers):
            if layer is ReLU and not apart and any(type(call) is Conv for call in calls[-1:]):
                calls[-1] = partial(calls[-1], relu=True)
            else:
                calls.append(layer(name=str(index)))
        return reduce(lambda x, call: call(x, train=train), calls, x)


class Function(nn.Module):
    """A function without parameters as a layer, such as ``partial(Function, nn.softplus)``."""

    function: Callable[[jax.Array], jax.Array]

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        return self.function(x)


ReLU = partial(Function, nn.relu)


class Dropout(nn.Module):
    """``torch.nn.Dropout``; training needs ``rngs={"dropout": key}``."""

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        return nn.Dropout(self.rate)(x, deterministic=not train)


class Conv(nn.Module):
    """``torch.nn.Conv2d``, then ReLU if ``relu``; a ``bias_init`` of None is torch's default."""

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
    def __call__(self, x: jax.Array, *, train: bool, relu: bool = False) -> jax.Array:
        window = Window.of(self.kernel_size, self.stride, self.padding, self.dilation, self.groups)
        shape = (*window.sizes, x.shape[-1] // self.groups, self.features)
        dtype = jnp.promote_types(x.dtype, jnp.float32)
        kernel = self.param("kernel", self.kernel_init, shape, dtype)
        bias = [_bias(self, kernel, self.bias_init)] if self.use_bias else []
        return conv2d(x, kernel.astype(x.dtype), window, *bias, relu=relu, train=train)


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
        return finish(y, _bias(self, kernel)) if self.use_bias else y


class BatchNorm(nn.Module):
    """``torch.nn.BatchNorm1d`` and ``2d``: unlike Flax's, it keeps the unbiased variance."""

    eps: float = 1e-5
    momentum: float | None = 0.1
    affine: bool = True
    track_running_stats: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        scale, bias = affine(self, x, self.affine, self.affine)
        channels, dtype = scale.shape, scale.dtype
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
            rate = 1 / (batches.value + 1).astype(dtype) if self.momentum is None else self.momentum
            for running, new in (running_mean, mean), (running_var, var * (count / (count - 1))):
                running.value = (1 - rate) * running.value + rate * new
            batches.value += 1
        return y


class MaxPool(nn.Module):
    """``torch.nn.MaxPool2d``, which pads with minus infinity."""

    window: Size
    stride: Size | None = None
    padding: Size = 0
    dilation: Size = 1
    ceil_mode: bool = False

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        window = Window.of(self.window, self.stride or self.window, self.padding, self.dilation)
        return pool(x, window, jnp.maximum, -jnp.inf, ceil_mode=self.ceil_mode).astype(x.dtype)


def _bias(layer: nn.Module, kernel: jax.Array, init: Initializer | None = None) -> jax.Array:
    bound = (kernel.size // kernel.shape[-1]) ** -0.5
    init = init or partial(jax.random.uniform, minval=-bound, maxval=bound)
    return layer.param("bias", init, kernel.shape[-1:], kernel.dtype)


def pool(
    x: jax.Array, window: Window, combine: Callable[..., jax.Array], fill: float, *, ceil_mode: bool
) -> jax.Array:
    """Combine shifted views, whose gradient is much cheaper than that of ``reduce_window``."""
    y = x.astype(jnp.promote_types(x.dtype, jnp.float32))  # on CPU, bfloat16 is slow here
    ends, paddings = [], []
    for side, size, stride, (padding, _), dilation in zip(x.shape[1:3], *window[:4], strict=True):
        reach = dilation * (size - 1)
        last = side + 2 * padding - reach - 1 + (stride - 1) * ceil_mode
        last = min(last, side + padding - 1)  # no window starts beyond the image
        ends.append(last // stride * stride + 1)
        paddings.append((padding, max(padding, ends[-1] + reach - side - padding)))
    if any(map(any, paddings)):
        y = jnp.pad(y, ((0, 0), *paddings, (0, 0)), constant_values=fill)
    for axis, end, size, stride, _, dilation in zip((1, 2), ends, *window[:4], strict=True):
        starts = range(0, dilation * size, dilation)
        y = reduce(combine, [lax.slice_in_dim(y, i, i + end, stride, axis) for i in starts])
    return y


def affine(layer: nn.Module, x: jax.Array, scale: bool, bias: bool) -> tuple[jax.Array, jax.Array]:
    """Create the parameters that a layer has; the others are constants."""
    shape, dtype = x.shape[-1:], jnp.promote_types(x.dtype, jnp.float32)
    return (
        layer.param("scale", ones, shape, dtype) if scale else jnp.ones(shape, dtype),
        layer.param("bias", zeros, shape, dtype) if bias else jnp.zeros(shape, dtype),
    )


@jax.custom_gradient
def _normalize(x: jax.Array, scale: jax.Array, bias: jax.Array, eps: jax.Array) -> Any:
    """Return the normalized ``x``, and without gradients its mean and biased variance."""
    axes, dtype, count = tuple(range(x.ndim - 1)), scale.dtype, x.size // x.shape[-1]

    def gradients(cotangents: Any) -> tuple[jax.Array | None, ...]:
        """Closed form with two sums over the batch; automatic differentiation has five."""
        dy = cotangents[0].astype(dtype)
        normalized = (x.astype(dtype) - per_channel(mean, x)) * per_channel(inverse, x)
        d_bias, d_scale = jnp.sum(dy, axes), jnp.sum(dy * normalized, axes)
        dy = dy - per_channel(d_bias / count, x) - normalized * per_channel(d_scale / count, x)
        return (dy * per_channel(inverse * scale, x)).astype(x.dtype), d_scale, d_bias, None

    wide = x.astype(dtype)
    mean = jnp.mean(wide, axes)
    centered = wide - per_channel(mean, x)
    var = jnp.mean(jnp.square(centered), axes)
    inverse = lax.rsqrt(var + eps)
    y = centered * per_channel(inverse * scale, x) + per_channel(bias, x)
    return (y.astype(x.dtype), mean, var), gradients
