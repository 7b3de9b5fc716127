"""The dtype in which parameters are kept and sums are computed."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike


def wide_dtype(dtype: DTypeLike) -> jnp.dtype:
    """Return float32, or ``dtype`` where that is wider."""
    return jnp.promote_types(dtype, jnp.float32)


def widen(x: jax.Array) -> jax.Array:
    """Cast to ``wide_dtype(x.dtype)``."""
    return x.astype(wide_dtype(x.dtype))
