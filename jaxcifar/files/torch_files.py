"""Read and write state dicts in files of torch and safetensors; no code in a file is run."""

import json
import reprlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import ml_dtypes
import numpy as np
from etils import epy
from safetensors import safe_open
from safetensors.numpy import save

from jaxcifar.errors import UserError, regular_file
from jaxcifar.files import torch_pickle


def _require_torch(error: Exception) -> NoReturn:
    raise UserError("this needs torch 2.6 or newer: install it, or use safetensors") from error


with epy.lazy_imports(error_callback=_require_torch):
    import torch

DTYPES = {"BF16": "bfloat16", "BOOL": "?", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}
DTYPES |= {f"{kind}{8 * size}": f"{kind.lower()}{size}" for kind in "FIUC" for size in (1, 2, 4, 8)}
# Torch before 1.6 begins with a pickle of this number; protocol 1 has it in decimal digits.
LEGACY_MAGICS = (0x1950A86A20F9469CFC6C).to_bytes(10, "little"), b"L119547037146038801333356L"
MAX_KEY = 500  # characters; this also bounds how deep is looked, as a file may contain itself
MAX_ENTRIES = 10**6  # that are looked at; a file of a few bytes can claim any number


def read(path: str | Path) -> tuple[dict[str, Any], list[Any], dict[str, Any]]:
    """Return every tensor by its dotted key, the optimizers' states, and the class names.

    Tensors are read when used. ``UserError`` if it is damaged, would run code or has no state dict.
    """
    path, metadata = Path(path), dict[str, Any]()
    with regular_file(path, sys.maxsize).open("rb") as file:
        start = file.read(40)
    try:
        if start.startswith(b"PK\x03\x04"):
            content = torch_pickle.read_zip(path)
        elif any(magic in start for magic in LEGACY_MAGICS):
            content = torch_pickle.read_legacy(path)
        elif start[8:9] == b"{":
            content, metadata = _read_safetensors(path)
        else:
            problem = f"is neither a torch nor a safetensors file, but begins with {start[:20]!r}"
            raise UserError(f"{problem}: unpack an archive, git lfs pull, copy or save it again")
        tensors, optimizers = flatten(content)
        if not tensors:
            what = reprlib.repr([*content]) if isinstance(content, Mapping) else type(content)
            raise UserError(f"holds no state dict, but {what}: save model.state_dict() alone")
    except UserError as error:
        raise UserError(f"{path} {error}") from error
    except Exception as error:  # zipfile, pickle and safetensors raise many kinds on bad bytes
        raise UserError(f"{path} is damaged ({error!s:.200}): copy it again") from error
    return tensors, optimizers, {name: metadata.get(name) for name in ("dataset", "class_names")}


def write_torch(path: str | Path, state_dict: Mapping[str, np.ndarray]) -> None:
    """Write a file for ``model.load_state_dict(torch.load(path), strict=True)``."""
    tensors = {}
    for key, array in state_dict.items():  # by the bits: torch takes no bfloat16 from numpy
        bits = torch.from_numpy(array.view(f"i{array.itemsize}"))
        tensors[key] = bits.view(getattr(torch, array.dtype.name))
    torch.save(tensors, path)


def write_safetensors(path: str | Path, arrays: Mapping[str, Any], texts: dict[str, str]) -> None:
    """Write a safetensors file with torch's keys and axes, and texts as its metadata."""
    Path(path).write_bytes(save(dict(arrays), {"format": "pt", **texts}))


def to_numpy(name: str, value: Any) -> np.ndarray:
    """Return a tensor of numbers as numpy, if possible without a copy."""
    try:
        if hasattr(value, "layout"):  # torch's own
            value = value.detach().cpu()
            if hasattr(ml_dtypes, str(value.dtype).removeprefix("torch.")):
                value = value.float()
        array = np.asarray(value)
        if array.dtype.kind not in "biufc" and not hasattr(ml_dtypes, array.dtype.name):
            raise TypeError("no numbers")
    except Exception as error:  # of torch or numpy, or of a damaged file
        problem = f"{name} is {value.dtype} and cannot be read ({error!s:.150})"
        raise UserError(f"{problem}: save dense floats, or copy the file again") from error
    return array


def _read_safetensors(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    with safe_open(path, "np"):  # checks the whole header: shapes, offsets, sizes
        content = np.memmap(path, np.uint8, "r")
    start = 8 + int(content[:8].view("<u8")[0])
    header = json.loads(bytes(content[8:start]))
    metadata = header.pop("__metadata__", None) or {}
    parts = {key: content[start:][slice(*x["data_offsets"])] for key, x in header.items()}
    tensors = {
        key: torch_pickle.Tensor(x["shape"], DTYPES.get(x["dtype"], x["dtype"]), parts, key)
        for key, x in header.items()
    }
    return tensors, metadata


def flatten(content: Any) -> tuple[dict[str, Any], list[Any]]:
    """Return the tensors in nested containers by dotted keys, and the optimizers' states."""
    tensors, optimizers = dict[str, Any](), list[Any]()
    entries = [("", content)]
    for name, value in entries:  # which grows meanwhile
        if len(entries) > MAX_ENTRIES:
            raise UserError("has too many entries: save model.state_dict() alone")
        if isinstance(value, list | tuple) and any(isinstance(part, Mapping) for part in value):
            value = {str(index): part for index, part in enumerate(value)}
        if isinstance(value, Mapping) and "param_groups" in value:
            optimizers.append(value)
        elif isinstance(value, Mapping):
            keys = [key for key in value if isinstance(key, str) and len(name + key) < MAX_KEY]
            entries += [(f"{name}{key}.", value[key]) for key in keys]
        elif name and hasattr(value, "shape") and hasattr(value, "dtype"):
            tensors[name[:-1]] = value
    return tensors, optimizers
