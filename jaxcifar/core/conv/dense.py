"""A convolution of a tiny image as one matrix, from all its pixels to all its results.

For images with no more pixels than the kernel has taps, as 2x2 under 3x3: there it needs no
more multiplications than the kernel that slides, and they are the same ones.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxcifar.core.conv.matmul import matmul, over_rows

# For each pixel of the image and each of the result, where in the kernel their weight is.
Taps = tuple[tuple[tuple[int, int] | None, ...], ...]


def dense(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    """A convolution; arguments and result as of ``conv2d``."""
    n, height, width, _ = x.shape
    kernel_height, kernel_width, _, features = kernel.shape
    out_height = (height + 2 * padding - kernel_height) // stride + 1
    out_width = (width + 2 * padding - kernel_width) // stride + 1

    def tap(i: int, j: int) -> tuple[int, int] | None:
        return (i, j) if 0 <= i < kernel_height and 0 <= j < kernel_width else None

    taps = tuple(
        tuple(
            tap(i + padding - stride * p, j + padding - stride * q)
            for p in range(out_height)
            for q in range(out_width)
        )
        for i in range(height)
        for j in range(width)
    )
    return _dense(x.reshape(n, -1), kernel, taps).reshape(n, out_height, out_width, features)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _dense(x: jax.Array, kernel: jax.Array, taps: Taps) -> jax.Array:
    return matmul(x, _unroll(kernel, taps))


def _forward(
    x: jax.Array, kernel: jax.Array, taps: Taps
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _dense(x, kernel, taps), (x, kernel)


def _backward(
    taps: Taps, residuals: tuple[jax.Array, jax.Array], dy: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals
    # Transposing the kernel before it is unrolled is cheaper than the matrix after.
    d_x = matmul(dy, _unroll(kernel.swapaxes(2, 3), tuple(zip(*taps, strict=True))))
    return d_x, _roll(over_rows(x, dy), taps, kernel)


_dense.defvjp(_forward, _backward)


def _unroll(kernel: jax.Array, taps: Taps) -> jax.Array:
    """The matrix of blocks ``kernel[tap]``; zeros where there is none."""
    zeros = jnp.zeros_like(kernel[0, 0])
    rows = [[zeros if tap is None else kernel[tap] for tap in row] for row in taps]
    return jnp.concatenate([jnp.concatenate(row, axis=1) for row in rows])


def _roll(d_matrix: jax.Array, taps: Taps, kernel: jax.Array) -> jax.Array:
    """The kernel's gradient, of its shape and dtype: for each tap the sum of its blocks."""
    blocks = d_matrix.reshape(len(taps), kernel.shape[2], len(taps[0]), kernel.shape[3])
    wide = jnp.promote_types(kernel.dtype, jnp.float32)
    totals = {tap: jnp.zeros(kernel.shape[2:], wide) for tap in np.ndindex(*kernel.shape[:2])}
    for r, row in enumerate(taps):
        for c, tap in enumerate(row):
            if tap is not None:
                totals[tap] += blocks[r, :, c].astype(wide)
    return jnp.stack(list(totals.values())).reshape(kernel.shape).astype(kernel.dtype)
