"""Read and write state dicts in ``.ckpt``, ``.pt``, ``.pth`` and ``.safetensors`` files.

No code in a file is ever executed: ``torch_pickle`` reads pickles without running them.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import ml_dtypes
import numpy as np
from etils import epy
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jaxcifar.errors import UserError, first_few, regular_file
from jaxcifar.files import torch_pickle


def _require_torch(error: Exception) -> NoReturn:
    raise UserError("this needs torch 2.6 or newer: install it, or use safetensors") from error


with epy.lazy_imports(error_callback=_require_torch):
    import torch

SUFFIXES = (".ckpt", ".pt", ".pth", ".bin", ".t7", ".tar")  # the last of .pth.tar
DTYPES = {"F64": "f8", "F32": "f4", "F16": "f2", "BF16": "bfloat16", "BOOL": "?", "C64": "c8"}
DTYPES |= {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}
DTYPES |= {f"{kind}{8 * size}": f"{kind.lower()}{size}" for kind in "IU" for size in (1, 2, 4, 8)}
ZIP_MAGIC = b"PK\x03\x04"
LEGACY_MAGICS = b"\x80", b"L119547037146038801333356L"  # torch before 1.6; its first number
UNPACK, AGAIN = "compressed: unpack it", "a web page and not the file: download it again"
KINDS = {  # by what stands at byte 0 or 257
    b"version https://git-lfs": "a Git LFS pointer and not the file: run git lfs pull",
    b"ustar": "a tar archive: unpack it, or save it again with a newer torch",
    **dict.fromkeys((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"), UNPACK),
    **dict.fromkeys((b"<!", b"<h", b"<H"), AGAIN),
}
OPTIMIZER_ENTRIES = ("optimizer", "optimizer_state_dict", "optim", "optimizer_states")
MAX_KEY = 500  # characters; this also bounds how deep is looked, as a file may contain itself
MAX_ENTRIES = 10**6  # that are looked at; a file of a few bytes can claim any number


def read(path: str | Path) -> tuple[dict[str, Any], Any, dict[str, Any]]:
    """Return every tensor by its dotted key, an optimizer's state or None, and the class names.

    Tensors are memory-mapped where possible. Raises ``UserError`` if the file is damaged, would run
    code or has no state dict.
    """
    path = Path(path)
    with regular_file(path, sys.maxsize).open("rb") as file:
        start = file.read(300)
    for magic, kind in KINDS.items():
        if start.startswith(magic) or start.startswith(magic, 257):
            raise UserError(f"{path} is {kind}")
    metadata: dict[str, Any] = {}
    if start.startswith((ZIP_MAGIC, *LEGACY_MAGICS)):
        content = _read_torch(path, zipped=start.startswith(ZIP_MAGIC))
    elif start[8:9] == b"{" or path.suffix == ".safetensors":
        content, metadata = _read_safetensors(path)
    else:
        problem = "is neither a torch file nor a safetensors file" if start else "is empty"
        raise UserError(f"{path} {problem}: use one of torch.save(model.state_dict(), PATH)")
    tensors, optimizers = flatten(content, str(path))
    if not tensors:
        what = f"a {type(content).__module__}.{type(content).__name__}"
        if isinstance(content, Mapping):
            names = [key if isinstance(key, str) else type(key).__name__ for key in content]
            what = first_few(names) or "nothing"
        raise UserError(f"{path} holds no state dict, but {what}: save model.state_dict() alone")
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
    Path(path).touch()
    mode = Path(path).stat().st_mode
    save_file(dict(arrays), path, metadata={"format": "pt", **texts})  # makes it private
    Path(path).chmod(mode)


def to_numpy(name: str, value: Any) -> np.ndarray:
    """Return a tensor of numbers as numpy, if possible without a copy."""
    odd = isinstance(value, torch_pickle.Odd)
    kind = value.kind if odd else str(value.dtype)
    try:
        if hasattr(value, "layout"):
            kind = f"{value.layout}, {kind}, on {value.device}".replace("torch.", "")
            value = value.detach().cpu().resolve_conj().resolve_neg()
            if other := getattr(ml_dtypes, str(value.dtype).removeprefix("torch."), None):
                bits = value.view(torch.int16 if value.itemsize == 2 else torch.int8)
                return bits.numpy().view(other)
        if not odd and (array := np.asarray(value)).dtype.kind in "biufcV":
            return array
    except (RuntimeError, TypeError, ValueError):  # numpy has no such tensors
        pass
    raise UserError(f"{name} is {kind}: save it as a dense tensor of floats")


def _read_torch(path: Path, *, zipped: bool) -> Any:
    try:
        return torch_pickle.read_zip(path) if zipped else torch_pickle.read_legacy(path)
    except UserError as error:
        raise UserError(f"{path} {error}") from error
    except Exception as error:  # zipfile and pickle raise many kinds on bad bytes
        problem = f"is damaged or not written by torch ({error!s:.200}): copy it again"
        raise UserError(f"{path} {problem}") from error


def _read_safetensors(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    try:
        with safe_open(path, "np"):  # checks the whole header: shapes, offsets, sizes
            pass
    except SafetensorError as error:
        raise UserError(f"{path} is no whole safetensors file ({error}): copy it again") from error
    content = np.memmap(path, np.uint8, "r")
    start = 8 + int(content[:8].view("<u8")[0])
    header = json.loads(bytes(content[8:start]))
    arrays = dict[str, Any]()
    metadata = header.pop("__metadata__", None) or {}
    for key, entry in header.items():
        if dtype := DTYPES.get(entry["dtype"]):
            values = content[start:][slice(*entry["data_offsets"])]
            arrays[key] = values.view(dtype).reshape(entry["shape"])
        else:
            arrays[key] = torch_pickle.Odd(entry["dtype"], tuple(entry["shape"]))
    return arrays, metadata


def flatten(content: Any, source: str) -> tuple[dict[str, Any], list[Any]]:
    """Return the tensors in nested containers by dotted keys, and what may be optimizers' states.

    What else training programs save is no business of the weights.
    """
    tensors: dict[str, Any] = {}
    optimizers: list[Any] = []
    for count, (name, key, value) in enumerate(_entries(content)):
        if count > MAX_ENTRIES:
            raise UserError(f"{source} has too many entries: save model.state_dict() alone")
        if key in OPTIMIZER_ENTRIES and isinstance(value, Mapping | list):
            optimizers.append(value)
        elif hasattr(value, "shape") and hasattr(value, "dtype"):
            tensors[name] = value
    return tensors, optimizers


def _entries(content: Any, prefix: str = "") -> Iterator[tuple[str, str, Any]]:
    """Yield dotted name, key and value of each entry in nested containers."""
    if isinstance(content, list | tuple) and any(isinstance(part, Mapping) for part in content):
        content = {str(index): part for index, part in enumerate(content)}
    for key, value in content.items() if isinstance(content, Mapping) else ():
        if isinstance(key, str) and len(prefix) + len(key) < MAX_KEY:  # not of an optimizer
            yield prefix + key, key, value
            if key not in OPTIMIZER_ENTRIES:
                yield from _entries(value, f"{prefix}{key}.")
