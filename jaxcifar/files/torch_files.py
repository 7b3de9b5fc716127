"""Read and write state dicts in ``.ckpt``, ``.pt``, ``.pth`` and ``.safetensors`` files.

No code in a file is ever executed: ``torch_pickle`` reads pickles without running them.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import ml_dtypes
import numpy as np
from etils import epy
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jaxcifar.errors import UserError, one_line
from jaxcifar.files import torch_pickle


def _require_torch(error: Exception) -> NoReturn:
    raise UserError("this needs torch 2.6 or newer: install it, or use safetensors") from error


with epy.lazy_imports(error_callback=_require_torch):
    import torch

SUFFIXES = (".ckpt", ".pt", ".pth", ".bin", ".t7", ".tar")  # the last of .pth.tar
DTYPES = {"F64": "f8", "F32": "f4", "F16": "f2", "BF16": "bfloat16", "I64": "i8", "I32": "i4"}
ZIP_MAGIC = b"PK\x03\x04"
PICKLE_MAGIC = b"\x80"  # torch before 1.6
LFS_MAGIC = b"version https://git-lfs"
USUAL_DTYPES = ("float32", "int64")
OPTIMIZER_ENTRIES = ("optimizer", "optimizer_state_dict", "optim", "optimizer_states")
MAX_DEPTH = 4  # training programs nest no deeper; a hostile file may contain itself


def read(path: str | Path) -> tuple[dict[str, Any], Any, dict[str, Any]]:
    """Return every tensor by its dotted key, an optimizer's state or None, and the class names.

    Tensors are memory-mapped where possible. Raises ``UserError`` if the file is damaged, would run
    code or has no state dict.
    """
    path = Path(path)
    with path.open("rb") as file:
        start = file.read(len(LFS_MAGIC))
    if start == LFS_MAGIC:
        raise UserError(f"{path} is a Git LFS pointer and not the file: run git lfs pull")
    metadata: dict[str, Any] = {}
    if start.startswith((ZIP_MAGIC, PICKLE_MAGIC)):
        content = _read_torch(path, zipped=start.startswith(ZIP_MAGIC))
    elif start[8:9] == b"{" or path.suffix == ".safetensors":
        content, metadata = _read_safetensors(path)
    else:
        problem = "is neither a torch file nor a safetensors file" if start else "is empty"
        raise UserError(f"{path} {problem}: use one of torch.save(model.state_dict(), PATH)")
    if not isinstance(content, Mapping):
        kind = f"{type(content).__module__}.{type(content).__name__}"
        raise UserError(f"{path} holds a {kind}, not a state dict: save model.state_dict() alone")
    tensors: dict[str, Any] = {}
    optimizers: list[Any] = []
    _flatten(content, (), tensors, optimizers)
    if not tensors:
        raise UserError(f"{path} holds no state dict: its entries are {_names(content)}")
    info = {name: metadata.get(name) for name in ("dataset", "class_names")}
    return tensors, optimizers[0] if optimizers else None, info


def write_torch(path: str | Path, state_dict: Mapping[str, np.ndarray]) -> None:
    """Write a file for ``model.load_state_dict(torch.load(path), strict=True)``."""
    tensors = {}
    for key, array in state_dict.items():  # by the bits: torch takes no bfloat16 from numpy
        bits = torch.from_numpy(array.view(f"i{array.itemsize}"))
        tensors[key] = bits.view(getattr(torch, array.dtype.name))
    torch.save(tensors, path)


def write_safetensors(
    path: str | Path, arrays: Mapping[str, np.ndarray], texts: dict[str, str]
) -> None:
    """Write a safetensors file with torch's keys and axes, and texts as its metadata."""
    save_file(dict(arrays), path, metadata={"format": "pt", **texts})
    Path(path).chmod(0o644)  # save_file makes it private


def to_numpy(name: str, value: Any) -> Any:
    """Return a tensor as numpy, without a copy, and anything else as it is."""
    if isinstance(value, torch_pickle.Odd):
        raise UserError(f"{name} is {value.kind}: save it as a dense tensor of floats")
    if not hasattr(value, "layout"):
        return value
    try:
        value = value.detach().resolve_conj().resolve_neg()
        if value.dtype == torch.bfloat16:  # which numpy does not know
            return value.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return value.numpy()
    except (RuntimeError, TypeError) as error:  # numpy has no such tensors
        kind = f"{value.layout}, {value.dtype}, on {value.device}".replace("torch.", "")
        raise UserError(f"{name} is {kind}: save it as a dense tensor of floats") from error


def _read_torch(path: Path, *, zipped: bool) -> Any:
    try:
        return torch_pickle.read_zip(path) if zipped else torch_pickle.read_legacy(path)
    except torch_pickle.Refused as error:
        problem = f"is refused: its pickle imports {error}, which could run any code; in a program"
        raise UserError(
            f"{path} {problem} that trusts it, save model.state_dict() alone"
        ) from error
    except Exception as error:  # zipfile and pickle raise many kinds on bad bytes
        problem = f"is damaged or not written by torch ({error!s:.200}): copy it again"
        raise UserError(f"{path} {problem}") from error


def _read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    try:
        with safe_open(path, "np"):  # checks the whole header: shapes, offsets, sizes
            pass
    except SafetensorError as error:
        raise UserError(f"{path} is no whole safetensors file ({error}): copy it again") from error
    content = np.memmap(path, np.uint8, "r")
    start = 8 + int(content[:8].view("<u8")[0])
    header = json.loads(bytes(content[8:start]))
    arrays, metadata = {}, header.pop("__metadata__", None) or {}
    for key, entry in header.items():
        if (dtype := DTYPES.get(entry["dtype"])) is None:
            raise UserError(f"{path}: {key} is {entry['dtype']}, which no weight can be made of")
        values = content[start:][slice(*entry["data_offsets"])]
        arrays[key] = values.view(dtype).reshape(entry["shape"])
    return arrays, metadata


def _flatten(
    content: Mapping[Any, Any],
    parents: tuple[Any, ...],
    tensors: dict[str, Any],
    optimizers: list[Any],
    prefix: str = "",
) -> None:
    """Collect the tensors of nested mappings by dotted keys, and what may be an optimizer's state.

    What else training programs save is no business of the weights.
    """
    parents = (*parents, content)
    for key, value in content.items():
        if not isinstance(key, str):
            continue  # of an optimizer
        if key in OPTIMIZER_ENTRIES and isinstance(value, Mapping | list):
            optimizers.append(value)
        elif isinstance(value, Mapping):
            # Programs nest no deeper, and a hostile file may contain itself.
            if len(parents) < MAX_DEPTH and not any(value is parent for parent in parents):
                _flatten(value, parents, tensors, optimizers, f"{prefix}{key}.")
        elif hasattr(value, "shape") and hasattr(value, "dtype"):
            tensors[prefix + key] = value


def _names(keys: Iterable[Any]) -> str:
    names = [one_line(key) if isinstance(key, str) else type(key).__name__ for key in keys]
    return ", ".join(names[:8] + ["..."] * (len(names) > 8)) or "none"
