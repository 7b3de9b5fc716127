"""A convolution of a tiny image as one matrix, from all its pixels to all its outputs."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcifar.core.conv.matmul import matmul, matmul_transposed
from jaxcifar.core.conv.window import Window

# The position in the kernel of the weight from each pixel (row) to each output (column).
Taps = tuple[tuple[tuple[int, int] | None, ...], ...]


def dense(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    """Compute ``conv2d``, fast where the kernel has no fewer weights than the image has pixels."""

    def tap(pixel: tuple[int, ...], output: tuple[int, ...]) -> tuple[int, int] | None:
        places = zip(pixel, output, *window[:3], strict=True)
        (i, k), (j, m) = (divmod(p + before - s * o, d) for p, o, s, (before, _), d in places)
        inside = 0 <= i < kernel.shape[0] and 0 <= j < kernel.shape[1]
        return (i, j) if k == m == 0 and inside else None

    size = window.outputs(x, kernel)
    taps = tuple(tuple(tap(p, o) for o in np.ndindex(*size)) for p in np.ndindex(x.shape[1:3]))
    n = x.shape[0]  # symbolic when a program is exported
    return _dense(x.reshape(n, -1), kernel, taps).reshape(n, *size, -1)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _dense(x: jax.Array, kernel: jax.Array, taps: Taps) -> jax.Array:
    return matmul(x, _unroll(kernel, taps))


def _backward(taps: Taps, residuals: Any, dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals
    # Transposing the kernel before it is unrolled is cheaper than the matrix after.
    d_x = matmul(dy, _unroll(kernel.swapaxes(2, 3), tuple(zip(*taps, strict=True))))
    return d_x, _roll(matmul_transposed(x, dy), taps, kernel)


_dense.defvjp(lambda x, kernel, taps: (_dense(x, kernel, taps), (x, kernel)), _backward)


def _unroll(kernel: jax.Array, taps: Taps) -> jax.Array:
    """Build the matrix of blocks ``kernel[tap]``, zero where the tap is None."""
    zeros = jnp.zeros_like(kernel[0, 0])
    rows = [[zeros if tap is None else kernel[tap] for tap in row] for row in taps]
    return jnp.concatenate([jnp.concatenate(row, axis=1) for row in rows])


def _roll(d_matrix: jax.Array, taps: Taps, kernel: jax.Array) -> jax.Array:
    """Return the gradient of ``kernel``: for each tap the sum of its blocks."""
    blocks = d_matrix.reshape(len(taps), kernel.shape[2], len(taps[0]), kernel.shape[3])
    wide = jnp.promote_types(kernel.dtype, jnp.float32)
    sums = {tap: jnp.zeros(kernel.shape[2:], wide) for tap in np.ndindex(*kernel.shape[:2])}
    for r, row in enumerate(taps):
        for c, tap in enumerate(row):
            if tap is not None:
                sums[tap] += blocks[r, :, c].astype(wide)
    return jnp.stack(list(sums.values())).reshape(kernel.shape).astype(kernel.dtype)
