"""Weights of a run, a ported checkpoint, a torch file or a safetensors file."""

import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import numpy as np
import optax
import tensorstore
from orbax.checkpoint import v1 as ocp

from jaxcifar.config.train import is_own
from jaxcifar.core.models import INPUT_SHAPE
from jaxcifar.core.state import TrainState, short_repr, state_from
from jaxcifar.errors import UserError, difference, one_line
from jaxcifar.files import networks, pretrained, torch_files, torch_names
from jaxcifar.files.checkpoints import DIGEST, METADATA_FILE, last_step, read_info
from jaxcifar.files.digest import digest

Format = Literal["orbax", "safetensors", "torch"]

log = logging.getLogger(__name__)


@short_repr
class Weights(NamedTuple):
    """A model's variables, and what else their source holds."""

    model: str  # a key of MODELS, or the user's own code
    num_classes: int
    variables: dict[str, Any]  # {"params": ..., "batch_stats": ...}, of numpy arrays
    adam: optax.ScaleByAdamState | None = None
    learning_rate: float | None = None  # where a torch optimizer stopped
    torch_dtypes: Mapping[str, str] = MappingProxyType({})  # by torch key, if unusual; "" is none
    dataset: str | None = None  # that a run was trained on
    class_names: tuple[str, ...] | None = None  # in the order of the logits
    input_shape: tuple[int, ...] = INPUT_SHAPE
    source_digests: Mapping[str, tuple[np.dtype, str]] = MappingProxyType({})  # by torch key

    def check_classes(self, source: str, dataset: str, names: Sequence[str]) -> None:
        """Raise ``UserError`` if a data set has more or fewer classes; warn if others."""
        if self.num_classes != len(names):
            raise UserError(f"{source} has {self.num_classes} classes, {dataset} has {len(names)}")
        if changes := difference(self.class_names or names, names, source, dataset):
            log.warning("the classes of %s are not those of %s: %s", source, dataset, changes)

    def build(self) -> nn.Module:
        """Return the model, in float32."""
        return networks.create(self.model, num_classes=self.num_classes)

    def state(self) -> TrainState:
        """Return a state for evaluation, without an optimizer."""
        return state_from(self.variables, self.build(), optax.identity())


def load(
    path: str | Path,
    *,
    model: str | None = None,
    input_shape: tuple[int, ...] = INPUT_SHAPE,
    ema: bool = False,
    prefix: str | None = None,
    optimizer: bool = False,
    digests: bool = False,
) -> Weights:
    """Read the weights of a run, ``RUN:best``, a checkpoint, a file, or ``"pretrained"``.

    ``model`` is the expected one, ``input_shape`` of its images. ``ema`` and ``prefix`` choose one
    of several copies in a torch file, ``optimizer`` reads Adam's state, too, ``digests`` computes
    those of the source. Raises ``UserError`` or ``OSError`` without good weights.
    """
    path = pretrained.resolve(path, model)
    is_folder = path.is_dir()
    if ema and is_folder:
        raise UserError(f"--ema is for torch files, and {path} is a folder")
    tensors, state, info = _read_orbax(path) if is_folder else torch_files.read(path)
    saved = info.get("model")
    if saved and is_own(saved) and model is None:
        raise UserError(f"{path} is of your own network {saved}: name it with --model")
    name, num_classes, found = torch_names.identify(
        *(tensors, path, model or saved), input_shape=input_shape, ema=ema, prefix=prefix
    )
    for note in found.notes:
        log.info("%s: %s", path, note)
    network = networks.create(name, num_classes=num_classes)
    leaves = torch_names.leaves(network, input_shape)
    try:
        copy = {key: tensors[name] for key, name in found.keys.items()}
        arrays = torch_names.to_arrays(copy, leaves, path)
        variables = torch_names.to_flax(arrays, network, input_shape=input_shape)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    for tied in _tied(arrays):
        log.info("%s: %s are one tensor, here each has its own copy", path, " and ".join(tied))
    adam, rate = None, info.get("learning_rate_of_torch")
    if optimizer and state is not None and not is_folder and found.averaged:
        log.info("%s: left the optimizer: it belongs to the weights before averaging", path)
    elif optimizer and state is not None:
        try:
            adam, rate = (state, rate) if is_folder else torch_names.adam_to_flax(state, network)
            suffix = "" if rate is None else f", learning rate {rate:g}"
            log.info("%s: took Adam's moments after %d steps%s", path, adam.count, suffix)
        except Exception as error:  # it can be anything, and the weights do not need it
            reason = error if isinstance(error, UserError) else f"it is malformed ({error!r:.80})"
            log.warning("%s: left the optimizer: %s", path, reason)
    dtypes = {key: array.dtype.name for key, array in arrays.items()}
    usual = {k: "int64" if x.dtype.kind == "i" else "float32" for k, x in leaves.items()}
    unusual = {key: dtypes.get(key, "") for key in usual if dtypes.get(key, "") != usual[key]}
    return Weights(
        *(name, num_classes, variables, adam, rate, info.get("torch_dtypes", unusual)),
        dataset=info.get("dataset"),
        class_names=_class_names(info.get("class_names"), num_classes),
        input_shape=input_shape,
        source_digests={k: (a.dtype, digest(a)) for k, a in arrays.items()} if digests else {},
    )


