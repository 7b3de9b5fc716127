"""Activations with torch's values and gradients, also where these jump."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcifar.core.norms import per_channel


def _relu6(x: jax.Array) -> jax.Array:
    return jnp.where(x >= 6, 6, nn.relu(x))


class ReLU(nn.Module):
    """``torch.nn.ReLU``."""

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        return nn.relu(x)


class ReLU6(nn.Module):
    """``torch.nn.ReLU6``."""

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        return _relu6(x)


class SiLU(nn.Module):
    """``torch.nn.SiLU``."""

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        return nn.silu(x)


class Sigmoid(nn.Module):
    """``torch.nn.Sigmoid``."""

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        return nn.sigmoid(x)


class Hardsigmoid(nn.Module):
    """``torch.nn.Hardsigmoid``."""

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        return _relu6(x + 3) / 6


class Hardswish(nn.Module):
    """``torch.nn.Hardswish``."""

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        return x * _relu6(x + 3) / 6


class Tanh(nn.Module):
    """``torch.nn.Tanh``."""

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        return jnp.tanh(x)


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


class PReLU(nn.Module):
    """``torch.nn.PReLU``; its weight is ``scale``."""

    num_parameters: int = 1
    init_value: float = 0.25

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        initializer, dtype = (
            nn.initializers.constant(self.init_value),
            jnp.promote_types(x.dtype, jnp.float32),
        )
        scale = self.param("scale", initializer, (self.num_parameters,), dtype)
        return jnp.where(x > 0, x, per_channel(scale, x).astype(x.dtype) * x)
