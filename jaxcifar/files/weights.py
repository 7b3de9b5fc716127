"""Weights from wherever they are: a run, a ported checkpoint, a torch or safetensors file."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import numpy as np
import optax
from orbax.checkpoint import v1 as ocp

from jaxcifar.core.models import create_model
from jaxcifar.core.state import TrainState, state_from
from jaxcifar.errors import UserError, difference, one_line
from jaxcifar.files import checkpoints as checkpoint
from jaxcifar.files import checksums, torch_files
from jaxcifar.files import torch_names as torch_port
from jaxcifar.runtime import process as runtime

Format = Literal["orbax", "safetensors", "torch"]


class Weights(NamedTuple):
    """A model's variables, and what else their source knows.

    Attributes:
      model: its name, for ``create_model``.
      num_classes: length of the logits.
      variables: ``{"params": ..., "batch_stats": ...}`` of numpy arrays, checked against the model.
      adam: Adam's moments and count, or None.
      learning_rate: where a torch optimizer stopped, or None.
      torch_dtypes: of torch keys that the source keeps in another dtype than the model does.
      notes: a line for each thing that a user should know of the source.
      optimizer_note: the line on Adam's moments, for who goes on training; or None.
      dataset: what a run was trained on, or None.
      class_names: in the order of the logits, or None where the source does not tell.
    """

    model: str
    num_classes: int
    variables: dict[str, Any]
    adam: optax.ScaleByAdamState | None = None
    learning_rate: float | None = None
    torch_dtypes: Mapping[str, str] = MappingProxyType({})
    notes: tuple[str, ...] = ()
    optimizer_note: str | None = None
    dataset: str | None = None
    class_names: tuple[str, ...] | None = None

    @property
    def all_notes(self) -> tuple[str, ...]:
        """The notes, and the optimizer's."""
        return self.notes if self.optimizer_note is None else (*self.notes, self.optimizer_note)

    def tell(self, source: str, *, optimizer: bool = False) -> None:
        """Prints the notes, or all of them, for a command that was given ``source``."""
        for note in self.all_notes if optimizer else self.notes:
            runtime.note(f"{source}: {note}")

    def require_classes(self, source: str, dataset: str, count: int) -> None:
        """Checks that they are for as many classes as a data set has.

        Raises:
          UserError: they are not.
        """
        if self.num_classes != count:
            raise UserError(f"{source} has {self.num_classes} classes, {dataset} has {count}")

    def warn_of_names(self, source: str, dataset: str, names: Sequence[str]) -> None:
        """Prints a line where their classes are known to be other ones than the data set's."""
        differ = difference(self.class_names or names, names, source, dataset)
        if differ:
            runtime.note(f"Warning: the classes of {source} are not those of {dataset}: {differ}")

    def build(self) -> nn.Module:
        """The model that they fit, in float32."""
        return create_model(self.model, num_classes=self.num_classes)

    def state(self) -> TrainState:
        """The model and the variables as a state to evaluate, without an optimizer."""
        return state_from(self.variables, self.build(), optax.identity())


def load(path: str | Path, *, model: str | None = None, ema: bool = False) -> Weights:
    """Reads and checks weights.

    Args:
      path: a run's folder (its last checkpoint), one checkpoint's folder, or a file:
        ``.ckpt``, ``.pt``, ``.pth`` or ``.safetensors``.
      model: what it has to be; None works it out.
      ema: take a torch file's exponential moving average.

    Raises:
      UserError: there are none, or they fit no model or not the wanted one.
      OSError: the file cannot be opened.
    """
    path = Path(path)
    if path.is_dir():
        if ema:
            raise UserError(f"--ema is for torch files, and {path} is a folder")
        return _load_orbax(path, model)
    return _load_file(path, model, ema=ema)


def format_of(path: Path) -> Format:
    """The format that a name asks for; without a suffix it is a folder of Orbax's."""
    if path.suffix in torch_files.TORCH_SUFFIXES:
        return "torch"
    return "safetensors" if path.suffix == ".safetensors" else "orbax"


def write(path: Path, weights: Weights, format: Format, metadata: Mapping[str, Any]) -> None:
    """Writes what ``load`` reads.

    Args:
      path: a new file or folder.
      weights: a torch or safetensors file holds them without Adam's moments.
      format: of the file.
      metadata: for Orbax: JSON kept beside its own.

    Raises:
      UserError: it cannot be written.
    """
    try:
        if format == "orbax":
            save(path, weights, metadata)
        elif format == "safetensors":
            info = {"model": weights.model}
            if weights.class_names is not None:
                info["class_names"] = json.dumps(weights.class_names)
            torch_files.write_safetensors(path, to_torch(weights), info)
        else:
            torch_files.write_torch(path, to_torch(weights))
    except UserError:
        raise
    except Exception as error:  # a full disk comes as another exception from each library
        raise UserError(f"{path.parent} cannot be written to: {error}") from error


