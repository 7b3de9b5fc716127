"""What kind of mistake a layer's wrong output looks like: the one that makes torch give it, too."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import combinations, product
from typing import Any

import numpy as np
from etils import epy
from jax import lax

with epy.lazy_imports():
    import torch
    from torch.nn import functional

TOLERANCE = 1e-4  # of the largest value
ACTIVATIONS = ("relu", "relu6", "leaky_relu", "gelu", "silu", "hardswish", "sigmoid", "tanh", "elu")
BIAS: dict[str, tuple[Any, ...]] = {"bias": (None,)}
NORM = {"eps": (1e-3, 1e-5, 1e-6, 1e-12), "weight": (None,), **BIAS}
BATCH_NORM = {**NORM, "training": (True,)}
POOL = {"padding": (0, 1, 2, 3), "ceil_mode": (False, True)}
# The attributes of torch's layers that a mistake changes; of other layers with an eps, NORM.
VALUES: dict[str, dict[str, tuple[Any, ...]]] = {
    "Conv2d": {"padding": (0, 1, 2, 3), "stride": (1, 2, 3, 4), "dilation": (1, 2, 3), **BIAS},
    "Linear": BIAS,
    "MaxPool2d": POOL,
    "AvgPool2d": {**POOL, "count_include_pad": (False, True)},
    "Upsample": {"mode": ("bilinear", "nearest"), "align_corners": (True, False, None)},
    "BatchNorm1d": BATCH_NORM,
    "BatchNorm2d": BATCH_NORM,
}


def diagnose(
    layer: Any, x: Any, expected: np.ndarray, ours: np.ndarray, others: Mapping[str, np.ndarray]
) -> str | None:
    """Return what the first wrong output looks like, or None if nothing known explains it.

    ``layer`` is torch's module, ``x`` its input, and ``others`` are the outputs of torch's layers
    before it, by name. Arrays are in torch's axes.
    """
    with torch.no_grad():
        for what, output in _candidates(layer, x, torch.from_numpy(expected), others):
            if _equal(np.asarray(output), ours):
                return what
    for name, output in others.items():
        if _equal(output, ours):
            return f"its output is that of torch's {name}: layers are swapped, or one is left out"
    return None


def _equal(output: np.ndarray, ours: np.ndarray) -> bool:
    if output.shape != ours.shape or not np.isfinite(output).all():
        return False
    return bool(np.abs(output - ours).max() <= TOLERANCE * max(np.abs(output).max(), 1e-30))


def _candidates(
    layer: Any, x: Any, expected: Any, others: Mapping[str, np.ndarray]
) -> Iterator[tuple[str, Any]]:
    """Yield mistakes, each with the output that it would give."""
    kind, is_leaf = type(layer).__name__, not list(layer.children())
    x = x if isinstance(x, torch.Tensor) else expected  # a block may take a list
    yield from _variations(layer, x)
    if kind == "Conv2d":
        sizes = [d * (k - 1) + 1 for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        rows, columns = lax.padtype_to_pads(x.shape[2:], sizes, layer.stride, "SAME")
        same = _changed(layer, padding=0)(functional.pad(x, (*columns, *rows)))
        yield f"padding SAME, torch has {layer.padding} on both sides", same
    elif kind == "Linear":
        images = [output for output in others.values() if output[0].size == x[0].numel()]
        if images and images[-1].ndim == 4:
            flat = x.reshape(images[-1].shape).permute(0, 2, 3, 1).flatten(1)
            yield "it flattens channels last, torch (C, H, W)", layer(flat)
    elif kind in ("AvgPool2d", "MaxPool2d"):
        pool: Any = functional.max_pool2d if kind == "AvgPool2d" else functional.avg_pool2d
        output = pool(x, layer.kernel_size, layer.stride, layer.padding)
        yield f"the other kind of pooling, torch has {kind}", output
    for name in ACTIVATIONS:
        function = getattr(functional, name)
        yield f"an activation too many at the end: {name}", function(expected)
        if is_leaf:
            yield f"the activation is {name}, torch's is {kind}", function(x)
            yield f"an activation too many before it: {name}", layer(function(x))
    if x.shape == expected.shape:
        yield "this layer is missing: its output is its input", x
        yield "the shortcut is not added", expected - x
        yield "a shortcut is added, which torch does not have", expected + x
    before = [(n, o) for n, o in others.items() if is_leaf and o.shape == tuple(x.shape)]
    for name, output in reversed(before[-4:]):
        inputs, between = torch.from_numpy(output), f"between {name} and this layer"
        yield f"an activation {between} is missing", layer(inputs)
        for activation in ACTIVATIONS:
            changed = layer(getattr(functional, activation)(inputs))
            yield f"the activation {between} is {activation}", changed
    for shift in range(1, expected.shape[1] if expected.ndim == 4 else 0):
        what = f"swapped branches: torch's last {shift} channels come first"
        yield what, torch.roll(expected, shift, 1)


def _variations(layer: Any, x: Any) -> Iterator[tuple[str, Any]]:
    """Yield what the layer gives with one or two other values."""
    values = VALUES.get(type(layer).__name__, NORM if hasattr(layer, "eps") else {})
    for names in (*combinations(values, 1), *combinations(values, 2)):
        for chosen in product(*(values[name] for name in names)):
            changes = dict(zip(names, chosen, strict=True))
            with suppress(RuntimeError, ValueError):  # a kernel may be larger than the image
                what = ", ".join(_describe(layer, name, changes[name]) for name in names)
                yield what, _changed(layer, **changes)(x)


def _changed(layer: Any, **values: Any) -> Any:
    layer = copy.deepcopy(layer)
    for name, value in values.items():
        setattr(layer, name, value)
    return layer


def _describe(layer: Any, name: str, value: Any) -> str:
    if name == "training":
        return "the statistics of the batch are used in evaluation"
    theirs = getattr(layer, name)
    if isinstance(theirs, torch.Tensor):
        return f"the {name} is missing"
    return f"{'epsilon' if name == 'eps' else name} {value}, torch has {theirs}"
