"""A matrix product that is fast in bfloat16 on CPU, its gradients included.

XLA's CPU backend has bfloat16 kernels twice as fast as float32's, but only for products that
sum in float32 and whose operands are not transposed: it turns others into float32 first. The
two products of the backward pass transpose an operand, and XLA pulls a transposition into
the product wherever it sees one; so it is done in a shape in which XLA does not see it.
"""

import jax
import jax.numpy as jnp
from jax import lax

BLOCK = 32  # columns that stay together in a hidden transposition


def matmul(a: jax.Array, b: jax.Array) -> jax.Array:
    """Multiplies ``(M, K)`` by ``(K, N)``, both of one dtype, which the ``(M, N)`` has, too."""
    if a.dtype == jnp.bfloat16 and not any(size % BLOCK for size in b.shape):
        return _matmul(a, b)
    return a @ b


def product(a: jax.Array, b: jax.Array) -> jax.Array:
    """``a @ b`` that sums in float32 or wider; without a gradient of its own."""
    wide = jnp.promote_types(a.dtype, jnp.float32)
    return lax.dot(a, b, preferred_element_type=wide).astype(a.dtype)


def transpose(x: jax.Array) -> jax.Array:
    """``x.T``, hidden from XLA where that makes a product with it faster."""
    rows, columns = x.shape
    if x.dtype != jnp.bfloat16 or columns % BLOCK:
        return x.T
    return x.reshape(rows, -1, BLOCK).transpose(1, 2, 0).reshape(columns, rows)


@jax.custom_vjp
def _matmul(a: jax.Array, b: jax.Array) -> jax.Array:
    return product(a, b)


def _forward(a: jax.Array, b: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return product(a, b), (a, b)


def _backward(operands: tuple[jax.Array, jax.Array], dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    a, b = operands
    return product(dy, transpose(b)), product(transpose(a), dy)


_matmul.defvjp(_forward, _backward)
