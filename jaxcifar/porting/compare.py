"""Compare the output of every named layer in jaxcifar and in torch, and name the mistake."""

import copy
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from itertools import combinations, product
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from etils import epy
from flax.traverse_util import flatten_dict
from jax import lax

from jaxcifar.errors import UserError
from jaxcifar.files import networks, torch_names, weights

with epy.lazy_imports():
    import torch
    from torch.nn import functional

    from jaxcifar.porting import torch_models

# Relative to the largest value in torch's output: float32 on CPU, sums in another order.
LAYER_TOLERANCE = 1e-4
LOGITS_TOLERANCE = 2e-5
LOGITS = "logits"
ACTIVATIONS = ("relu", "relu6", "leaky_relu", "gelu", "silu", "hardswish", "sigmoid", "tanh", "elu")
# Attributes of torch's layers, and the values that a mistake gives them.
CONV = {"padding": (0, 1, 2, 3), "stride": (1, 2, 3, 4), "dilation": (1, 2, 3)}
POOL = {"ceil_mode": (False, True), "count_include_pad": (False, True)}
UPSAMPLE = {"mode": ("bilinear", "nearest"), "align_corners": (True, False, None)}
NORM = {"eps": (1e-3, 1e-5, 1e-6, 1e-12), "weight": (None,), "bias": (None,), "training": (True,)}
VALUES: dict[str, tuple[Any, ...]] = {**CONV, **POOL, **UPSAMPLE, **NORM}
Outputs = Mapping[str, np.ndarray]  # of torch's layers before this one, by name


class Row(NamedTuple):
    """The comparison of one layer's outputs."""

    name: str  # of the module in torch, or "logits"
    kind: str  # torch's class
    shape: tuple[int, ...]  # torch's, without the batch
    largest: float  # absolute value in torch's output
    difference: float  # the largest; infinite if shapes differ or not all is finite
    relative: float  # the difference divided by the largest value
    tolerance: float  # for the relative difference

    @property
    def equal(self) -> bool:
        """Whether the outputs are within the tolerance; NaN is not."""
        return self.relative <= self.tolerance


Comparison = tuple[list[Row], str | None]  # and the mistake that the first wrong row looks like


def torch_module(loaded: weights.Weights, against: str | None) -> Any:
    """Return the built-in torch model, or the user's own, with the weights, in eval mode."""
    if against is None:
        module = torch_models.create_torch_model(loaded.model, num_classes=loaded.num_classes)
    else:
        module = networks.call(against, "--against", {"num_classes": loaded.num_classes})
    arrays = weights.to_torch(loaded._replace(torch_dtypes={}))  # in float32
    try:
        module.load_state_dict({key: torch.from_numpy(a) for key, a in arrays.items()}, strict=True)
        return module.float().eval()
    except Exception as error:  # the user's code may raise anything
        raise UserError(f"{against} does not take these weights: {error}") from error


def compare(loaded: weights.Weights, module: Any, images: np.ndarray) -> Comparison:
    """Return a row for each torch layer or block of the same name in jaxcifar, in torch's order.

    ``images`` are normalised float32 ``(N, H, W, C)``. The last row is that of the logits.
    """
    ours, expected = _our_outputs(loaded, images), _torch_outputs(module, images)
    calls = Counter(name for name, *_ in expected)
    rows, earlier, what = list[Row](), dict[str, np.ndarray](), None
    for name, layer, x, output in expected:
        index = sum(row.name == name for row in rows)  # torch may apply a layer again
        each = len(ours.get(name, ())) // calls[name]  # more than 1 if a class calls its parent's
        if each:
            result = ours[name][each * (index + 1) - 1]
            rows.append(_row(name, type(layer).__name__, result, output))
            if not rows[-1].equal and all(each.equal for each in rows[:-1]):
                what = _diagnose(name, layer, x, output, earlier, result)
        earlier[name] = output
    return rows, what


def without_dropout(call: Any, inputs: Any, options: Any, context: Any) -> Any:
    """Let Dropout give its input, for ``nn.intercept_methods``."""
    is_dropout = isinstance(context.module, nn.Dropout) and context.method_name == "__call__"
    return inputs[0] if is_dropout else call(*inputs, **options)


