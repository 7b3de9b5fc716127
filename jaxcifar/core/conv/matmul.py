"""Convolutions as one matrix product: with 1x1 kernels, and of tiny images."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxcifar.core.conv.window import Window, slices


@jax.custom_gradient
def matmul(a: jax.Array, b: jax.Array) -> Any:
    """Multiply ``(M, K)`` by ``(K, N)`` of one dtype; its gradients transpose nothing."""

    def gradients(dy: jax.Array) -> tuple[jax.Array, jax.Array]:
        d_a, d_b = product(dy, b, ((1,), (1,))), transposed_product(a, dy)
        return d_a.astype(a.dtype), d_b.astype(b.dtype)

    return product(a, b, ((1,), (0,))).astype(a.dtype), gradients


def transposed_product(a: jax.Array, b: jax.Array) -> jax.Array:
    """Return ``a.mT @ b`` of ``(..., M, K)`` and ``(..., M, N)``, as ``product`` does."""
    batch, count = tuple(range(a.ndim - 2)), a.shape[-2]  # symbolic in an export
    long = isinstance(count, int) and count >= 4096 and count % 8 == 0
    if long and a.shape[-1] <= 64:  # where XLA is a third faster in parts
        parts = (x.reshape(*x.shape[:-2], 8, -1, x.shape[-1]) for x in (a, b))
        return transposed_product(*parts).sum(-3)
    if a.dtype == jnp.bfloat16 and count % 2 == 0:
        # For a sum over two axes XLA copies an operand first, which pays in bfloat16 only.
        a, b = (x.reshape(*x.shape[:-2], 2, -1, x.shape[-1]) for x in (a, b))
    rows = tuple(range(len(batch), a.ndim - 1))
    return product(a, b, (rows, rows), batch)


def product(a: jax.Array, b: jax.Array, axes: Any, batch: tuple[int, ...] = ()) -> jax.Array:
    """Sum over ``axes`` in float32 or wider; einsum would transpose both first."""
    wide = jnp.promote_types(a.dtype, jnp.float32)
    return lax.dot_general(a, b, (axes, (batch, batch)), preferred_element_type=wide)


def finish(y: jax.Array, *bias: jax.Array, relu: bool = False) -> jax.Array:
    """Add a bias in its own dtype, because its gradient is a sum over the batch; apply ReLU."""
    for each in bias:
        y = (y.astype(each.dtype) + per_channel(each, y)).astype(y.dtype)
    return jax.nn.relu(y) if relu else y


def per_channel(values: jax.Array, x: jax.Array) -> jax.Array:
    """Reshape ``(C,)`` to the rank of ``x``, because rank promotion may be an error."""
    return values.reshape((1,) * (x.ndim - 1) + values.shape)


def patches(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    """Compute ``conv2d`` by one product of all that the kernel meets, if that is not much."""
    met = jnp.concatenate([*window.views(x)], axis=3)
    y = matmul(met.reshape(-1, met.shape[3]), kernel.reshape(-1, kernel.shape[3]))
    return y.reshape(*met.shape[:3], -1)


def dense(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    """Compute ``conv2d`` by the matrix from all pixels to all outputs, for the tiniest images."""
    n, *sides, _ = x.shape  # n is symbolic in an export
    size = window.outputs(x)
    pixels, outputs = (sides, (1, 1)), (size, window.strides)

    def amid_zeros(kernel: jax.Array) -> jax.Array:
        """Let pixel p find its weight for output o at ``p + stride * (last - o)``."""
        axes = zip(*window[:4], sides, size, strict=True)
        widths = [
            (stride * (count - 1) - before, before + side - dilation * (taps - 1) - 1, dilation - 1)
            for taps, stride, (before, _), dilation, side, count in axes
        ]
        return lax.pad(kernel, jnp.zeros((), kernel.dtype), [*widths, (0, 0, 0), (0, 0, 0)])

    def matrix(kernel: jax.Array) -> jax.Array:
        return _columns(amid_zeros(kernel), *outputs, *pixels)

    @jax.custom_gradient
    def convolve(x: jax.Array, kernel: jax.Array) -> Any:
        def gradients(dy: jax.Array) -> tuple[jax.Array, jax.Array]:
            # Transposing the kernel before it is spread is cheaper than the matrix after.
            turned = lax.rev(amid_zeros(kernel.swapaxes(2, 3)), (0, 1))
            d_x = matmul(dy, _columns(turned, *pixels, *outputs))
            fold = jax.linear_transpose(matrix, kernel)
            return d_x, *fold(transposed_product(x, dy).astype(kernel.dtype))

        return matmul(x, matrix(kernel)), gradients

    return convolve(x.reshape(n, -1), kernel).reshape(n, *size, -1)


def _columns(wide: jax.Array, *bounds: Any) -> jax.Array:
    """Concatenate windows of ``(rows, columns, M, N)`` as matrices of N columns, last one first."""
    blocks = [wide[*window].reshape(-1, wide.shape[3]) for window in slices(*bounds)]
    return jnp.concatenate(blocks[::-1], axis=1)
