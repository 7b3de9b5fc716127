"""2-D convolution by the algorithm that docs/performance.md shows to be the fastest."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxcifar.core.conv.dense import dense
from jaxcifar.core.conv.matmul import matmul
from jaxcifar.core.conv.winograd import TILE, winograd


def conv2d(x: jax.Array, kernel: jax.Array, *, stride: int = 1, padding: int = 0) -> jax.Array:
    """Compute ``torch.nn.functional.conv2d`` of ``(N, H, W, C)`` and ``(kh, kw, C, O)``."""
    exact = jax.config.jax_default_matmul_precision in ("highest", "float32")  # type: ignore[attr-defined]
    algorithm = choose(x, kernel, stride, padding, backend=jax.default_backend(), exact=exact)
    return ALGORITHMS[algorithm](x, kernel, stride, padding)


def choose(x: Any, kernel: Any, stride: int, padding: int, *, backend: str, exact: bool) -> str:
    """Return the fastest of ``ALGORITHMS``, or of those that are as ``exact`` as the plain sum."""
    height, width, channels = x.shape[1:]
    kernel_size = kernel.shape[:2]
    if backend != "cpu":
        return "xla"
    if kernel_size == (1, 1) and padding == 0:
        return "matmul"
    if height * width <= kernel_size[0] * kernel_size[1]:
        return "dense"
    whole_tiles = (height + 2 * padding - 2) % TILE == (width + 2 * padding - 2) % TILE == 0
    inexact = not exact and x.dtype != jnp.float64
    if kernel_size == (3, 3) and stride == 1 and whole_tiles and channels >= 16 and inexact:
        return "winograd"
    return "xla"


def _xla(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    paddings = ((padding, padding), (padding, padding))
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), paddings, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _matmul(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    x = x[:, ::stride, ::stride]  # 1x1 and unpadded: one product over the channels
    return matmul(x.reshape(-1, x.shape[-1]), kernel[0, 0]).reshape(*x.shape[:-1], -1)


ALGORITHMS: dict[str, Callable[..., jax.Array]] = {
    "xla": _xla,
    "matmul": _matmul,
    "dense": dense,
    "winograd": lambda x, kernel, stride, padding: winograd(x, kernel, padding),
}
