"""The official CIFAR-10 files: ``cifar-10-{python,binary}.tar.gz`` and what they unpack to.

A tar file, and every pickled batch in a folder, is checked against its published
checksum before anything in it is read; what is unpickled may then only build arrays.
"""

import dataclasses
import hashlib
import io
import pickle
import tarfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from jaxcifar.data import Dataset, Examples
from jaxcifar.errors import UserError

PYTHON_FOLDER, BINARY_FOLDER = "cifar-10-batches-py", "cifar-10-batches-bin"
PYTHON_ARCHIVE, BINARY_ARCHIVE = "cifar-10-python.tar.gz", "cifar-10-binary.tar.gz"
TRAIN_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
RECORD_BYTES = 1 + 32 * 32 * 3

ReadFile = Callable[[str], bytes]


@dataclasses.dataclass(frozen=True)
class Published:
    """What the official files are known to be.

    Attributes:
      md5: checksum by file name; as on the data set's page and in torchvision. No
        checksums of the unpacked binary files are published.
      batch_images: images in each of the six batches.
    """

    md5: Mapping[str, str]
    batch_images: int = 10_000


PUBLISHED = Published(
    MappingProxyType(
        {
            PYTHON_ARCHIVE: "c58f30108f718f92721af3b95e74349a",
            BINARY_ARCHIVE: "c32a1d4ab5d03f1284b67883e8d87530",
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
            "test_batch": "40351d587109b95175f43aff81a1287e",
            "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
        }
    )
)


def find(data_dir: Path) -> Path | None:
    """The first official folder or archive at, in, or in the downloads of ``data_dir``."""
    names = (PYTHON_FOLDER, BINARY_FOLDER, PYTHON_ARCHIVE, BINARY_ARCHIVE)
    if data_dir.name in names and data_dir.exists():
        return data_dir
    for folder in (data_dir, data_dir / "downloads" / "manual", data_dir / "downloads"):
        for name in names:
            if (folder / name).exists():
                return folder / name
    # TFDS decorates the names of its downloads, by itself or in a folder for the data set.
    downloads = data_dir / "downloads"
    patterns = ("*cifar-10-binary*.tar.gz", "cifar10/*cifar-10-binary*.tar.gz")
    return next((path for pattern in patterns for path in downloads.glob(pattern)), None)


def read(path: Path, published: Published = PUBLISHED) -> Dataset:
    """Reads an official archive or folder.

    Raises:
      UserError: a file is missing, cut short, or not the published one; it is named.
    """
    pickled = "python" in path.name or path.name == PYTHON_FOLDER
    if path.is_dir():
        return (_read_python if pickled else _read_binary)(path, _folder_reader(path), published)
    name, folder = (PYTHON_ARCHIVE, PYTHON_FOLDER) if pickled else (BINARY_ARCHIVE, BINARY_FOLDER)
    try:
        with path.open("rb") as file:
            _verify(path, hashlib.file_digest(file, "md5").hexdigest(), published.md5[name])
            file.seek(0)
            with tarfile.open(fileobj=file, mode="r:gz") as tar:
                reader = _tar_reader(path, tar, folder)
                return (_read_python if pickled else _read_binary)(path, reader, published)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise _damaged(path, str(error)) from error


def _folder_reader(folder: Path) -> ReadFile:
    def read_file(name: str) -> bytes:
        try:
            return (folder / name).read_bytes()
        except FileNotFoundError:
            raise _damaged(folder / name, "it is missing") from None

    return read_file


def _tar_reader(path: Path, tar: tarfile.TarFile, folder: str) -> ReadFile:
    # In one pass, in the order of the archive: going back would decompress it anew.
    files = {m.name: file.read() for m in tar if (file := tar.extractfile(m)) is not None}

    def read_file(name: str) -> bytes:
        try:
            return files[f"{folder}/{name}"]
        except KeyError:
            raise _damaged(path, f"it holds no {folder}/{name}") from None

    return read_file


def _read_python(path: Path, read_file: ReadFile, published: Published) -> Dataset:
    def batch(name: str) -> Examples:
        content = unpickle(name)
        planes = np.asarray(content[b"data"], np.uint8).reshape(-1, 3, 32, 32)
        return Examples(planes.transpose(0, 2, 3, 1), np.asarray(content[b"labels"], np.int32))

    def unpickle(name: str) -> Any:
        content = read_file(name)
        if path.is_dir():
            _verify(
                path / name,
                hashlib.md5(content, usedforsecurity=False).hexdigest(),
                published.md5[name],
            )
        try:
            return _ArrayUnpickler(io.BytesIO(content), encoding="bytes").load()
        except Exception as error:  # a pickle that is damaged can raise anything
            raise _damaged(path / name, str(error)) from error

    names = tuple(name.decode() for name in unpickle("batches.meta")[b"label_names"])
    return _join(path, batch, "", names, published)


def _read_binary(path: Path, read_file: ReadFile, published: Published) -> Dataset:
    def batch(name: str) -> Examples:
        content = read_file(name)
        if len(content) != published.batch_images * RECORD_BYTES:
            expected = published.batch_images * RECORD_BYTES
            raise _damaged(path / name, f"{len(content)} bytes instead of {expected}")
        records = np.frombuffer(content, np.uint8).reshape(-1, RECORD_BYTES)
        if records[:, 0].max() > 9:
            raise _damaged(path / name, f"it holds the label {records[:, 0].max()}")
        planes = records[:, 1:].reshape(-1, 3, 32, 32)
        return Examples(planes.transpose(0, 2, 3, 1), records[:, 0].astype(np.int32))

    names = tuple(read_file("batches.meta.txt").decode(errors="replace").split())
    if len(names) != 10:
        raise _damaged(path / "batches.meta.txt", f"it holds {len(names)} class names")
    return _join(path, batch, ".bin", names, published)


def _join(
    path: Path,
    batch: Callable[[str], Examples],
    suffix: str,
    names: tuple[str, ...],
    published: Published,
) -> Dataset:
    batches = [batch(name + suffix) for name in (*TRAIN_BATCHES, "test_batch")]
    for name, examples in zip((*TRAIN_BATCHES, "test_batch"), batches, strict=True):
        if examples.images.shape[0] != published.batch_images:
            raise _damaged(path / (name + suffix), f"it holds {len(examples.images)} images")
    images, labels = (np.concatenate(arrays) for arrays in zip(*batches[:-1], strict=True))
    test = Examples(*(np.ascontiguousarray(array) for array in batches[-1]))
    return Dataset(Examples(images, labels), test, names)


class _ArrayUnpickler(pickle.Unpickler):
    """Builds numpy arrays and nothing else, whatever the pickle asks for."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        if name == "_reconstruct" and module in (
            "numpy.core.multiarray",
            "numpy._core.multiarray",
        ):
            return np.ndarray.__reduce__(np.empty(0))[0]
        if (module, name) == ("_codecs", "encode"):  # how Python 3 pickles bytes for Python 2
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no CIFAR-10 file needs")


def _verify(path: Path, found: str, expected: str) -> None:
    if found != expected:
        raise _damaged(path, f"md5 {found} instead of the published {expected}")


def _damaged(path: Path, why: str) -> UserError:
    return UserError(f"{path} is damaged or not the official file: {why}; delete it or get it anew")
