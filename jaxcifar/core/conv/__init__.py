"""2-D convolution by the algorithm that docs/performance.md shows to be the fastest."""

from collections.abc import Callable
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxcifar.core.conv.matmul import dense, patches
from jaxcifar.core.conv.window import Window
from jaxcifar.core.conv.winograd import TILE, winograd

LARGE = 2**20  # outputs of a layer times its channels; in smaller ones the loss notices bfloat16
FEW = 160  # of images for each weight that meets one pixel: more are worth a dense matrix
MAX_BLOCKS = 400  # of a dense matrix: more compile for seconds and are slower than XLA


def conv2d(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    """Compute torch's ``conv2d`` of ``(N, H, W, C)`` and ``(kh, kw, C / groups, O)``."""
    channels, groups = x.shape[-1], window.groups
    fits = kernel.shape[2] * groups == channels and kernel.shape[3] % groups == 0
    if min(window.outputs(x)) < 1 or not fits:
        raise ValueError(f"{groups} groups of {kernel.shape} do not fit images of {x.shape}")
    backend = jax.default_backend()
    if backend == "cpu" and 1 < groups < channels:
        kernel, window = _block_diagonal(kernel, groups), window._replace(groups=1)
    precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    algorithm = choose(x, kernel, window, backend=backend, precision=precision)
    return ALGORITHMS[algorithm](x, kernel, window)


def choose(x: Any, kernel: Any, window: Window, *, backend: str, precision: str | None) -> str:
    """Return the fastest of ``ALGORITHMS`` at one of ``jax.default_matmul_precision``."""
    n, height, width, channels = x.shape
    if backend != "cpu":
        return "xla"
    if window.groups > 1:
        return "depthwise" if window.groups == channels else "xla"
    if window.sizes == (1, 1) and window.paddings == ((0, 0), (0, 0)):
        return "patches"
    rows, columns = window.outputs(x)
    taps, pixels = window.sizes[0] * window.sizes[1], height * width
    if pixels <= taps:
        if pixels * rows * columns > MAX_BLOCKS:
            return "xla"
        many = not isinstance(n, int) or n * taps >= FEW * pixels  # symbolic in an export
        return "dense" if many and x.dtype != jnp.bfloat16 else "patches"
    plain = window.strides == window.dilations == (1, 1) and rows % TILE == columns % TILE == 0
    inexact = precision not in ("highest", "float32") and x.dtype != jnp.float64
    if window.sizes == (3, 3) and plain and channels >= 16 and inexact:
        large = rows * columns * kernel.shape[2] * kernel.shape[3] >= LARGE
        narrow = x.dtype == jnp.bfloat16 and precision != "high" and large
        return "winograd_bfloat16" if narrow else "winograd"
    return "xla"


def _xla(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    return lax.conv_general_dilated(
        *(x, kernel, window.strides, window.paddings),
        rhs_dilation=window.dilations,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=window.groups,
    )


# On CPU, XLA computes the gradients of grouped convolutions 3 to 100 times too slowly.
def _depthwise(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    """Sum weighted shifted images, where each channel is a group."""
    views = window.views(jnp.repeat(x, kernel.shape[3] // window.groups, axis=3))
    wide = kernel.astype(jnp.promote_types(x.dtype, jnp.float32))  # on CPU, bfloat16 is slow here
    weights = wide.reshape(-1, 1, 1, 1, kernel.shape[3])
    return reduce(jnp.add, map(jnp.multiply, views, weights)).astype(x.dtype)


def _block_diagonal(kernel: jax.Array, groups: int) -> jax.Array:
    """Return the kernel of the same convolution without groups, zero between them."""
    rows, columns, channels, features = kernel.shape
    blocks = kernel.reshape(rows, columns, 1, channels, groups, -1)
    own = jnp.eye(groups, dtype=bool).reshape(1, 1, groups, 1, groups, 1)
    return jnp.where(own, blocks, 0).reshape(rows, columns, channels * groups, features)


ALGORITHMS: dict[str, Callable[[jax.Array, jax.Array, Window], jax.Array]] = {
    "xla": _xla,
    "dense": dense,
    "patches": patches,
    "winograd": winograd,
    "winograd_bfloat16": partial(winograd, narrow=True),
    "depthwise": _depthwise,
}
