"""How a 2-D convolution is computed: one function, chosen by static shape, dtype and backend.

On CPU, XLA's own runs at the matmul peak at best (about 205 GFLOP/s where measured), so only
fewer multiplications can beat it; with few channels, in the kernel's gradient, or with a
kernel larger than the image, it is far below. Milliseconds of the forward pass and both
gradients, batch 100, float32, two cores with AVX-512, jaxlib 0.10.2 (``benchmarks/layers.py``
measures all layers of both models; ratios, not times, carry over to other machines):

    ==========================  =====  ======  =====  ========
    layer                         xla  chosen  ratio  chosen
    ==========================  =====  ======  =====  ========
    3x3, 64 -> 64 on 32x32        277     153    1.8  winograd
    3x3, 128 -> 128 on 16x16      131      84    1.6  winograd
    3x3, 256 -> 256 on 8x8        135      55    2.4  winograd
    3x3, 512 -> 512 on 4x4        124      50    2.5  winograd
    3x3, 512 -> 512 on 2x2       1265      21     60  dense
    1x1, 64 -> 256 on 8x8         9.2     5.1    1.8  matmul
    1x1, 1024 -> 1024 on 2x2     18.8    12.9    1.5  matmul
    3x3, 3 -> 64 on 32x32          18      18      1  xla
    7x7, 3 -> 64 on 32x32          12      12      1  xla
    ==========================  =====  ======  =====  ========

In bfloat16 the choice is the same: Winograd's transforms then compute in float32, and the
products of matmul and dense use the processor's bfloat16 instructions (``ops/matmul.py``).
On an accelerator every convolution is XLA's own.
"""

import jax
import jax.numpy as jnp
from jax import lax

from jaxcifar.core.conv.dense import dense
from jaxcifar.core.conv.matmul import matmul
from jaxcifar.core.conv.winograd import TILE, winograd


def conv2d(x: jax.Array, kernel: jax.Array, *, stride: int = 1, padding: int = 0) -> jax.Array:
    """Cross-correlates images with a kernel, as ``torch.nn.functional.conv2d`` does.

    Under ``jax.default_matmul_precision("highest")`` no algorithm is used whose rounding
    differs from the plain sum's.

    Args:
      x: images, ``(N, H, W, C)``, a floating dtype.
      kernel: ``(kh, kw, C, O)``, the dtype of ``x``.
      stride: step in both directions, in pixels.
      padding: zeros added on each of the four sides, in pixels.

    Returns:
      ``(N, H', W', O)`` in the dtype of ``x``, with ``H' = (H + 2 padding - kh) // stride + 1``.
    """
    algorithm = choose(
        x.shape,
        kernel.shape,
        stride=stride,
        padding=padding,
        dtype=x.dtype,
        backend=jax.default_backend(),
        exact=jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
        in ("highest", "float32"),
    )
    return ALGORITHMS[algorithm](x, kernel, stride, padding)


def choose(
    image_shape: tuple[int, ...],
    kernel_shape: tuple[int, ...],
    *,
    stride: int,
    padding: int,
    dtype: jax.typing.DTypeLike,
    backend: str,
    exact: bool = False,
) -> str:
    """Names the fastest algorithm for a static shape; a key of ``ALGORITHMS``.

    Args:
      image_shape: ``(N, H, W, C)``.
      kernel_shape: ``(kh, kw, C, O)``.
      stride: in pixels.
      padding: in pixels.
      dtype: of both.
      backend: as ``jax.default_backend()`` names it.
      exact: only algorithms that round as the plain sum does.
    """
    _, height, width, channels = image_shape
    kernel_size = kernel_shape[:2]
    if backend != "cpu":
        return "xla"
    if kernel_size == (1, 1) and padding == 0:
        return "matmul"
    if height * width <= kernel_size[0] * kernel_size[1]:
        return "dense"
    whole_tiles = (height + 2 * padding - 2) % TILE == (width + 2 * padding - 2) % TILE == 0
    inexact = not exact and jnp.dtype(dtype) != jnp.float64
    if kernel_size == (3, 3) and stride == 1 and whole_tiles and channels >= 16 and inexact:
        return "winograd"
    return "xla"


def _xla(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=((padding, padding), (padding, padding)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _matmul(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    """A 1x1 convolution: one product over the channels of the pixels that the stride keeps."""
    del padding  # `choose` sends only unpadded 1x1 kernels here
    x = x[:, ::stride, ::stride]
    return matmul(x.reshape(-1, x.shape[-1]), kernel[0, 0]).reshape(*x.shape[:-1], -1)


def _winograd(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    del stride  # `choose` sends only 3x3 kernels with stride 1 here
    return winograd(x, kernel, padding)


ALGORITHMS = {"xla": _xla, "matmul": _matmul, "dense": dense, "winograd": _winograd}
