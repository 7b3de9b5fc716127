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
    tolerance: float  # of `relative`

    @property
    def relative(self) -> float:
        """The difference divided by the largest value."""
        if not self.difference or not self.largest:
            return np.inf if self.difference else 0.0
        return self.difference / self.largest

    @property
    def equal(self) -> bool:
        """Whether the difference is within the tolerance."""
        return self.relative <= self.tolerance


def torch_module(loaded: Weights, against: str | None) -> Any:
    """Return the built-in torch model, or ``FILE.py:NAME``, with the weights, in eval mode."""
    if against is None:
        module = torch_models.create_torch_model(loaded.model, num_classes=loaded.num_classes)
    else:
        module = _build(against)
    arrays = torch_names.to_torch(loaded.variables, loaded.build())  # in float32
    tensors = {key: torch.from_numpy(array) for key, array in arrays.items()}
    try:
        module.load_state_dict(tensors, strict=True)
    except Exception as error:
        raise UserError(f"{against} does not take these weights: {error}") from error
    return module.float().eval()


def compare(loaded: Weights, module: Any, images: np.ndarray) -> list[Row]:
    """Return a row for each torch layer or block of the same name in jaxcifar, in torch's order.

    ``images`` are normalised float32 ``(N, 32, 32, 3)``. The last row is that of the logits.
    """
    ours = _our_outputs(loaded, images)
    outputs = _torch_outputs(module, images)
    return [_row(name, kind, ours[name], output) for name, kind, output in outputs if name in ours]


def layers(loaded: Weights) -> set[str]:
    """Return the names of the layers that have parameters."""
    return {key.rpartition(".")[0] for key in torch_names.leaves(loaded.build())}


def table(rows: list[Row]) -> str:
    """Return the rows as aligned text."""
    width = max(len(row.name) for row in rows)
    head = f"{'layer':{width}}  {'kind':12} {'output':>12} {'largest':>9} {'off by':>8} {'rel.':>8}"
    lines = [head]
    for row in rows:
        shape = "x".join(map(str, row.shape))
        mark = "" if row.equal else f"  above {row.tolerance:g}"
        lines.append(
            f"{row.name:{width}}  {row.kind:12} {shape:>12} {row.largest:9.3g}"
            f" {row.difference:8.1e} {row.relative:8.1e}{mark}"
        )
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
        kind = type(module).__name__
        raise UserError(f"--against {against}: {name}() gives a {kind}, expected a torch module")
    return module


def _our_outputs(loaded: Weights, images: np.ndarray) -> dict[str, np.ndarray]:
    """Return outputs by torch's names and in torch's axes."""
    model = loaded.build()
    options = {"train": False, "capture_intermediates": True, "mutable": "intermediates"}
    with jax.default_matmul_precision("highest"):  # plain sums, as torch's
        apply = jax.jit(lambda variables, images: model.apply(variables, images, **options)[1])
        outputs = flatten_dict(apply(loaded.variables, images)["intermediates"])
    return {
        ".".join(path[:-1]) or LOGITS: _channels_first(np.asarray(output[0]))
        for path, output in outputs.items()
    }


def _torch_outputs(module: Any, images: np.ndarray) -> list[tuple[str, str, np.ndarray]]:
    """Return the name, class and output of each layer; a Sequential's is its last layer's."""
    outputs: list[tuple[str, str, np.ndarray]] = []
    handles = []
    for name, layer in module.named_modules():

        def keep(layer: Any, _: Any, output: Any, name: str = name or LOGITS) -> None:
            if isinstance(output, torch.Tensor):  # cloned: the next layer may work in place
                outputs.append((name, type(layer).__name__, output.clone().numpy()))

        if not name or not isinstance(layer, torch.nn.Sequential):
            handles.append(layer.register_forward_hook(keep))
    try:
        with torch.no_grad():
            module(torch.from_numpy(np.ascontiguousarray(_channels_first(images))))
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise UserError(f"torch's model fails: {type(error).__name__}: {error}") from error
    finally:
        for handle in handles:
            handle.remove()
    return outputs


def _row(name: str, kind: str, ours: np.ndarray, torchs: np.ndarray) -> Row:
    tolerance = LOGITS_TOLERANCE if name == LOGITS else LAYER_TOLERANCE
    finite = np.isfinite(torchs)
    largest = float(np.max(np.abs(torchs), where=finite, initial=0))
    difference = np.inf
    if ours.shape == torchs.shape and np.array_equal(ours[~finite], torchs[~finite], True):
        difference = float(np.max(np.abs(ours[finite] - torchs[finite]), initial=0))
    return Row(name, kind, torchs.shape[1:], largest, difference, tolerance)


def _channels_first(array: np.ndarray) -> np.ndarray:
    return array.transpose(0, 3, 1, 2) if array.ndim == 4 else array
