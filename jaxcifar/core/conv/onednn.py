"""bfloat16 convolutions by oneDNN, which XLA's CPU backend contains, but does not use by itself.

Where the processor has AMX they are ten times as fast as XLA's own. XLA does not document the calls
and can neither store nor split a program with them; jaxlib 0.10 to 0.12 understand these.
"""

import json
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxcifar.core.conv.matmul import finish
from jaxcifar.core.conv.window import Window

NARROW = 8  # pixels: oneDNN multiplies tiles of up to 16 in a row


def serves(x: Any, window: Window) -> bool:
    """Whether ``onednn`` can compute it; some other windows make oneDNN err, or end the process."""
    axes, moves = zip(*window[:4], x.shape[1:3], window.outputs(x), strict=True), window.strides
    sound = all(
        max(padding) < size and dilation == 1 and (moves == (1, 1) or (side >= size and count > 1))
        for size, _, padding, dilation, side, count in axes
    )
    static = isinstance(x.shape[0], int) and x.size > 0  # not so in an export
    here = jax.__version_info__ < (0, 13) and jax.device_count() == 1 and _has_amx()
    return x.dtype == jnp.bfloat16 and window.groups == 1 and here and static and sound


@cache
def _has_amx() -> bool:
    """Whether the processor multiplies tiles of bfloat16; an unknown call would end the process."""
    cpu = Path("/proc/cpuinfo")  # on Linux
    return cpu.exists() and "amx_bf16" in cpu.read_text(errors="replace")


def xla(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    """Compute ``conv2d`` by XLA's own convolution."""
    return lax.conv_general_dilated(
        *(x, kernel, window.strides, window.paddings),
        rhs_dilation=window.dilations,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=window.groups,
    )


def onednn(
    x: jax.Array, kernel: jax.Array, window: Window, *bias: jax.Array, relu: bool = False
) -> jax.Array:
    """Compute ``conv2d`` in bfloat16."""

    @jax.custom_gradient
    def convolve(x: jax.Array, kernel: jax.Array, *bias: jax.Array) -> Any:
        y = _correlate(x, kernel, window, *bias, relu=relu)

        def gradients(dy: jax.Array) -> tuple[jax.Array, ...]:
            dy = jnp.where(y > 0, dy, 0) if relu else dy
            d_bias = (jnp.sum(dy.astype(each.dtype), (0, 1, 2)) for each in bias)
            if window.strides == (1, 1):
                axes = zip(window.sizes, window.paddings, strict=True)
                rows, columns = ((k - 1 - before, k - 1 - after) for k, (before, after) in axes)
                turned = kernel[::-1, ::-1].swapaxes(2, 3)
                d_x = onednn(dy, turned, window._replace(paddings=(rows, columns)))
            else:
                (d_x,) = jax.linear_transpose(lambda x: xla(x, kernel, window), x)(dy)
            taps = [_multiply(view, dy, transpose_a=True) for view in window.views(x)]
            return d_x, jnp.stack(taps).reshape(kernel.shape), *d_bias

        return y, gradients

    return convolve(x, kernel, *bias)


def _correlate(x: jax.Array, kernel: jax.Array, window: Window, *bias: Any, relu: bool) -> Any:
    """Compute ``onednn``: a product, or of narrow images side by side, zeros between them."""
    if window.sizes == (1, 1):
        (met,) = window.views(x)
        y = _multiply(met, kernel, transpose_a=False)
        return finish(y.reshape(*met.shape[:3], -1), *bias, relu=relu)
    n, rows, width, channels = x.shape
    if width >= NARROW or window.strides[1] > 1:
        return _convolve(x, kernel, window, *bias, relu=relu)
    before, gap = window.paddings[1][0], max(window.paddings[1])
    apart = jnp.pad(x, ((0, 0), (0, 0), (0, gap), (0, 0)))
    joined = apart.swapaxes(0, 1).reshape(1, rows, -1, channels)
    wide = window._replace(paddings=(window.paddings[0], (before, window.sizes[1] - 1 - before)))
    y = _convolve(joined, kernel, wide, *bias, relu=relu)
    apart = y.reshape(y.shape[1], n, width + gap, -1).swapaxes(0, 1)
    return apart[:, :, : window.outputs(x)[1]]


def _convolve(x: jax.Array, kernel: jax.Array, window: Window, *bias: Any, relu: bool) -> Any:
    def plain(x: jax.Array, kernel: jax.Array, *bias: jax.Array) -> jax.Array:
        return finish(xla(x, kernel, window), *bias, relu=relu)

    befores, afters = zip(*window.paddings, strict=True)
    images = {"data": {"batch_dim": 0, "spatial_dims": [1, 2], "feature_dim": 3}}
    axes = {"spatial_dims": [0, 1], "input_feature_dim": 2, "output_feature_dim": 3}
    moves = {"strides": window.strides, "window_dilations": window.dilations}
    config = {
        "dims": 4,
        "feature_groups": 1,
        "input": images,
        "output": images,
        "kernel": {"filter": axes | {"shape": kernel.shape}},
        "window": moves | {"pad_left": befores, "pad_right": afters},
        "fusions": {"ops": ["BIAS"] * len(bias) + ["RELU"] * relu},
    }
    return _call("convolution", {"onednn_conv_config": config}, plain, x, kernel, *bias)


def _multiply(a: jax.Array, b: jax.Array, *, transpose_a: bool) -> Any:
    """Multiply matrices, of which all axes but the last are rows."""
    a, b = (x.reshape(-1, x.shape[-1]) for x in (a, b))
    dot = partial(lax.dot_general, dimension_numbers=(((1 - transpose_a,), (0,)), ((), ())))
    return _call("matmul", {"onednn_matmul_config": {"transpose_a": transpose_a}}, dot, a, b)


def _call(
    name: str, config: dict[str, Any], plain: Callable[..., jax.Array], *operands: jax.Array
) -> Any:
    """Let oneDNN compute what ``plain(*operands)`` does, which also has the gradients."""
    compute: Any = jax.ffi.ffi_call(
        f"__onednn${name}",
        jax.eval_shape(plain, *operands),
        vmap_method="sequential",
        custom_call_api_version=2,
        legacy_backend_config=json.dumps(config),
    )

    @jax.custom_gradient
    def differentiable(*operands: jax.Array) -> Any:
        return compute(*operands), lambda dy: jax.vjp(plain, *operands)[1](dy)

    return differentiable(*operands)
