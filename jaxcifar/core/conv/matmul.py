"""Convolutions as one matrix product: with 1x1 kernels, and of tiny images."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxcifar.core.conv.window import Window


@jax.custom_gradient
def matmul(a: jax.Array, b: jax.Array) -> Any:
    """Multiply ``(M, K)`` by ``(K, N)`` of one dtype; its gradients transpose nothing."""

    def gradients(dy: jax.Array) -> tuple[jax.Array, jax.Array]:
        d_a, d_b = product(dy, b, ((1,), (1,))), transposed_product(a, dy)
        return d_a.astype(a.dtype), d_b.astype(b.dtype)

    return product(a, b, ((1,), (0,))).astype(a.dtype), gradients


def transposed_product(a: jax.Array, b: jax.Array) -> jax.Array:
    """Return ``a.mT @ b`` of ``(..., M, K)`` and ``(..., M, N)``, as ``product`` does."""
    batch = tuple(range(a.ndim - 2))
    if a.dtype == jnp.bfloat16 and a.shape[-2] % 2 == 0:
        # For a sum over two axes XLA copies an operand first, which pays in bfloat16 only.
        a, b = (x.reshape(*x.shape[:-2], 2, -1, x.shape[-1]) for x in (a, b))
    rows = tuple(range(len(batch), a.ndim - 1))
    return product(a, b, (rows, rows), batch)


def product(a: jax.Array, b: jax.Array, axes: Any, batch: tuple[int, ...] = ()) -> jax.Array:
    """Sum over ``axes`` in float32 or wider; einsum would transpose both first."""
    wide = jnp.promote_types(a.dtype, jnp.float32)
    return lax.dot_general(a, b, (axes, (batch, batch)), preferred_element_type=wide)


def patches(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    """Compute ``conv2d`` by one product of all that the kernel meets, if that is not much."""
    met = jnp.concatenate([*window.views(x)], axis=3)
    y = matmul(met.reshape(-1, met.shape[3]), kernel.reshape(-1, kernel.shape[3]))
    return y.reshape(*met.shape[:3], -1)


def dense(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    """Compute ``conv2d`` by the matrix from all pixels to all outputs, for the tiniest images."""

    def tap(pixel: tuple[int, ...], output: tuple[int, ...]) -> tuple[int, int] | None:
        axes = zip(pixel, output, *window[1:4], strict=True)
        (i, k), (j, m) = (divmod(p + before - s * o, d) for p, o, s, (before, _), d in axes)
        inside = 0 <= i < kernel.shape[0] and 0 <= j < kernel.shape[1]
        return (i, j) if k == m == 0 and inside else None

    @jax.custom_gradient
    def product(x: jax.Array, kernel: jax.Array) -> Any:
        def gradients(dy: jax.Array) -> tuple[jax.Array, jax.Array]:
            # Transposing the kernel before it is unrolled is cheaper than the matrix after.
            d_x = matmul(dy, _unroll(kernel.swapaxes(2, 3), list(zip(*taps, strict=True))))
            fold = jax.linear_transpose(partial(_unroll, taps=taps), kernel)
            return d_x, *fold(transposed_product(x, dy).astype(kernel.dtype))

        return matmul(x, _unroll(kernel, taps)), gradients

    size = window.outputs(x)
    taps = [[tap(p, o) for o in np.ndindex(*size)] for p in np.ndindex(x.shape[1:3])]
    n = x.shape[0]  # symbolic when a program is exported
    return product(x.reshape(n, -1), kernel).reshape(n, *size, -1)


def _unroll(kernel: jax.Array, taps: list[Any]) -> jax.Array:
    """Build the matrix of blocks ``kernel[tap]`` by rows of taps, zero where one is None."""
    blocks = jnp.unstack(kernel.reshape(-1, *kernel.shape[2:]))
    width, zeros = kernel.shape[1], jnp.zeros_like(blocks[0])
    rows = [[zeros if t is None else blocks[t[0] * width + t[1]] for t in row] for row in taps]
    return jnp.concatenate([jnp.concatenate(row, axis=1) for row in rows])
