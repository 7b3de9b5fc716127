"""2-D convolution by the algorithm that docs/performance.md shows to be the fastest."""

import math
from collections.abc import Callable
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp

from jaxcifar.core.conv.matmul import dense, finish, patches
from jaxcifar.core.conv.onednn import onednn, serves, xla
from jaxcifar.core.conv.window import Window
from jaxcifar.core.conv.winograd import TILE, winograd

LARGE = 2**20  # outputs times channels: oneDNN pays in training, though XLA cannot store its calls
FEW = 160  # of images for each weight that meets one pixel: more are worth a dense matrix
MAX_BLOCKS = 400  # of a dense matrix: more compile for seconds and are slower than XLA


def conv2d(
    x: jax.Array, kernel: jax.Array, window: Window, *bias: jax.Array, relu: bool, train: bool
) -> jax.Array:
    """Compute torch's ``conv2d`` of ``(N, H, W, C)``, ``(kh, kw, C / groups, O)`` and ``(O,)``."""
    channels, groups = x.shape[-1], window.groups
    fits = kernel.shape[2] * groups == channels and kernel.shape[3] % groups == 0
    if min(window.outputs(x)) < 1 or not fits:
        raise ValueError(f"{groups} groups of {kernel.shape} do not fit images of {x.shape}")
    if jax.default_backend() == "cpu" and 1 < groups < channels:
        kernel, window = _block_diagonal(kernel, groups), window._replace(groups=1)
    algorithm = choose(x, kernel, window, train=train)
    if algorithm is onednn:
        return onednn(x, kernel, window, *bias, relu=relu)
    return finish(algorithm(x, kernel, window), *bias, relu=relu)


def choose(x: Any, kernel: Any, window: Window, *, train: bool) -> Callable[..., jax.Array]:
    """Return the fastest algorithm here and at ``jax.default_matmul_precision``."""
    n, height, width, channels = x.shape
    if jax.default_backend() != "cpu":
        return xla
    if window.groups > 1:
        return depthwise if window.groups == channels else xla
    rows, columns = window.outputs(x)
    taps, pixels = math.prod(window.sizes), height * width
    precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    inexact = precision not in ("highest", "float32") and x.dtype != jnp.float64
    large = taps > 1 and rows * columns * max(channels, 16) * kernel.shape[3] >= LARGE
    if inexact and (large or not train) and serves(x, window):
        return onednn
    if window.sizes == (1, 1) and window.paddings == ((0, 0), (0, 0)):
        return patches
    if pixels <= taps and pixels * rows * columns <= MAX_BLOCKS:
        many = not isinstance(n, int) or n * taps >= FEW * pixels  # symbolic in an export
        return dense if many and x.dtype != jnp.bfloat16 else patches
    tiles = window.strides == window.dilations == (1, 1) and rows % TILE == columns % TILE == 0
    return winograd if window.sizes == (3, 3) and tiles and channels >= 16 and inexact else xla


def depthwise(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    """Sum shifted images, a group for each channel; XLA's gradients take 3 to 100 times as long."""
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
