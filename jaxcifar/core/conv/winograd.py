"""Winograd's convolution F(4x4, 3x3), with a quarter of the multiplications of the plain 3x3.

A tile d of 6x6 pixels and a kernel g give 4x4 outputs ``A [(G g G^T) * (B d B^T)] A^T`` (Lavin and
Gray, "Fast algorithms for convolutional neural networks", 2015). Over all channels the elementwise
product becomes 36 matrix products. Random float32 values err by at most 1e-4 of the largest.
"""

from collections.abc import Sequence
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxcifar.core.conv.matmul import product, transposed_product
from jaxcifar.core.conv.window import Pair, Window

LARGE = 2**21  # values of images that are transformed again for the gradient of the kernel
TILE = 4  # outputs in each direction; a tile reads two more pixels
# The last point is infinity. They err less than half as much as the usual 0, 1, -1, 2 and -2.
_POINTS = np.array([0, 2 / 3, -2 / 3, -3 / 2, 3 / 2])
# Polynomials at the points: of a product, the coefficients follow by the inverse. Transposed, such
# a multiplication is a correlation (Toom, 1963; Winograd, 1980).
_A, _INVERSE, _G = (np.vstack([np.vander(_POINTS, n, True), np.eye(n)[-1]]) for n in (4, 6, 3))
_A, _B = _A.T, np.linalg.inv(_INVERSE).T
# The reciprocal of each point is as far from the other end. So the transform of a kernel that is
# turned by 180 degrees is the transform of the kernel, in reverse and scaled by these squares.
_SQUARES = np.array([[1], *_POINTS[1:, None] ** 2, [1]])
_TURNED_A, _TURNED_B = _A[:, ::-1], (_SQUARES * _B)[::-1]


def winograd(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    """Compute ``conv2d`` with a 3x3 kernel and stride 1, where the output is of whole tiles."""
    n, (rows, columns) = x.shape[0], (outputs // TILE for outputs in window.outputs(x))

    @jax.custom_gradient
    def convolve(x: jax.Array, kernel: jax.Array) -> Any:
        def gradients(dy: jax.Array) -> tuple[jax.Array, jax.Array]:
            tiles = dy.reshape(n, rows, TILE, columns, TILE, -1).transpose(2, 4, 0, 1, 3, 5)
            d_products = _square(_A.T, tiles.reshape(16, -1, dy.shape[-1]))
            # Transformed images take 2.25 times the memory. Large ones are transformed again, which
            # XLA would merge with the first time if they did not seem to depend on dy.
            again = x + 0 * dy[0, 0, 0, 0] if x.size > LARGE and x.dtype == jnp.float32 else x
            images = _transform(_B, again, window.paddings)
            d_kernel = _square(_G.T, transposed_product(images, d_products))
            # The gradient of the images is the convolution of dy with the turned kernel.
            counts = [-(-side // TILE) for side in x.shape[1:3]]
            axes = zip(window.paddings, counts, dy.shape[1:3], strict=True)
            paddings = [(2 - p, count * TILE - side + p) for (p, _), count, side in axes]
            tiles = _transform(_TURNED_B, dy, paddings)
            tiles = _square(_TURNED_A, product(tiles, weights, ((2,), (2,)), batch=(0,)))
            d_x = _join(tiles, n, *counts)[:, : x.shape[1], : x.shape[2]]
            return d_x.astype(x.dtype), d_kernel.reshape(kernel.shape).astype(kernel.dtype)

        weights = _square(_G, kernel.reshape(9, *kernel.shape[2:]))
        images = _transform(_B, x, window.paddings)
        tiles = _square(_A, product(images, weights, ((2,), (1,)), batch=(0,)))
        return _join(tiles, n, rows, columns).astype(x.dtype), gradients

    return convolve(x, kernel)


def _transform(matrix: np.ndarray, x: jax.Array, paddings: Sequence[Pair]) -> jax.Array:
    """Map images ``(N, H, W, C)`` to ``(36, tiles, C)``; overlapping tiles are never stored."""
    x, size = x.astype(jnp.promote_types(x.dtype, jnp.float32)), matrix.shape[1]
    for direction in (0, 1):  # the stacked axes go in front, rows before columns
        axis = 2 * direction + 1
        widths = [(*paddings[direction], 0) if i == axis else (0, 0, 0) for i in range(x.ndim)]
        x = lax.pad(x, jnp.zeros((), x.dtype), widths)  # a negative width cuts off
        end = x.shape[axis] - size + 1
        views = [lax.slice_in_dim(x, i, i + end, TILE, axis) for i in range(size)]
        weights = matrix.T.reshape(size, *(6 if i == direction else 1 for i in range(x.ndim + 1)))
        weights = weights.astype(x.dtype)
        terms = (w * jnp.expand_dims(v, direction) for w, v in zip(weights, views, strict=True))
        x = reduce(jnp.add, terms)
    return x.reshape(36, -1, x.shape[-1])


def _square(matrix: np.ndarray, x: jax.Array) -> jax.Array:
    """Multiply the Kronecker square of the matrix with the first axis of ``x``."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    square = jnp.asarray(np.kron(matrix, matrix), x.dtype)
    return (square @ x.reshape(len(x), -1)).reshape(-1, *x.shape[1:])


def _join(tiles: jax.Array, n: int, rows: int, columns: int) -> jax.Array:
    """Map ``(16, tiles, C)`` to images ``(N, H, W, C)`` of so many rows and columns of tiles."""
    tiles = tiles.reshape(TILE, TILE, n, rows, columns, -1).transpose(2, 3, 0, 4, 1, 5)
    return tiles.reshape(n, rows * TILE, columns * TILE, -1)
