"""Read what ``torch.save`` wrote, without torch and without running anything that is in the file.

Tensors become views of the file. Any other object becomes an empty one, so that what lies beside
the weights cannot cost them; a name that only an attack needs is refused.
"""

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import ml_dtypes  # noqa: F401 - numpy then knows bfloat16
import numpy as np

from jaxcifar.errors import UserError

DTYPES = {  # by torch's class of storage
    **{"DoubleStorage": "f8", "FloatStorage": "f4", "HalfStorage": "f2", "LongStorage": "i8"},
    **{"IntStorage": "i4", "ShortStorage": "i2", "CharStorage": "i1", "ByteStorage": "u1"},
    **{"BoolStorage": "?", "ComplexFloatStorage": "c8", "ComplexDoubleStorage": "c16"},
    **{"BFloat16Storage": "bfloat16", "Float8_e4m3fnStorage": "float8_e4m3fn"},
    **{"QInt8Storage": "i1", "QUInt8Storage": "u1", "QInt32Storage": "i4"},
}
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
ATTACKS = {"os", "posix", "nt", "sys", "subprocess", "shutil", "pty", "importlib", "runpy"}
ATTACKS |= {"ctypes", "socket", "code", "pickle", "webbrowser"}  # modules
CALLS = {"eval", "exec", "execfile", "compile", "open", "file", "__import__", "breakpoint", "input"}
MAX_UNPACKED = 2**32  # bytes; a small file can claim any number


class Odd(NamedTuple):
    """A tensor that numpy cannot hold."""

    kind: str
    shape: tuple[int, ...]
    dtype: str = ""


class Tensor(np.ndarray):
    """May be a key, as a torch tensor."""

    __hash__ = object.__hash__  # type: ignore[assignment]


class Storage(NamedTuple):
    """What tensors are views of; of an old file, the bytes are behind the pickle."""

    content: np.ndarray | None
    dtype: np.dtype


class Name(str):
    """A name in torch, such as a dtype's; one that is called, such as a device's, stays."""

    def __call__(self, *args: Any) -> str:
        return self


class Inert(dict[Any, Any]):
    """Stands for an object whose class is not loaded; its attributes and items are items."""

    __slots__ = ()
    __hash__ = object.__hash__  # type: ignore[assignment]
    __eq__ = object.__eq__
    __repr__ = object.__repr__

    def __new__(cls, *args: Any, **kwargs: Any) -> "Inert":
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __setstate__(self, state: Any) -> None:
        for part in state if isinstance(state, tuple) else (state,):  # (attributes, slots)
            self.update(part if isinstance(part, dict) else {})

    def __call__(self, *args: Any, **kwargs: Any) -> "Inert":
        return self

    def _ignore(self, *args: Any) -> None: ...

    append = extend = add = _ignore


class Ordered(Inert):
    """An ``OrderedDict``, without the attributes that torch gives a state dict."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None: ...


class Unpickler(pickle.Unpickler):
    """Builds dictionaries, numbers, texts and tensors; ``storages`` holds the tensors' bytes."""

    def __init__(self, file: Any, storages: "dict[str, np.ndarray] | None") -> None:
        super().__init__(file)
        self.storages = storages
        self.sizes: dict[str, int] = {}  # in bytes

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full in KNOWN:
            return KNOWN[full]
        if module == "torch":  # a class of storage, a dtype, a device
            return Name(DTYPES.get(name, name))
        is_builtin = module in ("builtins", "__builtin__")
        if module.partition(".")[0] in ATTACKS or (is_builtin and name in CALLS):
            reason = "which could run any code; in a program that trusts it"
            advice = f"{reason}, save model.state_dict() alone"
            raise UserError(f"is refused: its pickle imports {full}, {advice}")
        return type(name, (Inert,), {"__module__": module, "__slots__": ()})

    def persistent_load(self, pid: Any) -> Any:
        kind, dtype, *rest = pid
        if kind == "module":  # the class of a network in an old file
            return dtype
        key, _, count, *view = rest
        if kind != "storage" or not isinstance(dtype, str) or type(count) is not int:
            raise pickle.UnpicklingError("it has no storage but something else")
        dtype = np.dtype(str(dtype))
        self.sizes[key] = count * dtype.itemsize
        if self.storages is None:
            return Storage(None, dtype)
        if self.storages[key].nbytes < self.sizes[key]:
            raise pickle.UnpicklingError(f"storage {key} is cut off")
        content = self.storages[key][: self.sizes[key]]
        if view and view[0]:  # torch before 0.4
            _, start, size = view[0]
            content = content[start * dtype.itemsize :][: size * dtype.itemsize]
        return Storage(content, dtype)


