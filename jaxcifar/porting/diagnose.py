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

ACTIVATIONS = ("relu", "relu6", "leaky_relu", "gelu", "silu", "hardswish", "sigmoid", "tanh", "elu")
# Attributes of torch's layers, and the values that a mistake gives them.
CONV = {"padding": (0, 1, 2, 3), "stride": (1, 2, 3, 4), "dilation": (1, 2, 3)}
POOL = {"ceil_mode": (False, True), "count_include_pad": (False, True)}
UPSAMPLE = {"mode": ("bilinear", "nearest"), "align_corners": (True, False, None)}
NORM = {"eps": (1e-3, 1e-5, 1e-6, 1e-12), "weight": (None,), "bias": (None,), "training": (True,)}
VALUES: dict[str, tuple[Any, ...]] = {**CONV, **POOL, **UPSAMPLE, **NORM}
Outputs = Mapping[str, np.ndarray]  # of torch's layers before this one, by name


def diagnose(layer: Any, x: Any, expected: np.ndarray, earlier: Outputs, row_of: Any) -> str | None:
    """Return the mistake with which torch's layer gives our output, or None if it is unknown."""
    with torch.no_grad():
        for what, function, *arguments in _mistakes(layer, x, torch.from_numpy(expected), earlier):
            with suppress(Exception):  # not every mistake can be made in every layer
                if row_of(np.asarray(function(*arguments))).equal:
                    return str(what)
    return None


def _mistakes(layer: Any, x: Any, expected: Any, earlier: Outputs) -> Iterator[tuple[Any, ...]]:
    """Yield mistakes, each with the function and the arguments that give what it would give."""
    kind = type(layer).__name__
    x = x if isinstance(x, torch.Tensor) else expected  # a block may take a list
    known = {name: getattr(layer, name) for name in VALUES if hasattr(layer, name)}
    theirs = {name: "one" if isinstance(y, torch.Tensor) else y for name, y in known.items()}
    for chosen in (*combinations(known, 1), *combinations(known, 2)):
        for values in product(*(VALUES[name] for name in chosen)):
            changes = dict(zip(chosen, values, strict=True))
            changed = copy.deepcopy(layer)
            vars(changed).update(changes)
            texts = [f"{name} {changes[name]}, torch has {theirs[name]}" for name in chosen]
            yield ", ".join(texts).replace("eps ", "epsilon "), changed, x
    if kind == "Conv2d":
        sizes = [d * (k - 1) + 1 for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        rows, columns = lax.padtype_to_pads(x.shape[2:], sizes, layer.stride, "SAME")
        what = f"padding SAME, torch has {layer.padding} on both sides"
        options = layer.weight, layer.bias, layer.stride, 0, layer.dilation, layer.groups
        yield what, functional.conv2d, functional.pad(x, (*columns, *rows)), *options
    images = [output for output in earlier.values() if output.ndim == 4]
    if images and images[-1].size == x.numel():
        flat = x.reshape(images[-1].shape).permute(0, 2, 3, 1).flatten(1)
        yield "it flattens channels last, torch (C, H, W)", layer, flat
    functions = {name: getattr(functional, name) for name in ACTIVATIONS}
    for name, function in functions.items():
        yield f"an activation too many at the end: {name}", function, expected
        yield f"the activation is {name}, torch's is {kind}", function, x
        yield f"an activation too many before it: {name}", layer, function(x)
    yield "this layer is missing: its output is its input", torch.as_tensor, x
    yield "the shortcut is not added", torch.sub, expected, x
    yield "a shortcut is added, which torch does not have", torch.add, expected, x
    before = [(n, torch.from_numpy(o)) for n, o in earlier.items() if o.shape == tuple(x.shape)]
    for name, inputs in reversed(before[-4:]):
        between = f"between {name} and this layer"
        yield f"an activation {between} is missing", layer, inputs
        for activation, function in functions.items():
            yield f"the activation {between} is {activation}", layer, function(inputs)
    for shift in range(1, expected.shape[1] if expected.ndim == 4 else 0):
        what = f"swapped branches: torch's last {shift} channels come first"
        yield what, torch.roll, expected, shift, 1
    for name, output in earlier.items():
        what = f"its output is that of torch's {name}: layers are swapped, or one is left out"
        yield what, torch.from_numpy, output
