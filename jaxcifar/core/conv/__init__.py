"""2-D convolution by the algorithm that docs/performance.md shows to be the fastest."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxcifar.core.conv.dense import dense
from jaxcifar.core.conv.groups import block_diagonal, depthwise
from jaxcifar.core.conv.matmul import matmul
from jaxcifar.core.conv.window import Size, Window
from jaxcifar.core.conv.winograd import TILE, winograd

MAX_BLOCKS = 400  # of a dense matrix: more compile for seconds and are slower than XLA


def conv2d(
    x: jax.Array,
    kernel: jax.Array,
    *,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
) -> jax.Array:
    """Compute torch's ``conv2d`` of ``(N, H, W, C)`` and ``(kh, kw, C / groups, O)``."""
    window = Window.of(kernel, stride, padding, dilation, groups)
    if min(window.outputs(x, kernel)) < 1:
        raise ValueError(f"a kernel of {kernel.shape} does not fit an image of {x.shape}")
    if kernel.shape[2] * groups != x.shape[-1] or kernel.shape[3] % groups:
        raise ValueError(f"a kernel of {kernel.shape} does not fit {groups} groups of {x.shape}")
    backend = jax.default_backend()
    if backend == "cpu" and 1 < groups < x.shape[-1]:
        kernel, window = block_diagonal(kernel, groups), window._replace(groups=1)
    exact = jax.config.jax_default_matmul_precision in ("highest", "float32")  # type: ignore[attr-defined]
    algorithm = choose(x, kernel, window, backend=backend, exact=exact)
    return ALGORITHMS[algorithm](x, kernel, window)


def choose(x: Any, kernel: Any, window: Window, *, backend: str, exact: bool) -> str:
    """Return the fastest of ``ALGORITHMS``, or of those that are as ``exact`` as the plain sum."""
    height, width, channels = x.shape[1:]
    kernel_size = kernel.shape[:2]
    if backend != "cpu":
        return "xla"
    if window.groups > 1:
        return "depthwise" if window.groups == channels else "xla"
    if kernel_size == (1, 1) and window.paddings == ((0, 0), (0, 0)):
        return "matmul"
    rows, columns = window.outputs(x, kernel)
    if height * width <= kernel_size[0] * kernel_size[1]:
        return "dense" if height * width * rows * columns <= MAX_BLOCKS else "xla"
    plain = window.strides == window.dilations == (1, 1) and rows % TILE == columns % TILE == 0
    inexact = not exact and x.dtype != jnp.float64
    if kernel_size == (3, 3) and plain and channels >= 16 and inexact:
        return "winograd"
    return "xla"


def _xla(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    return lax.conv_general_dilated(
        *(x, kernel, window.strides, window.paddings),
        rhs_dilation=window.dilations,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=window.groups,
    )


def _matmul(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    rows, columns = window.strides
    x = x[:, ::rows, ::columns]  # 1x1 and unpadded: one product over the channels
    return matmul(x.reshape(-1, x.shape[-1]), kernel[0, 0]).reshape(*x.shape[:-1], -1)


ALGORITHMS: dict[str, Callable[..., jax.Array]] = {
    "xla": _xla,
    "matmul": _matmul,
    "dense": dense,
    "winograd": lambda x, kernel, window: winograd(x, kernel, window.paddings),
    "depthwise": depthwise,
}
