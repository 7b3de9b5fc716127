"""How a 2-D convolution is computed: one function, chosen by static shape and backend.

On CPU, XLA runs a convolution whose kernel is larger than its image very slowly, and both
models end in such layers (3x3 on 2x2). Forward and both gradients, batch 100, float32, two
cores, jaxlib 0.10.2, as XLA's time over the other algorithm's:

    ========================  =========================  ========
    layer                     xla / other                chosen
    ========================  =========================  ========
    3x3, 512 -> 512 on 2x2    43   (1265 / 29 ms)        patches
    3x3, 512 -> 512 on 4x4    1.0  (149 / 145 ms)        xla
    3x3, 64 -> 64 on 8x8      1.1  (12.5 / 11.3 ms)      xla
    1x1, 64 -> 256 on 8x8     1.4  (10.2 / 7.1 ms)       matmul
    1x1, 1024 -> 256 on 2x2   1.4  (7.5 / 5.3 ms)        matmul
    ========================  =========================  ========

On an accelerator every convolution is XLA's own.
"""

import jax
import jax.numpy as jnp
from jax import lax


def conv2d(x: jax.Array, kernel: jax.Array, *, stride: int = 1, padding: int = 0) -> jax.Array:
    """Cross-correlates images with a kernel, as ``torch.nn.functional.conv2d`` does.

    Args:
      x: images, ``(N, H, W, C)``, a floating dtype.
      kernel: ``(kh, kw, C, O)``, the dtype of ``x``.
      stride: step in both directions, in pixels.
      padding: zeros added on each of the four sides, in pixels.

    Returns:
      ``(N, H', W', O)`` in the dtype of ``x``, with ``H' = (H + 2 padding - kh) // stride + 1``.
    """
    algorithm = choose(x.shape, kernel.shape, padding=padding, backend=jax.default_backend())
    return ALGORITHMS[algorithm](x, kernel, stride, padding)


def choose(
    image_shape: tuple[int, ...], kernel_shape: tuple[int, ...], *, padding: int, backend: str
) -> str:
    """Names the fastest algorithm for a static shape; a key of ``ALGORITHMS``."""
    _, height, width, _ = image_shape
    kernel_height, kernel_width, _, _ = kernel_shape
    if backend != "cpu":
        return "xla"
    if (kernel_height, kernel_width) == (1, 1) and padding == 0:
        return "matmul"
    if height < kernel_height or width < kernel_width:
        return "patches"
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
    return x[:, ::stride, ::stride] @ kernel[0, 0]


def _patches(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    """im2col: the kh*kw shifted views of the image side by side, then one product."""
    kernel_height, kernel_width, channels, features = kernel.shape
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    out_height = (x.shape[1] - kernel_height) // stride + 1
    out_width = (x.shape[2] - kernel_width) // stride + 1
    shifted = [
        x[:, i : i + stride * out_height : stride, j : j + stride * out_width : stride]
        for i in range(kernel_height)
        for j in range(kernel_width)
    ]
    columns = jnp.concatenate(shifted, axis=-1)
    return columns @ kernel.reshape(kernel_height * kernel_width * channels, features)


ALGORITHMS = {"xla": _xla, "matmul": _matmul, "patches": _patches}
