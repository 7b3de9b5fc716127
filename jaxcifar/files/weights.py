"""Weights of a run, a ported checkpoint, a torch file or a safetensors file."""

import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import numpy as np
import optax
from etils import epy
from orbax.checkpoint import v1 as ocp

from jaxcifar.config.train import is_own
from jaxcifar.core.models import INPUT_SHAPE
from jaxcifar.core.state import TrainState, short_repr, state_from
from jaxcifar.errors import UserError, difference, log, one_line
from jaxcifar.files import atomic, networks, torch_files, torch_names
from jaxcifar.files.checkpoints import DIGEST, METADATA_FILE, digest, read, steps
from jaxcifar.files.run import RunDirectory

with epy.lazy_imports():
    import pooch

Format = Literal["orbax", "safetensors", "torch"]
FORMATS: dict[str, Format] = dict.fromkeys((".ckpt", ".pt", ".pth", ".bin", ".t7", ".tar"), "torch")
FORMATS[".safetensors"] = "safetensors"
SHA256 = {  # of the pretrained weights
    "resnet50_layer4": "96f58bcc9f9f980cbd186eed416eb91c8f3ce5302e6467c9481f654cb45f3695",
    "vgg16": "daddb81e6e67d3abbb8d45c5b58886c58db592385797095b3a7d540ef12821aa",
}
IN_CLONE = Path(__file__).parents[2] / "weights"


@short_repr
class Weights(NamedTuple):
    """A model's variables, and what else their source holds."""

    model: str  # a key of MODELS, or the user's own code
    num_classes: int
    variables: dict[str, Any]  # {"params": ..., "batch_stats": ...}, of numpy arrays
    adam: optax.ScaleByAdamState | None = None
    learning_rate: float | None = None  # where a torch optimizer stopped
    torch_dtypes: Mapping[str, str] = MappingProxyType({})  # by torch key; "" is none
    dataset: str | None = None  # that a run was trained on
    class_names: tuple[str, ...] | None = None  # in the order of the logits
    input_shape: tuple[int, ...] = INPUT_SHAPE
    source: Mapping[str, np.ndarray] = MappingProxyType({})  # as read, by torch key

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
) -> Weights:
    """Read the weights of a run, ``RUN:best``, a checkpoint, a file, or ``"pretrained"``.

    ``ema`` and ``prefix`` choose a copy in a torch file; ``optimizer`` reads Adam's state, too.
    Raises ``UserError`` or ``OSError`` without good weights.
    """
    path = resolve(path, model)
    tensors, optimizers, info = _read_orbax(path) if path.is_dir() else torch_files.read(path)
    saved = info.get("model")
    if saved and is_own(saved) and model is None:
        raise UserError(f"{path} is of your own network {saved}: name it with --model")
    name, found = torch_names.identify(tensors, path, model or saved, input_shape, ema, prefix)
    variables, source = torch_names.to_tree(found.tensors, found.leaves, path)
    adam, rate = None, info.get("learning_rate_of_torch")
    if optimizer and optimizers:
        try:
            if found.averaged:
                raise UserError("it belongs to the weights before averaging")
            if path.is_dir():
                adam = optimizers[0]
            else:
                adam, rate = torch_names.adam_to_flax(optimizers, found.leaves)
            suffix = "" if rate is None else f", learning rate {rate:g}"
            log.info("%s: took Adam's moments after %d steps%s", path, adam.count, suffix)
        except Exception as error:  # it can be anything, and the weights do not need it
            reason = error if isinstance(error, UserError) else f"it is malformed ({error!r:.80})"
            log.warning("%s: left the optimizer: %s", path, reason)
    names: Any = info.get("class_names")
    with suppress(TypeError, ValueError, RecursionError):  # a safetensors file has them as JSON
        names = json.loads(names)
    fits = isinstance(names, list) and len(names) == found.num_classes
    dtypes = {key: source[key].dtype.name if key in source else "" for key in found.leaves}
    return Weights(
        *(name, found.num_classes, variables, adam, rate, info.get("torch_dtypes", dtypes)),
        dataset=info.get("dataset"),
        class_names=tuple(one_line(str(name)) for name in names) if fits else None,
        input_shape=input_shape,
        source=source,
    )


