"""Winograd's convolution F(4x4, 3x3), with a quarter of the multiplications of the plain 3x3.

A tile d of 6x6 pixels and a kernel g give 4x4 outputs ``A [(G g G^T) * (B d B^T)] A^T`` (Lavin and
Gray, "Fast algorithms for convolutional neural networks", 2015). Over all channels the elementwise
product becomes 36 matrix products. Random float32 values err by at most 1e-4 of the largest.
"""

from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxcifar.core.conv.window import Window

TILE = 4  # outputs in each direction; a tile reads two more pixels
_B = np.array(
    [
        *([4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0]),
        *([0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1]),
    ]
)
_G = np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24
_A = np.array([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]])


def winograd(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    """Compute ``conv2d`` with a 3x3 kernel and stride 1, where the output is of whole tiles."""
    n, (rows, columns) = x.shape[0], (outputs // TILE for outputs in window.outputs(x))

    @jax.custom_gradient
    def convolve(x: jax.Array, kernel: jax.Array) -> Any:
        def gradients(dy: jax.Array) -> tuple[jax.Array, jax.Array]:
            tiles = dy.reshape(n, rows, TILE, columns, TILE, -1).transpose(2, 4, 0, 1, 3, 5)
            d_products = _apply(_A.T, tiles.reshape(TILE * TILE, -1, dy.shape[-1]))
            # Transformed again: as residuals the transformed images take 2.25 times the memory.
            d_kernel = jnp.einsum("gtc,gto->gco", _transform_images(x, window), d_products)
            d_kernel = _apply(_G.T, d_kernel).reshape(kernel.shape)
            transformed = _apply(_G, kernel.reshape(9, *kernel.shape[2:]))
            d_tiles = jnp.einsum("gto,gco->gtc", d_products, transformed)
            d_tiles = _apply(_B.T, d_tiles).reshape(6, 6, n, rows, columns, -1)
            d_x = _overlap(_overlap(d_tiles.transpose(2, 3, 0, 4, 1, 5), axis=1), axis=2)
            (top, _), (left, _) = window.paddings
            d_x = d_x[:, top : top + x.shape[1], left : left + x.shape[2]]
            return d_x.astype(x.dtype), d_kernel.astype(kernel.dtype)

        products = _transform_images(x, window) @ _apply(_G, kernel.reshape(9, *kernel.shape[2:]))
        tiles = _apply(_A, products).reshape(TILE, TILE, n, rows, columns, -1)
        y = tiles.transpose(2, 3, 0, 4, 1, 5).reshape(n, rows * TILE, columns * TILE, -1)
        return y.astype(x.dtype), gradients

    return convolve(x, kernel)


def _transform_images(x: jax.Array, window: Window) -> jax.Array:
    """Map ``(N, H, W, C)`` to ``(36, tiles, C)``; overlapping tiles are never stored."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    for direction in (0, 1):  # the stacked axes go in front, rows before columns
        axis = 2 * direction + 1
        x = jnp.pad(x, [window.paddings[direction] if i == axis else (0, 0) for i in range(x.ndim)])
        end = x.shape[axis] - 5
        views = [lax.slice_in_dim(x, i, i + end, TILE, axis) for i in range(6)]
        weights = _B.T.reshape(6, *(6 if i == direction else 1 for i in range(x.ndim + 1)))
        terms = (w * jnp.expand_dims(v, direction) for w, v in zip(weights, views, strict=True))
        x = reduce(jnp.add, terms)
    return x.reshape(36, -1, x.shape[-1])


def _apply(matrix: np.ndarray, x: jax.Array) -> jax.Array:
    """Multiply the Kronecker square of the matrix with the first axis of ``x``."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    square = jnp.asarray(np.kron(matrix, matrix), x.dtype)
    return (square @ x.reshape(len(x), -1)).reshape(-1, *x.shape[1:])


def _overlap(tiles: jax.Array, *, axis: int) -> jax.Array:
    """Add overlapping tiles: ``T`` tiles of 6 at two axes become ``4 T + 2`` pixels at one."""

    def merge(tiles: jax.Array, before: int) -> jax.Array:
        widths = [(0, 0)] * tiles.ndim
        widths[axis : axis + 2] = (before, 1 - before), (0, TILE - tiles.shape[axis + 1])
        tiles = jnp.pad(tiles, widths)
        return tiles.reshape(*tiles.shape[:axis], -1, *tiles.shape[axis + 2 :])

    first, shared = jnp.split(tiles, [TILE], axis + 1)
    total = merge(first, 0) + merge(shared, 1)
    return lax.slice_in_dim(total, 0, total.shape[axis] - 2, axis=axis)
