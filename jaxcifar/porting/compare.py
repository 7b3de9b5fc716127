"""Runs a model in jaxcifar and in torch and compares what every named layer gives."""

import importlib.util
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from jaxcifar.errors import UserError
from jaxcifar.files import torch_names as torch_port
from jaxcifar.files import weights
from jaxcifar.porting.torch_models import create_torch_model

# Of the largest value in torch's output: float32 on CPU, sums in another order.
LAYER_TOLERANCE = 1e-4
LOGITS_TOLERANCE = 2e-5
LOGITS = "logits"


class Row(NamedTuple):
    """One layer's outputs, compared.

    Attributes:
      name: torch's name of the module, or ``logits``.
      kind: torch's class.
      shape: torch's shape, without the batch.
      largest: finite absolute value in torch's output.
      difference: the largest absolute one; infinite if shapes, NaNs or infinities differ.
      tolerance: what ``relative`` may be.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    largest: float
    difference: float
    tolerance: float

    @property
    def relative(self) -> float:
        """The difference over the largest value."""
        if not self.difference or not self.largest:
            return np.inf if self.difference else 0.0
        return self.difference / self.largest

    @property
    def equal(self) -> bool:
        """Whether it is within the tolerance."""
        return self.relative <= self.tolerance


def torch_module(loaded: weights.Weights, against: str | None) -> Any:
    """The built-in torch model, or ``FILE.py:NAME``, with the weights, in eval mode.

    Raises:
      UserError: the user's class cannot be built or does not take the weights.
    """
    import torch

    if against is None:
        module = create_torch_model(loaded.model, num_classes=loaded.num_classes)
    else:
        module = _build(against)
    state_dict = torch_port.to_torch(loaded.variables, loaded.build())  # in float32
    tensors = {key: torch.from_numpy(array) for key, array in state_dict.items()}
    try:
        module.load_state_dict(tensors, strict=True)
    except Exception as error:
        raise UserError(f"{against} does not take these weights: {error}") from error
    return module.float().eval()


def compare(loaded: weights.Weights, module: Any, images: np.ndarray) -> list[Row]:
    """Runs both in evaluation mode.

    Args:
      loaded: the weights, for jaxcifar.
      module: the same in torch.
      images: normalised float32 ``(N, 32, 32, 3)``.

    Returns:
      A row for each of torch's layers and blocks that jaxcifar has under the same name, in
      torch's order, and at the end one for the logits.
    """
    ours = _our_outputs(loaded, images)
    rows = []
    for name, kind, theirs in _torch_outputs(module, images):
        if name in ours:
            rows.append(_row(name, kind, ours[name], theirs))
    return rows


def layers(loaded: weights.Weights) -> set[str]:
    """Names of the layers with parameters."""
    return {key.rpartition(".")[0] for key in torch_port.leaves(loaded.build())}


def table(rows: list[Row]) -> str:
    """The rows as aligned text."""
    width = max(len(row.name) for row in rows)
    lines = [
        f"{'layer':{width}}  {'kind':12} {'output':>12} {'largest':>9} {'off by':>8} {'rel.':>8}"
    ]
    for row in rows:
        shape = "x".join(map(str, row.shape))
        mark = "" if row.equal else f"  above {row.tolerance:g}"
        lines.append(
            f"{row.name:{width}}  {row.kind:12} {shape:>12} {row.largest:9.3g}"
            f" {row.difference:8.1e} {row.relative:8.1e}{mark}"
        )
    return "\n".join(lines)


def _build(against: str) -> Any:
    import torch

    file, _, name = against.rpartition(":")
    if not file or not Path(file).is_file():
        raise UserError(f"--against {against}: expected FILE.py:NAME of an existing file")
    spec = importlib.util.spec_from_file_location("against", file)
    if spec is None or spec.loader is None:
        raise UserError(f"--against {against}: {file} is no Python file")
    source = importlib.util.module_from_spec(spec)
    sys.path.append(str(Path(file).absolute().parent))  # for what it imports from beside it
    sys.modules[spec.name] = source  # for its dataclasses
    try:
        spec.loader.exec_module(source)
        module = getattr(source, name)()
    except (Exception, SystemExit) as error:  # the user's own code may raise anything
        raise UserError(f"--against {against}: {type(error).__name__}: {error}") from error
    if not isinstance(module, torch.nn.Module):
        raise UserError(f"--against {against}: {name}() gives a {type(module).__name__}, no module")
    return module


def _our_outputs(loaded: weights.Weights, images: np.ndarray) -> dict[str, np.ndarray]:
    """Outputs by torch's names and in torch's axes."""
    model = loaded.build()

    @jax.jit
    def apply(variables: Any, images: Any) -> Any:
        return model.apply(
            variables, images, train=False, capture_intermediates=True, mutable="intermediates"
        )[1]["intermediates"]

    with jax.default_matmul_precision("highest"):  # plain sums, as torch's
        outputs = flatten_dict(apply(loaded.variables, images))
    return {
        ".".join(path[:-1]) or LOGITS: _channels_first(np.asarray(output[0]))
        for path, output in outputs.items()
    }


def _torch_outputs(module: Any, images: np.ndarray) -> list[tuple[str, str, np.ndarray]]:
    import torch

    outputs: list[tuple[str, str, np.ndarray]] = []

    def hook(name: str) -> Any:
        def keep(layer: Any, inputs: Any, output: Any) -> None:
            if isinstance(output, torch.Tensor):  # cloned: the next layer may work in place
                outputs.append((name, type(layer).__name__, output.clone().numpy()))

        return keep

    handles = [
        layer.register_forward_hook(hook(name or LOGITS))
        for name, layer in module.named_modules()
        # The output of a Sequential inside is its last layer's.
        if not name or not isinstance(layer, torch.nn.Sequential)
    ]
    try:
        with torch.no_grad():
            module(torch.from_numpy(np.ascontiguousarray(_channels_first(images))))
    except (Exception, SystemExit) as error:  # the user's own code may raise anything
        raise UserError(f"torch's model fails: {type(error).__name__}: {error}") from error
    finally:
        for handle in handles:
            handle.remove()
    return outputs


def _row(name: str, kind: str, ours: np.ndarray, theirs: np.ndarray) -> Row:
    tolerance = LOGITS_TOLERANCE if name == LOGITS else LAYER_TOLERANCE
    finite = np.isfinite(theirs)
    largest = float(np.max(np.abs(theirs), where=finite, initial=0))
    difference = np.inf
    if ours.shape == theirs.shape and np.array_equal(ours[~finite], theirs[~finite], True):
        difference = float(np.max(np.abs(ours[finite] - theirs[finite]), initial=0))
    return Row(name, kind, theirs.shape[1:], largest, difference, tolerance)


def _channels_first(array: np.ndarray) -> np.ndarray:
    return array.transpose(0, 3, 1, 2) if array.ndim == 4 else array