def resolve(path: str | Path, model: str | None) -> Path:
    """Return the path of ``RUN:best``, ``"pretrained"``, which may be downloaded, or a path."""
    run, _, which = str(path).rpartition(":")
    if which == "best" and not Path(path).exists():
        directory = RunDirectory(run)
        if (best := directory.best(directory.read_metrics())) is None:
            raise UserError(f"{run} has no checkpoint with a validation accuracy: pass it alone")
        return directory.checkpoints_dir / str(best["step"])
    if str(path) != "pretrained":
        return Path(path)
    if model not in SHA256:
        raise UserError(f"only {' and '.join(SHA256)} are pretrained: choose with --model")
    name = f"{model}.safetensors"
    for path in IN_CLONE / name, Path("weights", name):
        if path.exists() and pooch.file_hash(path) == SHA256[model]:
            return path
    entries = importlib.metadata.metadata("jaxcifar").get_all("Project-URL") or []
    url = f"{dict(entry.split(', ') for entry in entries)['weights']}/{name}"
    folder = pooch.os_cache("jaxcifar")
    try:
        http = pooch.HTTPDownloader(progressbar=True, timeout=8)
        return Path(pooch.retrieve(url, SHA256[model], name, folder, downloader=http))
    except Exception as error:  # of requests, the checksum, or the disk
        advice = f"put the file into {folder}, or pass its path"
        raise UserError(f"could not download {url} ({error}): {advice}") from error


def format_of(path: str | Path) -> Format:
    """Return the format of a file's suffix, without one Orbax's; else raise ``UserError``."""
    suffix = Path(path).suffix.lower()
    if suffix and suffix not in FORMATS:
        raise UserError(f"{path}: unknown format; use {', '.join(FORMATS)} or no suffix")
    return FORMATS.get(suffix, "orbax")


def write(path: str | Path, weights: Weights, format: Format, metadata: Mapping[str, Any]) -> None:
    """Write what ``load`` reads; only Orbax keeps Adam's state and the metadata, which is JSON."""
    path, names = Path(path), weights.class_names
    with atomic.explained(path, Exception):  # each library raises another one on a full disk
        if format == "orbax":
            # Adam's state is where a run's checkpoint has it.
            tree = weights.variables | ({"opt_state": (weights.adam,)} if weights.adam else {})
            info = dict(metadata) | {"model": weights.model, "num_classes": weights.num_classes}
            info |= {"class_names": names, "torch_dtypes": dict(weights.torch_dtypes)}
            info |= {"learning_rate_of_torch": weights.learning_rate, DIGEST: digest(tree)}
            ocp.save(path.absolute(), tree, custom_metadata=info)
        elif format == "torch":
            torch_files.write_torch(path, to_torch(weights))
        else:
            texts = {"model": weights.model} | ({"class_names": json.dumps(names)} if names else {})
            torch_files.write_safetensors(path, to_torch(weights), texts)


def to_torch(weights: Weights) -> dict[str, np.ndarray]:
    """Return the state dict, in torch's order and with the dtypes of the source."""
    model, shape, dtypes = weights.build(), weights.input_shape, weights.torch_dtypes
    return torch_names.to_torch(weights.variables, model, input_shape=shape, dtypes=dtypes)


def _read_orbax(path: Path) -> tuple[dict[str, np.ndarray], list[Any], dict[str, Any]]:
    run = path.absolute() / "checkpoints"
    parent = run if run.is_dir() else path.absolute()
    folder = next((parent / str(step) for step in steps(parent)), parent)
    if folder == parent and not (folder / METADATA_FILE).exists():
        raise UserError(f"{path} holds no checkpoint: give a run's folder or a checkpoint")
    try:
        tree, info = read(folder)
        variables = {name: tree.get(name, {}) for name in ("params", "batch_stats")}
        adam = [optax.ScaleByAdamState(**tree["opt_state"][0])] if "opt_state" in tree else []
    except Exception as error:  # whatever tensorstore and Orbax raise on bad bytes
        problem = f"is no whole checkpoint ({str(error) or repr(error):.150}): copy it again"
        raise UserError(f"{folder} {problem}") from error
    return torch_names.torch_view(variables), adam, {"torch_dtypes": {}, **info}
