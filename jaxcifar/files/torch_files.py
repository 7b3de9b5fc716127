"""Read and write files of torch tensors: ``.ckpt``, ``.pt``, ``.pth`` and ``.safetensors``.

No code in a file is ever executed: what torch refuses with ``weights_only=True`` is refused.
"""

import json
import re
import sys
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import ml_dtypes
import numpy as np
from etils import epy
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jaxcifar.errors import UserError


def _require_torch(error: Exception) -> NoReturn:
    raise UserError(
        "torch files need torch 2.6 or newer: install it, or use safetensors"
    ) from error


def _require_safe_torch(name: str) -> None:
    version = sys.modules[name].__version__
    if tuple(map(int, version.split(".")[:2])) < (2, 6):  # CVE-2025-32434
        raise UserError(f"torch {version} reads files unsafely: install 2.6 or newer")


with epy.lazy_imports(error_callback=_require_torch, success_callback=_require_safe_torch):
    import torch

SUFFIXES = (".ckpt", ".pt", ".pth")
DTYPES = {"F64": "f8", "F32": "f4", "F16": "f2", "BF16": "bfloat16", "I64": "i8", "I32": "i4"}
ZIP_MAGIC = b"PK\x03\x04"
PICKLE_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch before 1.6


def read(path: Path) -> tuple[Any, dict[str, str]]:
    """Return a file's content, memory-mapped where possible, and its text metadata.

    The content is what was given to ``torch.save``, or a dict of numpy arrays. Raises ``UserError``
    for a file that is damaged, would run code or is of another kind.
    """
    with path.open("rb") as file:
        start = file.read(len(PICKLE_MAGIC))
    if start.startswith(ZIP_MAGIC) or start == PICKLE_MAGIC:
        return _read_torch(path, zipped=start != PICKLE_MAGIC), {}
    if path.suffix == ".safetensors" or start[8:9] == b"{":
        return _read_safetensors(path)
    problem = "is empty" if not start else "is neither a torch file nor a safetensors file"
    raise UserError(f"{path} {problem}: use one written by torch.save(model.state_dict(), PATH)")


def write_torch(path: Path, state_dict: Mapping[str, np.ndarray]) -> None:
    """Write a file for ``model.load_state_dict(torch.load(path), strict=True)``."""
    tensors = {}
    for key, array in state_dict.items():
        is_bfloat16 = array.dtype == ml_dtypes.bfloat16  # which torch does not take from numpy
        tensor = torch.from_numpy(array.view(np.int16) if is_bfloat16 else array)
        tensors[key] = tensor.view(torch.bfloat16) if is_bfloat16 else tensor
    torch.save(tensors, path)


def write_safetensors(path: Path, arrays: Mapping[str, np.ndarray], texts: dict[str, str]) -> None:
    """Write a safetensors file with torch's keys and axes, and texts as its metadata."""
    save_file(dict(arrays), path, metadata={"format": "pt", **texts})
    path.chmod(0o644)  # save_file makes it private


def to_numpy(name: str, value: Any) -> Any:
    """Return a tensor as numpy, without a copy, and anything else as it is."""
    if not hasattr(value, "layout"):
        return value
    try:
        value = value.detach().resolve_conj().resolve_neg()
        if value.dtype == torch.bfloat16:
            return value.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return value.numpy()
    except (RuntimeError, TypeError) as error:  # numpy has no such tensors
        kind = f"{value.layout}, {value.dtype}, on {value.device}".replace("torch.", "")
        raise UserError(f"{name} is {kind}: save it as a dense tensor of floats") from error


def _read_torch(path: Path, *, zipped: bool) -> Any:
    try:
        if zipped:
            with zipfile.ZipFile(path) as archive:
                if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                    raise UserError(f"{path} is a compressed zip, which torch.save never writes")
                if name := archive.testzip():  # torch ignores the checksums
                    raise UserError(
                        f"{path} is damaged: {name} has a wrong checksum: copy it again"
                    )
        with warnings.catch_warnings(action="ignore"):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except UserError:
        raise
    except Exception as error:  # zipfile, pickle and torch raise many kinds on bad bytes
        problem = f"is damaged or no file of tensors ({error!s:.200}): copy it again"
        if unsafe := re.search(r"GLOBAL (\S+)", str(error)):
            problem = (
                f"is refused: its pickle wants to import {unsafe[1]}, which could run any code"
            )
            problem += "; in a program that trusts it, save model.state_dict() alone"
        raise UserError(f"{path} {problem}") from error


def _read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    try:
        with safe_open(path, "np"):  # checks the whole header: shapes, offsets, sizes
            pass
    except SafetensorError as error:
        raise UserError(f"{path} is no whole safetensors file ({error}): copy it again") from error
    content = np.memmap(path, np.uint8, "r")
    start = 8 + int.from_bytes(content[:8].tobytes(), "little")
    header = json.loads(content[8:start].tobytes())
    metadata = header.pop("__metadata__", None) or {}
    arrays = {}
    for key, entry in header.items():
        if entry["dtype"] not in DTYPES:
            raise UserError(f"{path}: {key} is {entry['dtype']}, which no weight can be made of")
        first, last = (start + offset for offset in entry["data_offsets"])
        arrays[key] = content[first:last].view(DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return arrays, metadata
