"""What kind of mistake a layer's wrong output looks like: the one that makes torch give it, too."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

import numpy as np
from etils import epy

with epy.lazy_imports():
    import torch
    from torch.nn import functional

TOLERANCE = 1e-4  # of the largest value
EPSILONS = (1e-3, 1e-5, 1e-6, 1e-12)
ACTIVATIONS = ("relu", "relu6", "leaky_relu", "gelu", "silu", "hardswish", "sigmoid", "tanh", "elu")


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
    if kind == "Conv2d":
        yield from _convolutions(layer, x)
    elif kind == "Linear":
        yield "the bias is missing", x @ layer.weight.T
        images = [output for output in others.values() if output[0].size == x[0].numel()]
        if images and images[-1].ndim == 4:
            flat = x.reshape(images[-1].shape).permute(0, 2, 3, 1).flatten(1)
            yield "it flattens channels last, torch (C, H, W)", layer(flat)
    elif kind in ("AvgPool2d", "MaxPool2d"):
        yield from _pools(layer, kind, x)
    elif kind == "Upsample":
        for mode, align in (("bilinear", True), ("bilinear", False), ("nearest", None)):
            output = functional.interpolate(x, expected.shape[2:], mode=mode, align_corners=align)
            theirs = f"torch has {layer.mode} and {layer.align_corners}"
            yield f"mode {mode}, align_corners {align}; {theirs}", output
    elif hasattr(layer, "eps"):
        yield from _norms(layer, kind, x)
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


def _convolutions(layer: Any, x: Any) -> Iterator[tuple[str, Any]]:
    def convolve(x: Any = x, bias: Any = layer.bias, **changed: Any) -> Any:
        names = ("stride", "padding", "dilation", "groups")
        options = {name: getattr(layer, name) for name in names} | changed
        return functional.conv2d(x, layer.weight, bias, **options)

    def check(name: str, value: int) -> Iterator[tuple[str, Any]]:
        with suppress(RuntimeError):  # the kernel may be larger than the image
            yield f"{name} {value}, torch has {getattr(layer, name)}", convolve(**{name: value})

    for name, values in {
        "padding": range(4),
        "stride": range(1, 5),
        "dilation": range(1, 4),
    }.items():
        for value in values:
            yield from check(name, value)
    needs = [
        max((-(-side // stride) - 1) * stride + (kernel - 1) * dilation + 1 - side, 0)
        for side, stride, kernel, dilation in zip(
            x.shape[2:], layer.stride, layer.kernel_size, layer.dilation, strict=True
        )
    ]
    sides = [pad for need in reversed(needs) for pad in (need // 2, need - need // 2)]
    same = functional.pad(x, sides)
    yield f"padding SAME, torch has {layer.padding} on both sides", convolve(same, padding=0)
    yield "the bias is missing", convolve(bias=None)
    yield (
        "the kernel is mirrored",
        functional.conv2d(x, layer.weight.flip(2, 3), layer.bias, layer.stride, layer.padding),
    )


def _pools(layer: Any, kind: str, x: Any) -> Iterator[tuple[str, Any]]:
    fixed = {"kernel_size": layer.kernel_size, "stride": layer.stride}
    average = kind == "AvgPool2d"
    for padding in range(layer.kernel_size // 2 + 1):
        for ceil in (False, True):
            for counted in (True, False) if average else (None,):
                options: dict[str, Any] = {"padding": padding, "ceil_mode": ceil}
                options |= {"count_include_pad": counted} if average else {}
                theirs = {name: getattr(layer, name) for name in options}
                changed = [n for n in options if options[n] != theirs[n]]
                what = ", ".join(f"{n} {options[n]}, torch has {theirs[n]}" for n in changed)
                pool: Any = functional.avg_pool2d if average else functional.max_pool2d
                if changed:
                    yield what, pool(x, **fixed, **options)
    other: Any = functional.max_pool2d if average else functional.avg_pool2d
    yield f"the other kind of pooling, torch has {kind}", other(x, **fixed, padding=layer.padding)


def _norms(layer: Any, kind: str, x: Any) -> Iterator[tuple[str, Any]]:
    for epsilon in EPSILONS:
        changed = copy.deepcopy(layer)
        changed.eps = epsilon
        yield f"epsilon {epsilon:g}, torch has {layer.eps:g}", changed(x)
    if kind.startswith("BatchNorm"):
        changed = copy.deepcopy(layer).train()
        yield "the statistics of the batch are used in evaluation", changed(x)
    plain = copy.deepcopy(layer)
    for name, value in {"weight": 1.0, "bias": 0.0}.items():
        if getattr(plain, name, None) is not None:
            changed = copy.deepcopy(layer)
            getattr(changed, name).data.fill_(value)
            yield f"{kind} without its {name}", changed(x)
