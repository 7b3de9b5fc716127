"""Reads and writes files of torch tensors: ``.ckpt/.pt/.pth`` and ``.safetensors``.

Nothing in a file is ever executed: torch reads with ``weights_only=True``, and what that
refuses is refused. torch and safetensors are imported where they are used.
"""

import json
import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from jaxcifar.errors import UserError, one_line

STATE_DICT_ENTRIES = ("state_dict", "model_state_dict", "model", "net")
EMA_ENTRIES = ("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema")
OPTIMIZER_ENTRIES = ("optimizer", "optimizer_state_dict", "optim", "optimizer_states")
PREFIXES = ("module.", "_orig_mod.", "model.")  # DataParallel, torch.compile, Lightning
TORCH_SUFFIXES = (".ckpt", ".pt", ".pth")
SAFETENSORS_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
}
ZIP_MAGIC = b"PK\x03\x04"
PICKLE_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch before 1.6


class TorchFile(NamedTuple):
    """What a file holds, as numpy.

    Attributes:
      state_dict: arrays by key, without wrappers and prefixes; they may be views of the file.
      optimizer: the state dict of its optimizer, or None.
      notes: a line for each thing that was unwrapped, stripped or left.
    """

    state_dict: dict[str, np.ndarray]
    optimizer: Mapping[str, Any] | None
    notes: tuple[str, ...]


def read(path: Path, *, ema: bool = False) -> TorchFile:
    """Reads a state dict, bare or wrapped as training programs wrap it.

    Args:
      path: a zip or older file of ``torch.save``, or a safetensors file.
      ema: take the exponential moving average instead of the last weights.

    Raises:
      UserError: it is no such file, is damaged, would run code, or holds no state dict.
      OSError: it cannot be opened.
    """
    with path.open("rb") as file:
        start = file.read(len(PICKLE_MAGIC))
    if start.startswith(ZIP_MAGIC):
        content = _load_torch(path, mmap=True)
    elif start == PICKLE_MAGIC:
        content = _load_torch(path, mmap=False)
    elif path.suffix == ".safetensors" or start[8:9] == b"{":
        content = _load_safetensors(path)
    else:
        what = "is empty" if not start else "is neither a torch file nor a safetensors file"
        raise UserError(f"{path} {what}: give what torch.save(model.state_dict(), PATH) wrote")
    return _unwrap(path, content, ema=ema)


def write_torch(path: Path, state_dict: Mapping[str, np.ndarray]) -> None:
    """Writes what ``model.load_state_dict(torch.load(path), strict=True)`` takes.

    Raises:
      UserError: torch is missing or too old.
    """
    torch = import_torch()
    torch.save({key: _tensor(torch, array) for key, array in state_dict.items()}, path)