def format_of(path: str | Path) -> Format:
    """Return the format of a file's suffix, without one Orbax's; else raise ``UserError``."""
    suffix = Path(path).suffix.lower()
    if suffix in torch_files.SUFFIXES:
        return "torch"
    if suffix not in ("", ".safetensors"):
        known = ", ".join((*torch_files.SUFFIXES, ".safetensors"))
        raise UserError(
            f"{path}: the suffix {suffix} is none of {known}, nor is it none: pass --to"
        )
    return "safetensors" if suffix else "orbax"


def write(path: str | Path, weights: Weights, format: Format, metadata: Mapping[str, Any]) -> None:
    """Write what ``load`` reads; only Orbax keeps Adam's state and the metadata, which is JSON."""
    path, names = Path(path), weights.class_names
    try:
        if format == "orbax":
            # Adam's state is where a run's checkpoint has it.
            tree = weights.variables | ({"opt_state": (weights.adam,)} if weights.adam else {})
            info = dict(metadata) | {"model": weights.model, "num_classes": weights.num_classes}
            info |= {"class_names": names, "torch_dtypes": dict(weights.torch_dtypes)}
            info |= {"learning_rate_of_torch": weights.learning_rate, DIGEST: digest(tree)}
            context = ocp.Context()
            # Weights hardly compress, and the buffers would take as much memory as they do.
            context.array.saving.use_compression = False
            with context:
                ocp.save(path.absolute(), tree, custom_metadata=info)
        elif format == "torch":
            torch_files.write_torch(path, to_torch(weights))
        else:
            texts = {"model": weights.model} | ({"class_names": json.dumps(names)} if names else {})
            torch_files.write_safetensors(path, to_torch(weights), texts)
    except UserError:
        raise
    except Exception as error:  # a full disk raises another exception in each library
        advice = "free some space, or choose another folder"
        raise UserError(f"the weights could not be written ({error!s:.150}): {advice}") from error


def to_torch(weights: Weights) -> dict[str, np.ndarray]:
    """Return the state dict, in torch's order and with the dtypes of the source."""
    return torch_names.to_torch(
        weights.variables,
        weights.build(),
        input_shape=weights.input_shape,
        dtypes=weights.torch_dtypes,
    )


def _read_orbax(path: Path) -> tuple[dict[str, np.ndarray], Any, dict[str, Any]]:
    run = path.absolute() / "checkpoints"
    parent = run if run.is_dir() else path.absolute()
    step = last_step(parent)
    folder = parent if step is None else parent / str(step)
    if step is None and not (folder / METADATA_FILE).exists():
        raise UserError(f"{path} holds no checkpoint: give a run's folder or a checkpoint")
    try:
        info = read_info(folder)
        for manifest in folder.glob("*/manifest.ocdbt"):  # Orbax reports each bad read with noise
            base = f"{manifest.parent.as_uri()}/"
            store = tensorstore.KvStore.open({"driver": "ocdbt", "base": base}).result()
            if not all(store.read(key).result().value for key in store.list().result()):
                raise ValueError("a file is missing")
        leaves = ocp.metadata(folder).metadata
        tree = ocp.load(folder, jax.tree.map(lambda x: np.empty(x.shape, x.dtype), leaves))
        if info[DIGEST] != digest(tree):
            raise ValueError("its values do not have the digest of its metadata")
        arrays = torch_names.torch_view(
            {name: tree.get(name, {}) for name in ("params", "batch_stats")}
        )
        adam = optax.ScaleByAdamState(**tree["opt_state"][0]) if "opt_state" in tree else None
    except Exception as error:  # whatever tensorstore and Orbax raise on bad bytes
        problem = f"is no whole checkpoint ({str(error) or repr(error):.150}): copy it again"
        raise UserError(f"{folder} {problem}") from error
    return arrays, adam, info


def _tied(arrays: Mapping[str, np.ndarray]) -> list[list[str]]:
    """Return the keys that share a tensor in the file."""
    owners: dict[Any, list[str]] = {}
    for key, array in arrays.items():
        place = array.__array_interface__["data"][0]
        owners.setdefault((place, array.shape, array.strides), []).append(key)
    return [keys for keys in owners.values() if len(keys) > 1]


def _class_names(value: Any, count: int) -> tuple[str, ...] | None:
    if isinstance(value, str):
        with suppress(ValueError, RecursionError):
            value = json.loads(value)
    valid = isinstance(value, list) and len(value) == count
    return tuple(one_line(str(name)) for name in value) if valid else None