def save(path: Path, weights: Weights, metadata: Mapping[str, Any]) -> None:
    """Writes an Orbax checkpoint that ``load`` reads, into a folder that is not there yet.

    ``metadata`` is JSON kept beside its own. ``write`` does the same, and more kindly on failure.
    """
    tree: dict[str, Any] = dict(weights.variables)
    if weights.adam is not None:
        tree["opt_state"] = (weights.adam,)  # where a run's checkpoint has it
    own = {
        "model": weights.model,
        "num_classes": weights.num_classes,
        "learning_rate_of_torch": weights.learning_rate,
        "torch_dtypes": dict(weights.torch_dtypes),
        "class_names": weights.class_names,
    }
    context = ocp.Context()
    # Weights hardly compress, and its buffers would take as much memory as they do.
    context.array.saving.use_compression = False
    with context:
        ocp.save(path.absolute(), tree, custom_metadata={**metadata, **own})
    checksums.write(path)


def to_torch(weights: Weights) -> dict[str, np.ndarray]:
    """The state dict, in torch's order, with the dtypes that torch had."""
    return torch_port.to_torch(weights.variables, weights.build(), dtypes=weights.torch_dtypes)


def _load_file(path: Path, name: str | None, *, ema: bool) -> Weights:
    file = torch_files.read(path, ema=ema)
    notes = list(file.notes)
    found, num_classes = torch_port.identify(file.state_dict, name, source=path)
    model = create_model(found, num_classes=num_classes)
    try:
        variables = torch_port.to_flax(file.state_dict, model)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    adam = learning_rate = optimizer_note = None
    if file.optimizer is not None:
        try:
            adam, learning_rate = torch_port.adam_to_flax(file.optimizer, model)
            optimizer_note = _took(adam, f"{learning_rate:g}")
        except Exception as error:  # its nest can hold anything, and the weights do not need it
            known = isinstance(error, UserError)
            what = str(error) if known else f"it is malformed ({error!r:.80})"
            optimizer_note = f"left the optimizer: {one_line(what)}"
    usual = {"float32", "int64"}
    dtypes = {
        key: array.dtype.name
        for key, array in file.state_dict.items()
        if array.dtype.name not in usual
    }
    if dtypes:
        notes.append(
            f"took {len(dtypes)} tensors of {', '.join(sorted(set(dtypes.values())))}"
            " into the model's dtypes, without a change of value"
        )
    names = _class_names(torch_files.read_metadata(path).get("class_names"), num_classes)
    return Weights(
        *(found, num_classes, variables, adam, learning_rate, dtypes, tuple(notes)),
        optimizer_note=optimizer_note,
        class_names=names,
    )


def _load_orbax(path: Path, name: str | None) -> Weights:
    folder = _checkpoint_folder(path)
    checksums.check(folder)
    try:
        meta = ocp.metadata(folder)
        abstract = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), meta.metadata)
        tree = ocp.load(folder, abstract)
        info = dict(meta.custom_metadata or {})
        torch_dtypes = {
            key: np.dtype(dtype).name for key, dtype in info.get("torch_dtypes", {}).items()
        }
        if checkpoint.DIGEST in info and info[checkpoint.DIGEST] != checkpoint.digest(tree):
            raise UserError(f"{folder} is damaged: its values are not those that were saved")
        if not {"params", "batch_stats"} <= tree.keys():
            raise UserError(f"{folder} is of another program: it has no params and batch_stats")
        state_dict = torch_port.torch_view({n: tree[n] for n in ("params", "batch_stats")})
        adam = optax.ScaleByAdamState(**tree["opt_state"][0]) if "opt_state" in tree else None
    except UserError:
        raise
    except Exception as error:  # whatever tensorstore and Orbax raise on bad bytes
        raise UserError(f"{folder} cannot be read ({error}): copy it again") from error
    found, num_classes = torch_port.identify(state_dict, name, source=path)
    model = create_model(found, num_classes=num_classes)
    variables = torch_port.to_flax(state_dict, model, copy=False)
    for moment in (adam.mu, adam.nu) if adam else ():
        if jax.tree.map(np.shape, moment) != jax.tree.map(np.shape, variables["params"]):
            raise UserError(f"{folder} has moments of Adam that do not fit its parameters")
    learning_rate = info.get("learning_rate_of_torch")
    rate = "starts anew" if learning_rate is None else f"{learning_rate:g}"
    return Weights(
        *(found, num_classes, variables, adam, learning_rate, torch_dtypes),
        optimizer_note=_took(adam, rate) if adam else None,
        dataset=info.get("dataset"),
        class_names=_class_names(info.get("class_names"), num_classes),
    )


def _took(adam: optax.ScaleByAdamState, learning_rate: str) -> str:
    return f"took Adam's moments after {adam.count} steps, learning rate {learning_rate}"


def _class_names(found: Any, count: int) -> tuple[str, ...] | None:
    """The names in a source's metadata, be they JSON text, if they are names for all classes."""
    if isinstance(found, str):
        try:
            found = json.loads(found)
        except ValueError:
            return None
    if not isinstance(found, list) or len(found) != count:
        return None
    return tuple(one_line(str(name)) for name in found)


def _checkpoint_folder(path: Path) -> Path:
    """The checkpoint in a folder: itself, or the last one of a run."""
    path = path.absolute()
    for parent in (path / "checkpoints", path):
        steps = [child for child in parent.glob("*") if child.name.isdigit() and child.is_dir()]
        if steps:
            return max(steps, key=lambda child: int(child.name))
    if not (path / "_CHECKPOINT_METADATA").exists():
        raise UserError(f"{path} holds no checkpoint: give a run's folder or a checkpoint")
    return path
