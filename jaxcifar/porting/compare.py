"""Run a model in jaxcifar and in torch, and compare the output of every named layer."""

from collections import Counter
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from etils import epy
from flax.traverse_util import flatten_dict

from jaxcifar.errors import UserError
from jaxcifar.files import networks, torch_names, weights
from jaxcifar.porting.diagnose import diagnose

with epy.lazy_imports():
    import torch

    from jaxcifar.porting import torch_models

# Relative to the largest value in torch's output: float32 on CPU, sums in another order.
LAYER_TOLERANCE = 1e-4
LOGITS_TOLERANCE = 2e-5
LOGITS = "logits"


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
                what = diagnose(layer, x, output, earlier, partial(_row, name, "", result))
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
