"""Pooling and resizing with torch's semantics, on NHWC images."""

from collections.abc import Callable
from functools import reduce

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxcifar.core.conv.window import Size, pair


class MaxPool(nn.Module):
    """``torch.nn.MaxPool2d``, which pads with minus infinity."""

    window: Size
    stride: Size | None = None
    padding: Size = 0
    dilation: Size = 1
    ceil_mode: bool = False

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        axes = _axes(self.window, self.stride, self.padding, self.dilation)
        return _pool(x, jnp.maximum, -jnp.inf, axes, ceil_mode=self.ceil_mode).astype(x.dtype)


class AvgPool(nn.Module):
    """``torch.nn.AvgPool2d``."""

    window: Size
    stride: Size | None = None
    padding: Size = 0
    ceil_mode: bool = False
    count_include_pad: bool = True

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        axes = _axes(self.window, self.stride, self.padding)
        y = _pool(x, jnp.add, 0.0, axes, ceil_mode=self.ceil_mode)
        for axis, window, stride, padding, _ in axes:
            margin = padding if self.count_include_pad else 0
            starts = np.arange(y.shape[axis]) * stride - padding
            ends = np.minimum(starts + window, x.shape[axis] + margin)
            counts = ends - np.maximum(starts, -margin)
            y /= counts.reshape([-1 if i == axis else 1 for i in range(4)]).astype(y.dtype)
        return y.astype(x.dtype)


class AdaptiveAvgPool(nn.Module):
    """``torch.nn.AdaptiveAvgPool2d``."""

    output_size: Size = 1

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        if pair(self.output_size) == (1, 1):
            return jnp.mean(x, (1, 2), keepdims=True)

        def weights(side: int, outputs: int) -> np.ndarray:
            pixels, output = np.arange(side), np.arange(outputs)[:, None]
            ends = -(-(output + 1) * side // outputs)
            inside = (output * side // outputs <= pixels) & (pixels < ends)
            return inside / inside.sum(1, keepdims=True)

        return _resize(x, *map(weights, x.shape[1:3], pair(self.output_size)))


class Upsample(nn.Module):
    """``torch.nn.Upsample`` by whole factors; ``mode`` is ``"nearest"`` or ``"bilinear"``."""

    scale_factor: Size
    mode: str = "nearest"
    align_corners: bool = False

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        if self.mode not in ("nearest", "bilinear"):
            raise ValueError(f'unknown mode {self.mode!r}: use "nearest" or "bilinear"')
        rows, columns = pair(self.scale_factor)
        if self.mode == "nearest":
            return x.repeat(rows, axis=1).repeat(columns, axis=2)

        def weights(side: int, factor: int) -> np.ndarray:
            places = (np.arange(side * factor) + 0.5) / factor - 0.5
            if self.align_corners:
                places = np.linspace(0, side - 1, side * factor)
            distances = np.abs(places.clip(0, side - 1)[:, None] - np.arange(side))
            return np.maximum(0, 1 - distances)

        return _resize(x, weights(x.shape[1], rows), weights(x.shape[2], columns))


Axis = tuple[int, int, int, int, int]  # its number, window, stride, padding and dilation


def _axes(window: Size, stride: Size | None, padding: Size, dilation: Size = 1) -> list[Axis]:
    sizes = (window, window if stride is None else stride, padding, dilation)
    return list(zip((1, 2), *map(pair, sizes), strict=True))


def _pool(
    x: jax.Array,
    combine: Callable[[jax.Array, jax.Array], jax.Array],
    fill: float,
    axes: list[Axis],
    *,
    ceil_mode: bool,
) -> jax.Array:
    """Combine shifted views, whose gradient is much cheaper than that of ``reduce_window``."""
    y = x.astype(jnp.promote_types(x.dtype, jnp.float32))  # on CPU, bfloat16 is slow here
    paddings, ends = [(0, 0)] * 4, {}
    for axis, window, stride, padding, dilation in axes:
        side, reach = x.shape[axis], dilation * (window - 1)
        steps, rest = divmod(side + 2 * padding - reach - 1, stride)
        if ceil_mode and rest and (steps + 1) * stride < side + padding:
            steps += 1  # a last window that starts on the image, and ends beyond the padding
        ends[axis] = steps * stride + 1
        paddings[axis] = padding, max(padding, ends[axis] + reach - side - padding)
    if any(map(any, paddings)):
        y = jnp.pad(y, paddings, constant_values=fill)
    for axis, window, stride, _, dilation in axes:
        starts = [dilation * i for i in range(window)]
        views = [lax.slice_in_dim(y, i, i + ends[axis], stride, axis) for i in starts]
        y = reduce(combine, views)
    return y


def _resize(x: jax.Array, rows: np.ndarray, columns: np.ndarray) -> jax.Array:
    """Compute each row and column as a weighted sum of those of ``x``."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    weights = (jnp.asarray(matrix, wide) for matrix in (rows, columns))
    y = jnp.einsum("nhwc,ih,jw->nijc", x.astype(wide), *weights, precision="highest")
    return y.astype(x.dtype)
