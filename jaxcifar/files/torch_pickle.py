"""Read what ``torch.save`` wrote, without torch and without running anything that is in the file.

Tensors become views of the file. Any other object becomes an empty one, so that what lies beside
the weights cannot cost them; a name that only an attack needs is refused.
"""

import io
import pickle
import re
import zipfile
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 - numpy then knows bfloat16
import numpy as np

from jaxcifar.errors import UserError, first_few

DTYPES = {  # by torch's class of storage, as FloatStorage
    **{"Double": "f8", "Float": "f4", "Half": "f2", "BFloat16": "bfloat16", "Bool": "?"},
    **{"Long": "i8", "Int": "i4", "Short": "i2", "Char": "i1", "Byte": "u1", "Untyped": "u1"},
    **{"ComplexDouble": "c16", "ComplexFloat": "c8", "QInt32": "i4", "QInt8": "i1", "QUInt8": "u1"},
}
ATTACK = re.compile(
    r"(os|posix|nt|sys|subprocess|shutil|pty|importlib|runpy|ctypes|socket|code|pickle|webbrowser)\."
    r"|(builtins|__builtin__)\."
    r"(eval|exec|execfile|compile|open|file|__import__|breakpoint|input)\b"
)
MAX_UNPACKED = 2**32  # bytes; a small file can claim any number


@dataclass(eq=False)  # so that it may be a key
class Tensor:
    """A tensor or storage; as numpy it is a view of its part of the file, if numpy has such."""

    shape: Sequence[int]
    dtype: str
    parts: Mapping[str, np.ndarray]  # which may come later
    key: str
    offset: int = 0
    stride: Sequence[int] = ()  # in values; none for C's order

    def __post_init__(self) -> None:
        self.shape = tuple(array("q", self.shape))  # which takes only numbers

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        dtype = np.dtype(self.dtype)
        if dtype.hasobject:
            raise TypeError("objects are no numbers")
        part, offset = self.parts[self.key], self.offset * dtype.itemsize
        strides = [step * dtype.itemsize for step in self.stride]
        # Numpy checks all against the part, but strides not against an empty one.
        return np.ndarray(self.shape, dtype, part, offset, (part.size and strides) or None)

    def __setstate__(self, state: Any) -> None: ...  # a file cannot change it


class Inert(dict[Any, Any]):
    """Stands for an object whose class is not loaded; its attributes and items are items."""

    __hash__ = object.__hash__  # type: ignore[assignment]
    __repr__ = object.__repr__

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __call__(self, *args: Any, **kwargs: Any) -> "Inert":
        return self

    append = extend = add = __call__

    def __setstate__(self, state: Any) -> None:
        for part in state if isinstance(state, tuple) else (state,):  # (attributes, slots)
            self.update(part if isinstance(part, dict) else {})


class Unpickler(pickle.Unpickler):
    """Builds dictionaries, numbers, texts and tensors; ``parts`` are the tensors' bytes."""

    def __init__(self, file: Any, parts: Mapping[str, np.ndarray]) -> None:
        super().__init__(file)
        self.parts = parts
        self.sizes: dict[str, int] = {}  # in bytes

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if ATTACK.match(full):
            reason = f"its pickle imports {full}, which could run any code"
            raise UserError(f"is refused: {reason}; save model.state_dict() where you trust it")
        return KNOWN.get(full) or type(name, (Inert,), {"__module__": module})

    def persistent_load(self, pid: Any) -> Any:
        kind, storage, *rest = pid
        if kind == "module":  # the class of a network in an old file
            return storage
        key, _, count, *view = rest
        dtype = DTYPES[storage.__name__.removesuffix("Storage")]
        self.sizes[key] = count * np.dtype(dtype).itemsize
        offset = view[0][1] if view and view[0] else 0  # torch before 0.4
        return Tensor((count,), dtype, self.parts, key, offset)


def _tensor(storage: Tensor, offset: int, size: Any, stride: Any, *rest: Any) -> Tensor:
    names = (part.__name__ for part in rest if isinstance(part, type))  # of a storage of bytes
    dtype, offset = next(names, storage.dtype), storage.offset + offset
    return replace(storage, shape=size, dtype=dtype, offset=offset, stride=stride)


KNOWN: dict[str, Any] = {
    "torch.Size": tuple,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor,
    "torch._utils._rebuild_parameter": lambda value, *_: value,
    "torch._utils._rebuild_parameter_with_state": lambda value, *_: value,
    "torch._tensor._rebuild_from_type_v2": lambda build, kind, arguments, state: build(*arguments),
}


def read_zip(path: Path) -> Any:
    """Read a file of torch 1.6 or newer."""
    content, parts = np.memmap(path, np.uint8, "r"), {}
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        root = next((n.removesuffix("data.pkl") for n in entries if n.endswith("data.pkl")), None)
        if root is None:
            raise UserError(f"is a zip archive of {first_few([*entries])}: save model.state_dict()")
        if sum(each.file_size for each in entries.values() if each.compress_type) > MAX_UNPACKED:
            raise UserError("is compressed, and too large for that: zip it again with zip -0")
        if any(each.CRC for each in entries.values()) and (name := archive.testzip()):
            raise zipfile.BadZipFile(f"{name} has a wrong checksum")
        for name, entry in entries.items():
            if entry.compress_type:
                part = np.frombuffer(archive.read(entry), np.uint8)
            else:  # behind the local header
                local = content[entry.header_offset :]
                part = local[30 + int(local[26:30].view("<u2").sum()) :][: entry.file_size]
            parts[name.removeprefix(root).removeprefix("data/")] = part
    if bytes(parts.get("byteorder", b"little")) != b"little":
        raise UserError("is of a big-endian machine: load it in torch and save it again")
    return Unpickler(io.BytesIO(parts["data.pkl"].tobytes()), parts).load()


def read_legacy(path: Path) -> Any:
    """Read a file of an older torch: pickles, then the storages in the order of their keys."""
    content, parts = np.memmap(path, np.uint8, "r"), dict[str, np.ndarray]()
    with path.open("rb") as file:
        for _ in range(3):  # the magic number, the version, the system
            Unpickler(file, parts).load()
        reader = Unpickler(file, parts)
        result = reader.load()
        keys = Unpickler(file, parts).load()
        position = file.tell()
    for key in keys:
        start = position + 8  # behind the number of values
        position = start + reader.sizes[key]
        parts[key] = content[start:position]
    return result
