"""Activations with torch's values and gradients, also where these jump."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp


class Function(nn.Module):
    """A function without parameters as a layer, such as ``partial(Function, nn.softplus)``."""

    function: Callable[[jax.Array], jax.Array]

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        return self.function(x)


def _relu6(x: jax.Array) -> jax.Array:
    return jnp.where(x >= 6, 6, nn.relu(x))


ReLU = partial(Function, nn.relu)
ReLU6 = partial(Function, _relu6)
SiLU = partial(Function, nn.silu)
Sigmoid = partial(Function, nn.sigmoid)
Tanh = partial(Function, jnp.tanh)
Hardsigmoid = partial(Function, lambda x: _relu6(x + 3) / 6)
Hardswish = partial(Function, lambda x: x * _relu6(x + 3) / 6)


class GELU(nn.Module):
    """``torch.nn.GELU``; ``approximate`` is ``"none"`` or ``"tanh"``."""

    approximate: str = "none"

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        if self.approximate not in ("none", "tanh"):
            raise ValueError(f'unknown approximation {self.approximate!r}: use "none" or "tanh"')
        return nn.gelu(x, approximate=self.approximate == "tanh")


class LeakyReLU(nn.Module):
    """``torch.nn.LeakyReLU``."""

    negative_slope: float = 0.01

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        return jnp.where(x > 0, x, self.negative_slope * x)
