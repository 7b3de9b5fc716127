"""A matrix product that is fast in bfloat16 on CPU, its gradients included.

XLA's CPU backend multiplies bfloat16 twice as fast as float32, but only where the sum is kept
in float32 and neither operand is read against the grain. A product over the rows of both, as
in a kernel's gradient, needs one of them copied first; that XLA does for a sum over two
dimensions. In float32 the copy costs more than it brings.
"""

import jax
import jax.numpy as jnp
from jax import lax


@jax.custom_vjp
def matmul(a: jax.Array, b: jax.Array) -> jax.Array:
    """Multiplies ``(M, K)`` by ``(K, N)``, both of one dtype, which the ``(M, N)`` has, too."""
    return _sum_over(a, b, (1,), (0,))


def _forward(a: jax.Array, b: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return matmul(a, b), (a, b)


def _backward(operands: tuple[jax.Array, jax.Array], dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    a, b = operands
    return _sum_over(dy, b, (1,), (1,)), over_rows(a, dy)


matmul.defvjp(_forward, _backward)


def over_rows(a: jax.Array, b: jax.Array) -> jax.Array:
    """``a.T @ b`` of ``(M, K)`` and ``(M, N)``, in their dtype; without a gradient of its own."""
    if a.dtype == jnp.bfloat16 and len(a) % 2 == 0:
        a, b = (x.reshape(2, -1, x.shape[1]) for x in (a, b))
        return _sum_over(a, b, (0, 1), (0, 1))
    return _sum_over(a, b, (0,), (0,))


def _sum_over(
    a: jax.Array, b: jax.Array, of_a: tuple[int, ...], of_b: tuple[int, ...]
) -> jax.Array:
    wide = jnp.promote_types(a.dtype, jnp.float32)
    product = lax.dot_general(a, b, ((of_a, of_b), ((), ())), preferred_element_type=wide)
    return product.astype(a.dtype)