def write_safetensors(
    path: Path, state_dict: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> None:
    """Writes a safetensors file with torch's keys and axes."""
    from safetensors.numpy import save_file

    save_file(dict(state_dict), path, metadata={"format": "pt", **metadata})
    path.chmod(0o644)  # it writes private files


def read_metadata(path: Path) -> dict[str, str]:
    """The texts that a safetensors file holds beside its tensors; empty for a torch file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return file.metadata() or {}
    except SafetensorError:
        return {}


def import_torch() -> Any:
    """Imports torch.

    Raises:
      UserError: it is not installed, or older than 2.6.
    """
    try:
        import torch
    except ImportError as error:
        raise UserError(
            "torch files need torch 2.6 or newer: make torch, or give a .safetensors file"
        ) from error
    major, minor = torch.__version__.split(".")[:2]
    if (int(major), int(minor)) < (
        2,
        6,
    ):  # where weights_only can be made to run code: CVE-2025-32434
        raise UserError(f"torch {torch.__version__} reads files unsafely: install 2.6 or newer")
    return torch


def _load_torch(path: Path, *, mmap: bool) -> Any:
    torch = import_torch()
    try:
        if mmap:
            with zipfile.ZipFile(path) as archive:
                if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                    raise UserError(f"{path} is a TorchScript program: save model.state_dict()")
                if any(i.compress_type != zipfile.ZIP_STORED for i in archive.infolist()):
                    raise UserError(f"{path} is a compressed zip, which torch.save never writes")
                if wrong := archive.testzip():  # torch looks at no checksum
                    raise UserError(
                        f"{path} is damaged: {wrong} does not have its checksum (or was saved"
                        " without): copy it again"
                    )
        with warnings.catch_warnings(action="ignore"):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except UserError:
        raise
    except Exception as error:  # zipfile, pickle and torch raise many kinds on bad bytes
        unsafe = re.search(r"GLOBAL (\S+)", str(error))
        if unsafe:
            raise UserError(
                f"{path} is refused: its pickle wants to import {unsafe[1]}, which could run any"
                " code; in a program that trusts it, save model.state_dict() alone"
            ) from error
        raise UserError(
            f"{path} is damaged or no file of tensors ({_first_line(error)}): copy it again"
        ) from error


def _load_safetensors(path: Path) -> dict[str, Any]:
    """Views of the file: what is not used is never read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np"):  # checks the whole header: shapes, offsets, sizes
            pass
    except SafetensorError as error:
        raise UserError(
            f"{path} is no whole safetensors file ({_first_line(error)}): copy it again"
        ) from error
    content = np.memmap(path, np.uint8, "r")
    start = 8 + int.from_bytes(content[:8].tobytes(), "little")
    arrays = {}
    for key, entry in json.loads(content[8:start].tobytes()).items():
        if key == "__metadata__":
            continue
        if entry["dtype"] not in SAFETENSORS_DTYPES:
            raise UserError(f"{path}: {key} is {entry['dtype']}, which no weight can be made of")
        first, last = (start + offset for offset in entry["data_offsets"])
        dtype = SAFETENSORS_DTYPES[entry["dtype"]]
        arrays[key] = content[first:last].view(dtype).reshape(entry["shape"])
    return arrays


def _unwrap(path: Path, content: Any, *, ema: bool) -> TorchFile:
    tensors, optimizer, notes = _find(path, content, ema=ema)
    arrays = {key: _array(path, key, value) for key, value in tensors.items()}
    if "n_averaged" in arrays and len(arrays) > 1:
        del arrays["n_averaged"]
        notes.append("left n_averaged, the count of torch's AveragedModel")
    while prefix := _common_prefix(arrays):
        arrays = {key.removeprefix(prefix): array for key, array in arrays.items()}
        notes.append(f"took {prefix} off every key")
    return TorchFile(arrays, optimizer, tuple(notes))


def _find(
    path: Path, content: Any, *, ema: bool
) -> tuple[Mapping[Any, Any], dict[str, Any] | None, list[str]]:
    """Follows a file's entries to its state dict; beside it the optimizer's and the notes."""
    notes: list[str] = []
    optimizer = None
    averaged = False
    for _ in range(4):  # no training program nests deeper; a hostile one might nest in itself
        if not isinstance(content, Mapping) or not content:
            raise UserError(f"{path} holds a {type(content).__name__}, not a state dict")
        if all(_is_tensor(value) for value in content.values()):
            if ema and not averaged:
                raise UserError(f"{path} is a bare state dict, without EMA: leave --ema out")
            return content, optimizer, notes
        entries = EMA_ENTRIES if ema and not averaged else STATE_DICT_ENTRIES
        found = [name for name in entries if isinstance(content.get(name), Mapping)]
        if not found:
            break
        others = [name for name in EMA_ENTRIES if isinstance(content.get(name), Mapping)]
        given = [n for n in OPTIMIZER_ENTRIES if isinstance(content.get(n), Mapping | list)]
        if given and ema:
            notes.append(f"left {given[0]}: it belongs to the weights before averaging")
        elif given:
            try:
                optimizer = _optimizer(path, content[given[0]])
            except UserError as error:
                notes.append(f"left the optimizer: {error}")
        if others and not ema:
            notes.append(f"left {others[0]}, an average of the weights: --ema takes that")
        notes.append(f"took {found[0]} of {_names(content)}")
        content, averaged = content[found[0]], averaged or ema
    strangers = [key for key, value in content.items() if not _is_tensor(value)]
    if len(strangers) < len(content):
        kind = type(content[strangers[0]]).__name__
        raise UserError(f"{path}: {_names(strangers[:1])!r} is a {kind}, expected a tensor")
    averages = [name for name in EMA_ENTRIES if name in content and not ema]
    raise UserError(
        f"{path} holds no {'EMA ' if ema else ''}state dict: its entries are {_names(content)},"
        f" expected one of {', '.join(EMA_ENTRIES if ema else STATE_DICT_ENTRIES)}"
        + (f"; --ema takes {averages[0]}" if averages else "")
    )


def _is_tensor(value: Any) -> bool:
    return hasattr(value, "dtype") and hasattr(value, "shape")


def _optimizer(path: Path, content: Any) -> dict[str, Any]:
    """An optimizer's state dict with numpy in the place of tensors."""
    if isinstance(content, list) and len(content) == 1:  # Lightning keeps a list
        content = content[0]
    states = content.get("state") if isinstance(content, Mapping) else None
    if not isinstance(states, Mapping):
        raise UserError("it is not the state dict of one optimizer")

    return {
        "param_groups": content.get("param_groups"),
        "state": {
            index: {
                name: _array(path, str(name), value) if _is_tensor(value) else value
                for name, value in state.items()
            }
            for index, state in states.items()
            if isinstance(state, Mapping)
        },
    }


def _common_prefix(arrays: Mapping[str, np.ndarray]) -> str | None:
    for prefix in PREFIXES:
        if arrays and all(key.startswith(prefix) for key in arrays):
            return prefix
    return None


def _array(path: Path, key: Any, value: Any) -> np.ndarray:
    """A tensor as numpy; nothing is copied."""
    if isinstance(value, np.ndarray):
        return value
    torch = import_torch()
    if not isinstance(key, str):
        raise UserError(f"{path}: a key is a {type(key).__name__}, expected a text")
    if value.layout != torch.strided or value.is_quantized or value.is_meta:
        raise UserError(f"{path}: {key} is sparse, quantised or empty: save it as a dense tensor")
    value = value.detach().resolve_conj().resolve_neg()
    if value.dtype == torch.bfloat16:
        return value.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    try:
        return value.numpy()
    except TypeError as error:  # numpy has no such dtype
        name = str(value.dtype).removeprefix("torch.")
        raise UserError(f"{path}: {key} is {name}, which no weight can be made of") from error


def _tensor(torch: Any, array: np.ndarray) -> Any:
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _names(keys: Iterable[Any], most: int = 8) -> str:
    names = [one_line(key) if isinstance(key, str) else type(key).__name__ for key in keys]
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "") or "none"


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0][:200]