def compare_training(loaded: weights.Weights, module: Any, images: np.ndarray) -> Comparison:
    """Compare the running statistics after one training step without dropout."""
    step = jax.jit(partial(loaded.build().apply, train=True, mutable=["batch_stats"]))
    with jax.default_matmul_precision("highest"), nn.intercept_methods(without_dropout):
        _, statistics = step(loaded.variables, images)
    ours = torch_names.torch_view(statistics)
    before = {key: value.numpy().copy() for key, value in module.state_dict().items()}
    module.train()
    for layer in module.modules():
        layer.train(layer.training and not isinstance(layer, torch.nn.modules.dropout._DropoutNd))
    _run(module, images)
    after = {key: value.numpy() for key, value in module.eval().state_dict().items()}
    rows = [_row(key, "after a step", ours[key][None], after[key][None]) for key in ours]
    wrong = [row.name for row in rows if not row.equal]
    mean = next((name for name in wrong if name.endswith("mean")), None)
    if mean is None:
        return rows, "the running variance is the biased one" if wrong else None
    share = np.median((ours[mean] - before[mean]) / (after[mean] - before[mean]))
    momentum = module.get_submodule(mean.rpartition(".")[0]).momentum
    return rows, f"momentum {share * momentum:.3g}, torch has {momentum:g}"


def table(rows: list[Row]) -> str:
    """Return the rows as aligned text."""
    line = f"{{:{max(len(row.name) for row in rows)}}}  {{:12}} {{:>12}} {{:>9}} {{:>8}} {{:>8}}"
    lines = [line.format("layer", "kind", "output", "largest", "off by", "rel.")]
    for row in rows:
        numbers = f"{row.largest:.3g}", f"{row.difference:.1e}", f"{row.relative:.1e}"
        text = line.format(row.name, row.kind, "x".join(map(str, row.shape)), *numbers)
        lines.append(text if row.equal else f"{text}  above {row.tolerance:g}")
    return "\n".join(lines)


def _our_outputs(loaded: weights.Weights, images: np.ndarray) -> dict[str, list[np.ndarray]]:
    """Return the outputs of each call by torch's names and in torch's axes."""
    options = {"capture_intermediates": True, "mutable": "intermediates"}
    apply = jax.jit(partial(loaded.build().apply, train=False, **options))
    with jax.default_matmul_precision("highest"):  # plain sums, as torch's
        _, captured = apply(loaded.variables, images)
    outputs = flatten_dict(captured["intermediates"]).items()
    return {
        ".".join(path[:-1]) or LOGITS: [
            np.asarray(x).transpose(0, 3, 1, 2) if x.ndim == 4 else np.asarray(x) for x in values
        ]
        for path, values in outputs
        if path[-1] == "__call__" and all(hasattr(value, "ndim") for value in values)
    }


def _torch_outputs(module: Any, images: np.ndarray) -> list[tuple[str, Any, Any, np.ndarray]]:
    """Return name, layer, input and output of each call; a Sequential's is its last layer's."""
    outputs = list[tuple[str, Any, Any, np.ndarray]]()
    names = {layer: name or LOGITS for name, layer in module.named_modules()}

    def keep(layer: Any, inputs: Any, output: Any) -> None:
        nested = isinstance(layer, torch.nn.Sequential) and layer is not module
        if layer in names and not nested and isinstance(output, torch.Tensor):
            value = output.clone().numpy()  # the next layer may work in place
            outputs.append((names[layer], layer, inputs[0], value))

    for layer in names:  # so that the inputs stay
        vars(layer).update(inplace=False)
    with torch.nn.modules.module.register_module_forward_hook(keep):
        _run(module, images)
    return outputs


def _run(module: Any, images: np.ndarray) -> None:
    try:
        with torch.no_grad():
            module(torch.tensor(images).permute(0, 3, 1, 2).contiguous())
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise UserError(f"torch's model fails: {type(error).__name__}: {error}") from error


def _row(name: str, kind: str, output: np.ndarray, expected: np.ndarray) -> Row:
    difference, largest = np.inf, float(np.max(np.abs(expected), initial=0))
    if output.shape == expected.shape and np.isfinite([output, expected]).all():
        difference = float(np.max(np.abs(output - expected), initial=0))
    relative = difference / largest if difference and largest else difference and np.inf
    tolerance = LOGITS_TOLERANCE if name == LOGITS else LAYER_TOLERANCE
    return Row(name, kind, expected.shape[1:], largest, difference, relative, tolerance)


def _diagnose(
    name: str, layer: Any, x: Any, expected: np.ndarray, earlier: Outputs, ours: np.ndarray
) -> str | None:
    """Return the mistake with which torch's layer gives our output, or None if it is unknown."""
    with torch.no_grad():
        for what, function, *arguments in _mistakes(layer, x, torch.from_numpy(expected), earlier):
            with suppress(Exception):  # not every mistake can be made in every layer
                if _row(name, "", ours, np.asarray(function(*arguments))).equal:
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