def _tensor(storage: Storage, offset: int, size: Any, stride: Any, *_: Any) -> Any:
    size, itemsize = tuple(size), storage.dtype.itemsize
    if len(size) > 64:  # numpy's limit
        return Odd(f"a tensor of {len(size)} dimensions", size)
    if storage.content is None:
        return None
    strides = [step * itemsize for step in stride]  # numpy checks all against the buffer
    return Tensor(size, storage.dtype, storage.content, offset * itemsize, strides)


def _tensor_of(storage: Storage, *layout: Any) -> Any:
    offset, size, stride, _, _, dtype, *_ = layout  # the storage is of bytes
    try:
        return _tensor(storage._replace(dtype=np.dtype(str(dtype))), offset, size, stride)
    except TypeError:
        return Odd(dtype, tuple(size))


def _refuse_pickle(*_: Any) -> NoReturn:
    raise UserError("is a pickle, but not of torch.save: save model.state_dict() with that")


KNOWN: dict[str, Any] = {
    "collections.OrderedDict": Ordered,
    "torch.Size": tuple,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of,
    "torch.storage.UntypedStorage": Name("u1"),
    "torch._utils._rebuild_parameter": lambda value, *_: value,
    "torch._utils._rebuild_parameter_with_state": lambda value, *_: value,
    "torch._tensor._rebuild_from_type_v2": lambda build, kind, arguments, state: build(*arguments),
    "torch._utils._rebuild_sparse_tensor": lambda _, data: Odd(
        "sparse", next(part for part in data if isinstance(part, tuple))
    ),
    "torch._utils._rebuild_qtensor": lambda _, offset, size, *__: Odd("quantized", tuple(size)),
    "torch._utils._rebuild_meta_tensor_no_storage": lambda dtype, size, *_: Odd(
        "meta", tuple(size)
    ),
    "torch.storage._load_from_bytes": _refuse_pickle,
    "numpy.ndarray": Inert,
    "numpy.dtype": np.dtype,
    "_codecs.encode": lambda text, encoding: text.encode("latin1"),
}
for _core in ("numpy.core", "numpy._core"):
    KNOWN[f"{_core}.multiarray._reconstruct"] = lambda *_: np.empty(0, np.uint8)
    KNOWN[f"{_core}.numeric._frombuffer"] = lambda content, dtype, shape, order: np.frombuffer(
        content, dtype
    ).reshape(shape, order=order)


def read_zip(path: Path) -> Any:
    """Read a file of torch 1.6 or newer."""
    content, parts = np.memmap(path, np.uint8, "r"), {}
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        names = [entry.filename for entry in entries]
        root = next((n.removesuffix("data.pkl") for n in names if n.endswith("data.pkl")), None)
        if root is None:
            kind = f"is a zip archive of {', '.join(names[:3])}, not of torch.save"
            raise UserError(f"{kind}: open it where it was made, and torch.save its state dict")
        if sum(entry.file_size for entry in entries if entry.compress_type) > MAX_UNPACKED:
            raise UserError("is compressed, and too large for that: zip it again with zip -0")
        if any(entry.CRC for entry in entries) and (name := archive.testzip()):
            raise zipfile.BadZipFile(f"{name} has a wrong checksum")
        for entry in entries:
            archive.open(entry).close()  # checks the local header
            if entry.compress_type:
                parts[entry.filename] = np.frombuffer(archive.read(entry), np.uint8)
                continue
            local = content[entry.header_offset :][:30].tobytes()
            start = entry.header_offset + 30 + sum(np.frombuffer(local, "<u2", 2, 26).tolist())
            parts[entry.filename] = content[start:][: entry.file_size]
    if bytes(parts.get(f"{root}byteorder", b"little")) != b"little":
        raise UserError("is of a big-endian machine: load it in torch and save it again")
    storages = {name.removeprefix(f"{root}data/"): part for name, part in parts.items()}
    return Unpickler(io.BytesIO(parts[f"{root}data.pkl"].tobytes()), storages).load()


def read_legacy(path: Path) -> Any:
    """Read a file of an older torch: pickles, then the storages in the order of their keys."""
    content = np.memmap(path, np.uint8, "r")
    with path.open("rb") as file:
        if Unpickler(file, None).load() != LEGACY_MAGIC:
            _refuse_pickle()
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
