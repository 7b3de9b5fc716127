"""bfloat16 convolutions by oneDNN, which XLA's CPU backend contains, but does not use by itself.

Where the processor has AMX they are ten times as fast as XLA's own. XLA does not document the calls
and cannot store a program with them; jaxlib 0.10 to 0.12 understand these.
"""

import json
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxcifar.core.conv.window import Window, moved

NARROW = 8  # pixels: oneDNN multiplies tiles of up to 16 in a row


def serves(x: Any, window: Window) -> bool:
    """Whether ``onednn`` can compute it; some other windows make oneDNN err, or end the process."""
    axes, moves = zip(*window[:4], x.shape[1:3], window.outputs(x), strict=True), window.strides
    sound = all(
        max(padding) < size and dilation == 1 and (moves == (1, 1) or (side >= size and count > 1))
        for size, _, padding, dilation, side, count in axes
    )
    static = isinstance(x.shape[0], int) and x.size > 0  # not so in an export
    here = _has_amx() and jax.device_count() == 1  # XLA cannot split a call
    return x.dtype == jnp.bfloat16 and window.groups == 1 and here and static and sound


@cache
def _has_amx() -> bool:
    """Whether the processor multiplies tiles of bfloat16; an unknown call would end the process."""
    cpu = Path("/proc/cpuinfo")  # on Linux
    amx = cpu.exists() and "amx_bf16" in cpu.read_text(errors="replace")
    return amx and jax.__version_info__ < (0, 13)


def xla(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    """Compute ``conv2d`` by XLA's own convolution."""
    return lax.conv_general_dilated(
        *(x, kernel, window.strides, window.paddings),
        rhs_dilation=window.dilations,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=window.groups,
    )


def onednn(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    """Compute ``conv2d`` in bfloat16."""

    @jax.custom_gradient
    def convolve(x: jax.Array, kernel: jax.Array) -> Any:
        def gradients(dy: jax.Array) -> tuple[jax.Array, jax.Array]:
            if window.strides == (1, 1):
                axes = zip(window.sizes, window.paddings, strict=True)
                rows, columns = ((k - 1 - before, k - 1 - after) for k, (before, after) in axes)
                turned = kernel[::-1, ::-1].swapaxes(2, 3)
                d_x = onednn(dy, turned, window._replace(paddings=(rows, columns)))
            else:
                (d_x,) = jax.linear_transpose(lambda x: xla(x, kernel, window), x)(dy)
            flat = dy.reshape(-1, dy.shape[3])
            views = (view.reshape(-1, view.shape[3]) for view in window.views(x))
            dot = partial(lax.dot_general, dimension_numbers=(((0,), (0,)), ((), ())))
            taps = [_call("matmul", {"transpose_a": True}, dot, view, flat) for view in views]
            return d_x, jnp.stack(taps).reshape(kernel.shape)

        return _correlate(x, kernel, window), gradients

    return convolve(x, kernel)


def _correlate(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    """Compute ``onednn``: a product, or of narrow images side by side, zeros between them."""
    if window.sizes == (1, 1):
        (met,) = window.views(x)
        y = _call("matmul", {}, jnp.matmul, met.reshape(-1, met.shape[3]), kernel[0, 0])
        return y.reshape(*met.shape[:3], -1)
    n, rows, width, channels = x.shape
    if width >= NARROW or window.strides[1] > 1:
        return _convolve(x, kernel, window)
    before, after = window.paddings[1]
    gap, paddings = max(before, after), (before, window.sizes[1] - 1 - before)

    def join(x: jax.Array) -> jax.Array:
        apart = jnp.pad(x, ((0, 0), (0, 0), (0, gap), (0, 0)))
        return apart.swapaxes(0, 1).reshape(1, rows, -1, channels)

    def split(y: jax.Array) -> jax.Array:
        apart = y.reshape(y.shape[1], n, width + gap, -1).swapaxes(0, 1)
        return apart[:, :, : window.outputs(x)[1]]

    wide = window._replace(paddings=(window.paddings[0], paddings))
    return moved(split, _convolve(moved(join, x), kernel, wide))


def _convolve(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
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
    }
    return _call("convolution", config, partial(xla, window=window), x, kernel)


def _call(
    name: str, config: dict[str, Any], plain: Callable[..., jax.Array], *operands: jax.Array
) -> Any:
    """Let oneDNN compute what ``plain(*operands)`` does, which also has the gradients."""
    field = {"convolution": "onednn_conv_config", "matmul": "onednn_matmul_config"}[name]
    compute: Any = jax.ffi.ffi_call(
        f"__onednn${name}",
        jax.eval_shape(plain, *operands),
        vmap_method="sequential",
        custom_call_api_version=2,
        legacy_backend_config=json.dumps({field: config}),
    )

    @jax.custom_gradient
    def differentiable(*operands: jax.Array) -> Any:
        return compute(*operands), lambda dy: jax.vjp(plain, *operands)[1](dy)

    return differentiable(*operands)
