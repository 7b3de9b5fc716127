"""A matrix product that is fast in bfloat16 on CPU, with its gradients: it transposes nothing."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


@jax.custom_vjp
def matmul(a: jax.Array, b: jax.Array) -> jax.Array:
    """Multiply ``(M, K)`` by ``(K, N)``, both of one dtype, which is also the result's."""
    return _product(a, b, ((1,), (0,)))


def matmul_transposed(a: jax.Array, b: jax.Array) -> jax.Array:
    """Return ``a.T @ b`` of ``(M, K)`` and ``(M, N)``; it has no fast gradient of its own."""
    if a.dtype == jnp.bfloat16 and len(a) % 2 == 0:
        # For a sum over two axes XLA copies an operand first, which pays in bfloat16 only.
        a, b = (x.reshape(2, -1, x.shape[1]) for x in (a, b))
        return _product(a, b, ((0, 1), (0, 1)))
    return _product(a, b, ((0,), (0,)))


def _product(a: jax.Array, b: jax.Array, axes: Any) -> jax.Array:
    """Sum over ``axes``, those of ``a`` and those of ``b``; einsum would transpose both first."""
    wide = jnp.promote_types(a.dtype, jnp.float32)
    product = lax.dot_general(a, b, (axes, ((), ())), preferred_element_type=wide)
    return product.astype(a.dtype)


def _backward(operands: Any, dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    a, b = operands
    return _product(dy, b, ((1,), (1,))), matmul_transposed(a, dy)


matmul.defvjp(lambda a, b: (matmul(a, b), (a, b)), _backward)
