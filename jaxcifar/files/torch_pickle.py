"""Read what ``torch.save`` wrote, without torch and without running anything that is in the file.

Tensors become views of the file. Any other object becomes an empty one, so that what lies beside
the weights cannot cost them; a name that only an attack needs is refused.
"""

import io
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes  # noqa: F401 - numpy then knows bfloat16
import numpy as np

DTYPES = {  # by torch's class of storage
    **{"DoubleStorage": "f8", "FloatStorage": "f4", "HalfStorage": "f2", "LongStorage": "i8"},
    **{"IntStorage": "i4", "ShortStorage": "i2", "CharStorage": "i1", "ByteStorage": "u1"},
    **{"BoolStorage": "?", "ComplexFloatStorage": "c8", "ComplexDoubleStorage": "c16"},
    **{"BFloat16Storage": "bfloat16", "Float8_e4m3fnStorage": "float8_e4m3fn"},
}
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
BUILTINS = {"set", "frozenset", "complex", "slice", "list", "dict", "tuple", "object"}
ATTACKS = {"os", "posix", "nt", "sys", "subprocess", "shutil", "pty", "importlib", "runpy"}
ATTACKS |= {"ctypes", "socket", "code", "operator", "pickle", "webbrowser"}
ATTACKS |= {"builtins", "__builtin__"}  # but for BUILTINS


class Refused(pickle.UnpicklingError):
    """Raised for a name that weights never need."""


class Odd(NamedTuple):
    """A tensor that numpy cannot hold."""

    kind: str
    shape: tuple[int, ...]
    dtype: str = ""


class Inert:
    """Stands for an object whose class is not loaded."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "Inert":
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def _ignore(self, *args: Any) -> None: ...

    __setstate__ = __setitem__ = append = extend = add = _ignore


class Unpickler(pickle.Unpickler):
    """Builds dictionaries, numbers, texts and tensors; ``storages`` holds the tensors' values."""

    def __init__(self, file: Any, storages: "dict[str, np.ndarray] | None") -> None:
        super().__init__(file)
        self.storages = storages
        self.sizes: dict[str, int] = {}  # in bytes

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full in KNOWN:
            return KNOWN[full]
        if module == "torch":  # a class of storage, or a dtype
            return DTYPES.get(name, name)
        if module in ("builtins", "__builtin__") and name in BUILTINS:
            return super().find_class(module, name)
        if module.partition(".")[0] in ATTACKS:
            raise Refused(full)
        return type(name, (Inert,), {"__module__": module})

    def persistent_load(self, pid: Any) -> np.ndarray | None:
        kind, dtype, key, _, count = pid[:5]
        if kind != "storage" or not isinstance(dtype, str) or type(count) is not int:
            raise pickle.UnpicklingError("it has no storage but something else")
        dtype = np.dtype(dtype)
        self.sizes[key] = count * dtype.itemsize
        if self.storages is None:  # an old file, which has the values behind the pickle
            return None
        if self.storages[key].nbytes < self.sizes[key]:
            raise pickle.UnpicklingError(f"storage {key} is cut off")
        return self.storages[key][: self.sizes[key]].view(dtype)


def _tensor(storage: np.ndarray | None, offset: int, size: Any, stride: Any, *_: Any) -> Any:
    if storage is None:
        return None
    size, stride = tuple(size), tuple(stride)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if min((offset, *size, *stride)) < 0 or (0 not in size and last >= len(storage)):
        raise pickle.UnpicklingError("a tensor is larger than its storage")
    strides = [step * storage.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(storage[offset:], size, strides, writeable=False)


def _tensor_of(storage: np.ndarray | None, *layout: Any) -> Any:
    offset, size, stride, _, _, dtype, *_ = layout  # the storage is of bytes
    try:
        typed = storage if storage is None else storage.view(dtype)
    except TypeError:
        return Odd(dtype, tuple(size))
    return _tensor(typed, offset, size, stride)


def _first(value: Any, *_: Any) -> Any:
    return value


KNOWN: dict[str, Any] = {
    "collections.OrderedDict": OrderedDict,
    "torch.Size": tuple,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of,
    "torch.storage.UntypedStorage": "u1",
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch._tensor._rebuild_from_type_v2": lambda build, kind, arguments, state: build(*arguments),
    "torch._utils._rebuild_sparse_tensor": lambda kind, data: Odd("sparse", tuple(data[2])),
    "torch._utils._rebuild_meta_tensor_no_storage": lambda dtype, size, *_: Odd(
        "meta", tuple(size)
    ),
    "numpy.ndarray": Inert,
    "numpy.dtype": np.dtype,
    "_codecs.encode": lambda text, encoding: text.encode("latin1"),
} | {
    f"numpy.{core}.multiarray._reconstruct": lambda *_: np.empty(0, np.uint8)
    for core in ("core", "_core")
}


def read_zip(path: Path) -> Any:
    """Read a file of torch 1.6 or newer."""
    content, storages = np.memmap(path, np.uint8, "r"), {}
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        names = [entry.filename for entry in entries]
        root = next(name for name in names if name.endswith("data.pkl")).removesuffix("data.pkl")
        if any(entry.compress_type for entry in entries):
            raise zipfile.BadZipFile("a compressed zip, which torch.save never writes")
        if f"{root}byteorder" in names and archive.read(f"{root}byteorder") != b"little":
            raise zipfile.BadZipFile("written on a big-endian machine")
        for entry in entries:
            archive.open(entry).close()  # checks the local header
            local = content[entry.header_offset : entry.header_offset + 30].tobytes()
            start = entry.header_offset + 30 + sum(np.frombuffer(local, "<u2", 2, 26).tolist())
            storages[entry.filename.removeprefix(f"{root}data/")] = content[start:][
                : entry.file_size
            ]
        if any(entry.CRC for entry in entries) and (name := archive.testzip()):
            raise zipfile.BadZipFile(f"{name} has a wrong checksum")
        return Unpickler(io.BytesIO(archive.read(f"{root}data.pkl")), storages).load()


def read_legacy(path: Path) -> Any:
    """Read a file of an older torch: pickles, then the storages in the order of their keys."""
    content = np.memmap(path, np.uint8, "r")
    with path.open("rb") as file:
        if Unpickler(file, None).load() != LEGACY_MAGIC:
            raise pickle.UnpicklingError("a pickle, but not of torch.save")
        for _ in range(2):  # the version, the system
            Unpickler(file, None).load()
        start = file.tell()
        first = Unpickler(file, None)
        first.load()  # for the sizes, and to get behind it
        keys, storages = Unpickler(file, None).load(), {}
        position = file.tell()
        for key in keys:
            position += 8  # the number of values
            storages[key] = content[position:][: first.sizes[key]]
            position += first.sizes[key]
        file.seek(start)
        return Unpickler(file, storages).load()
