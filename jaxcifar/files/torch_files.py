"""Read and write state dicts in ``.ckpt``, ``.pt``, ``.pth`` and ``.safetensors`` files.

No code in a file is ever executed: what torch refuses with ``weights_only=True`` is refused.
"""

import json
import logging
import re
import sys
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import ml_dtypes
import numpy as np
from etils import epy
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jaxcifar.errors import UserError, one_line


def _require_torch(error: Exception) -> NoReturn:
    raise UserError("this needs torch 2.6 or newer: install it, or use safetensors") from error


def _require_safe_torch(name: str) -> None:
    version = sys.modules[name].__version__
    if tuple(map(int, version.split(".")[:2])) < (2, 6):  # CVE-2025-32434
        raise UserError(f"torch {version} reads files unsafely: install 2.6 or newer")


with epy.lazy_imports(error_callback=_require_torch, success_callback=_require_safe_torch):
    import torch

SUFFIXES = (".ckpt", ".pt", ".pth")
DTYPES = {"F64": "f8", "F32": "f4", "F16": "f2", "BF16": "bfloat16", "I64": "i8", "I32": "i4"}
USUAL_DTYPES = ("float32", "int64")
ZIP_MAGIC = b"PK\x03\x04"
PICKLE_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch before 1.6
STATE_DICT_ENTRIES = ("state_dict", "model_state_dict", "model", "net")
EMA_ENTRIES = ("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema")
OPTIMIZER_ENTRIES = ("optimizer", "optimizer_state_dict", "optim", "optimizer_states")
PREFIXES = ("module.", "_orig_mod.", "model.")  # DataParallel, torch.compile, Lightning
MAX_DEPTH = 4  # training programs nest no deeper; a hostile file may contain itself

log = logging.getLogger(__name__)


def read(path: Path, *, ema: bool) -> tuple[dict[str, np.ndarray], Any, dict[str, Any]]:
    """Return the state dict, the optimizer's or None, and its unusual dtypes and class names.

    ``ema`` takes the exponential moving average. Arrays are memory-mapped where possible. Raises
    ``UserError`` if the file is damaged, would run code or has no state dict.
    """
    with path.open("rb") as file:
        start = file.read(len(PICKLE_MAGIC))
    metadata: dict[str, str] = {}
    if start.startswith(ZIP_MAGIC) or start == PICKLE_MAGIC:
        content = _read_torch(path, zipped=start != PICKLE_MAGIC)
    elif path.suffix == ".safetensors" or start[8:9] == b"{":
        content, metadata = _read_safetensors(path)
    else:
        problem = "is neither a torch file nor a safetensors file" if start else "is empty"
        raise UserError(f"{path} {problem}: use one of torch.save(model.state_dict(), PATH)")
    arrays, optimizer = _find(path, content, ema=ema)
    dtypes = {k: a.dtype.name for k, a in arrays.items() if a.dtype.name not in USUAL_DTYPES}
    return arrays, optimizer, {"torch_dtypes": dtypes, "class_names": metadata.get("class_names")}


def write_torch(path: Path, state_dict: Mapping[str, np.ndarray]) -> None:
    """Write a file for ``model.load_state_dict(torch.load(path), strict=True)``."""
    tensors = {}
    for key, array in state_dict.items():  # by the bits: torch takes no bfloat16 from numpy
        bits = torch.from_numpy(array.view(f"i{array.itemsize}"))
        tensors[key] = bits.view(getattr(torch, array.dtype.name))
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
        if value.dtype == torch.bfloat16:  # which numpy does not know
            return value.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return value.numpy()
    except (RuntimeError, TypeError) as error:  # numpy has no such tensors
        kind = f"{value.layout}, {value.dtype}, on {value.device}".replace("torch.", "")
        raise UserError(f"{name} is {kind}: save it as a dense tensor of floats") from error


