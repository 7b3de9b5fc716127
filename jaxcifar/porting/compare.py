"""Run a model in jaxcifar and in torch, and compare the output of every named layer."""

import importlib.util
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epy
from flax.traverse_util import flatten_dict

from jaxcifar.errors import UserError
from jaxcifar.files import torch_names
from jaxcifar.files.weights import Weights

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
    largest: float  # finite absolute value in torch's output
    difference: float  # the largest; infinite if shapes, NaNs or infinities differ
    relative: float  # the difference divided by the largest value
    tolerance: float

    @property
    def equal(self) -> bool:
        """Whether the relative difference is within the tolerance."""
        return self.relative <= self.tolerance


def torch_module(loaded: Weights, against: str | None) -> Any:
    """Return the built-in torch model, or ``FILE.py:NAME``, with the weights, in eval mode."""
    if against is None:
        module = torch_models.create_torch_model(loaded.model, num_classes=loaded.num_classes)
    else:
        module = _build(against)
    arrays = torch_names.to_torch(loaded.variables, loaded.build())  # in float32
    try:
        module.load_state_dict({key: torch.from_numpy(a) for key, a in arrays.items()}, strict=True)
    except Exception as error:  # the user's code may raise anything
        raise UserError(f"{against} does not take these weights: {error}") from error
    return module.float().eval()


def compare(loaded: Weights, module: Any, images: np.ndarray) -> list[Row]:
    """Return a row for each torch layer or block of the same name in jaxcifar, in torch's order.

    ``images`` are normalised float32 ``(N, 32, 32, 3)``. The last row is that of the logits.
    """
    ours, expected = _our_outputs(loaded, images), _torch_outputs(module, images)
    return [_row(name, kind, ours[name], out) for name, kind, out in expected if name in ours]


def layers(loaded: Weights) -> set[str]:
    """Return the names of the layers that have parameters."""
    return {key.rpartition(".")[0] for key in torch_names.leaves(loaded.build())}


def table(rows: list[Row]) -> str:
    """Return the rows as aligned text."""
    line = f"{{:{max(len(row.name) for row in rows)}}}  {{:12}} {{:>12}} {{:>9}} {{:>8}} {{:>8}}"
    lines = [line.format("layer", "kind", "output", "largest", "off by", "rel.")]
    for row in rows:
        numbers = f"{row.largest:.3g}", f"{row.difference:.1e}", f"{row.relative:.1e}"
        text = line.format(row.name, row.kind, "x".join(map(str, row.shape)), *numbers)
        lines.append(text if row.equal else f"{text}  above {row.tolerance:g}")
    return "\n".join(lines)


def _build(against: str) -> Any:
    file, _, name = against.rpartition(":")
    spec = importlib.util.spec_from_file_location("against", file) if Path(file).is_file() else None
    if spec is None or spec.loader is None:
        raise UserError(f"--against {against}: expected FILE.py:NAME of an existing file")
    source = importlib.util.module_from_spec(spec)
    sys.path.append(str(Path(file).absolute().parent))  # for what it imports from beside it
    sys.modules[spec.name] = source  # for its dataclasses
    try:
        spec.loader.exec_module(source)
        module = getattr(source, name)()
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise UserError(f"--against {against}: {type(error).__name__}: {error}") from error
    if not isinstance(module, torch.nn.Module):
        raise UserError(f"--against {against}: {name}() gives a {type(module).__name__}, no module")
    return module


def _our_outputs(loaded: Weights, images: np.ndarray) -> dict[str, np.ndarray]:
    """Return outputs by torch's names and in torch's axes."""
    model, collection = loaded.build(), "intermediates"
    options = {"train": False, "capture_intermediates": True, "mutable": collection}
    with jax.default_matmul_precision("highest"):  # plain sums, as torch's
        apply = jax.jit(lambda *arguments: model.apply(*arguments, **options)[1][collection])
        outputs = flatten_dict(apply(loaded.variables, images)).items()
    return {".".join(path[:-1]) or LOGITS: _channels_first(value) for path, (value,) in outputs}


def _torch_outputs(module: Any, images: np.ndarray) -> list[tuple[str, str, np.ndarray]]:
    """Return the name, class and output of each layer; a Sequential's is its last layer's."""
    outputs: list[tuple[str, str, np.ndarray]] = []
    names = {layer: name or LOGITS for name, layer in module.named_modules()}

    def keep(layer: Any, _: Any, output: Any) -> None:
        nested = isinstance(layer, torch.nn.Sequential) and layer is not module
        if layer in names and not nested and isinstance(output, torch.Tensor):
            value = output.clone().numpy()  # the next layer may work in place
            outputs.append((names[layer], type(layer).__name__, value))

    try:
        with torch.nn.modules.module.register_module_forward_hook(keep), torch.no_grad():
            module(torch.from_numpy(np.ascontiguousarray(_channels_first(images))))
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise UserError(f"torch's model fails: {type(error).__name__}: {error}") from error
    return outputs


def _row(name: str, kind: str, output: np.ndarray, expected: np.ndarray) -> Row:
    finite, difference = np.isfinite(expected), np.inf
    largest = float(np.max(np.abs(expected), where=finite, initial=0))
    if output.shape == expected.shape and np.array_equal(output[~finite], expected[~finite], True):
        difference = float(np.max(np.abs(output[finite] - expected[finite]), initial=0))
    relative = difference / largest if difference and largest else difference and np.inf
    tolerance = LOGITS_TOLERANCE if name == LOGITS else LAYER_TOLERANCE
    return Row(name, kind, expected.shape[1:], largest, difference, relative, tolerance)


def _channels_first(array: Any) -> np.ndarray:
    return np.asarray(array).transpose(0, 3, 1, 2) if array.ndim == 4 else np.asarray(array)