def _read_torch(path: Path, *, zipped: bool) -> Any:
    load = torch.load  # raises its own error without torch
    try:
        if zipped:
            with zipfile.ZipFile(path) as archive:  # what torch takes on trust
                if any(entry.compress_type for entry in archive.infolist()):
                    raise zipfile.BadZipFile("a compressed zip, which torch.save never writes")
                if name := archive.testzip():
                    raise zipfile.BadZipFile(f"{name} has a wrong checksum")
        with warnings.catch_warnings(action="ignore"):
            return load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # zipfile, pickle and torch raise many kinds on bad bytes
        problem = f"is damaged or not written by torch ({error!s:.200}): copy it again"
        if unsafe := re.search(r"GLOBAL (\S+)", str(error)):
            problem = f"is refused: its pickle imports {unsafe[1]}, which could run any code; in a"
            problem += " program that trusts it, save model.state_dict() alone"
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
        first, last = (start + offset for offset in entry["data_offsets"])
        arrays[key] = content[first:last].view(dtype).reshape(entry["shape"])
    return arrays, metadata


def _find(path: Path, content: Any, *, ema: bool) -> tuple[dict[str, np.ndarray], Any]:
    """Take off what training programs put around a state dict."""
    optimizer, entries = None, EMA_ENTRIES if ema else STATE_DICT_ENTRIES
    for _ in range(MAX_DEPTH):
        if not isinstance(content, Mapping) or not content:
            raise UserError(f"{path} holds a {type(content).__name__}, not a state dict")
        if entries is not EMA_ENTRIES and all(hasattr(v, "shape") for v in content.values()):
            return _arrays(path, content), optimizer
        name, average = _first(content, entries), _first(content, EMA_ENTRIES)
        if name is None:
            break
        other = _first(content, OPTIMIZER_ENTRIES, Mapping | list)
        if other and ema:
            log.info("%s: left %s: it belongs to the weights before averaging", path, other)
        elif other:
            optimizer = content[other]
        if average and not ema:
            log.info("%s: left %s, an average of the weights: --ema takes that", path, average)
        log.info("%s: took %s of %s", path, name, _names(content))
        content, entries = content[name], STATE_DICT_ENTRIES
    strangers = [key for key, value in content.items() if not hasattr(value, "shape")]
    if 0 < len(strangers) < len(content):
        kind = type(content[strangers[0]]).__name__
        raise UserError(f"{path}: {_names(strangers[:1])!r} is a {kind}, expected a tensor")
    kind, wanted = ("EMA state dict", EMA_ENTRIES) if ema else ("state dict", STATE_DICT_ENTRIES)
    problem = f"{path} holds no {kind}: its entries are {_names(content)}"
    hint = f"; --ema takes {average}" if average and not ema else ""
    raise UserError(f"{problem}, expected one of {', '.join(wanted)}{hint}")


def _arrays(path: Path, tensors: Mapping[Any, Any]) -> dict[str, np.ndarray]:
    for key in tensors:
        if not isinstance(key, str):
            raise UserError(f"{path}: a key is a {type(key).__name__}, expected a text")
    arrays = {key: to_numpy(f"{path}: {key}", value) for key, value in tensors.items()}
    if "n_averaged" in arrays and len(arrays) > 1:
        del arrays["n_averaged"]
        log.info("%s: left n_averaged, the count of torch's AveragedModel", path)
    while prefix := next((p for p in PREFIXES if all(key.startswith(p) for key in arrays)), None):
        arrays = {key.removeprefix(prefix): array for key, array in arrays.items()}
        log.info("%s: took %s off every key", path, prefix)
    return arrays


def _first(content: Mapping[Any, Any], names: Iterable[str], kind: Any = Mapping) -> str | None:
    return next((name for name in names if isinstance(content.get(name), kind)), None)


def _names(keys: Iterable[Any]) -> str:
    names = [one_line(key) if isinstance(key, str) else type(key).__name__ for key in keys]
    return ", ".join(names[:8] + ["..."] * (len(names) > 8)) or "none"
