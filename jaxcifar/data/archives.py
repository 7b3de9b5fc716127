"""The official files: ``cifar-10{,0}-{python,binary}.tar.gz`` and what they unpack to.

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

PIXEL_BYTES = 32 * 32 * 3

ReadFile = Callable[[str], bytes]


@dataclasses.dataclass(frozen=True)
class Published:
    """What the official files of one data set are known to be.

    Attributes:
      python_folder: what the archive of pickled files unpacks to.
      binary_folder: what the archive of records unpacks to.
      python_archive: its name.
      binary_archive: its name.
      batches: images by file name, without the records' ``.bin``; the last file is the test's.
      python_names: the pickled file with the names of the classes, and their key in it.
      binary_names: the text file with them.
      python_labels: the key of the labels in a pickled file.
      label_bytes: of a record; the last one is the label.
      num_classes: how many there are.
      md5: checksum by file name; as on the data set's page and in torchvision. No
        checksums of the unpacked binary files are published.
    """

    python_folder: str
    binary_folder: str
    python_archive: str
    binary_archive: str
    batches: Mapping[str, int]
    python_names: tuple[str, bytes]
    binary_names: str
    python_labels: bytes
    label_bytes: int
    num_classes: int
    md5: Mapping[str, str]

    @property
    def forms(self) -> tuple[str, ...]:
        """The folders and archives, in the order of preference."""
        return self.python_folder, self.binary_folder, self.python_archive, self.binary_archive


CIFAR10 = Published(
    python_folder="cifar-10-batches-py",
    binary_folder="cifar-10-batches-bin",
    python_archive="cifar-10-python.tar.gz",
    binary_archive="cifar-10-binary.tar.gz",
    batches=MappingProxyType(
        {**{f"data_batch_{number}": 10_000 for number in range(1, 6)}, "test_batch": 10_000}
    ),
    python_names=("batches.meta", b"label_names"),
    binary_names="batches.meta.txt",
    python_labels=b"labels",
    label_bytes=1,
    num_classes=10,
    md5=MappingProxyType(
        {
            "cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a",
            "cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530",
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
            "test_batch": "40351d587109b95175f43aff81a1287e",
            "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
        }
    ),
)

CIFAR100 = Published(
    python_folder="cifar-100-python",
    binary_folder="cifar-100-binary",
    python_archive="cifar-100-python.tar.gz",
    binary_archive="cifar-100-binary.tar.gz",
    batches=MappingProxyType({"train": 50_000, "test": 10_000}),
    python_names=("meta", b"fine_label_names"),
    binary_names="fine_label_names.txt",
    python_labels=b"fine_labels",
    label_bytes=2,  # the coarse one first
    num_classes=100,
    md5=MappingProxyType(
        {
            "cifar-100-python.tar.gz": "eb9058c3a382ffc7106e4002c42a8d85",
            "cifar-100-binary.tar.gz": "03b5dce01913d631647c71ecec9e9cb8",
            "train": "16019d7e3df5f24257cddd939b257f8d",
            "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
            "meta": "7973b15100ade9c7d40fb424638fde48",
        }
    ),
)


def find(data_dir: Path, published: Published) -> Path | None:
    """The first official folder or archive at, in, or in the downloads of ``data_dir``."""
    if data_dir.name in published.forms and data_dir.exists():
        return data_dir
    for folder in (data_dir, data_dir / "downloads" / "manual", data_dir / "downloads"):
        for name in published.forms:
            if (folder / name).exists():
                return folder / name
    # TFDS decorates the names of its downloads, by itself or in a folder for the data set.
    stem = published.binary_archive.removesuffix(".tar.gz")
    patterns = (f"*{stem}*.tar.gz", f"cifar10*/*{stem}*.tar.gz")
    downloads = data_dir / "downloads"
    return next((path for pattern in patterns for path in downloads.glob(pattern)), None)


def read(path: Path, published: Published) -> Dataset:
    """Reads an official archive or folder.

    Raises:
      UserError: a file is missing, cut short, or not the published one; it is named.
    """
    pickled = "python" in path.name or path.name == published.python_folder
    read_files = _read_python if pickled else _read_binary
    if path.is_dir():
        return read_files(path, _folder_reader(path), published)
    name, folder = published.binary_archive, published.binary_folder
    if pickled:
        name, folder = published.python_archive, published.python_folder
    try:
        with path.open("rb") as file:
            _verify(path, hashlib.file_digest(file, "md5").hexdigest(), published.md5[name])
            file.seek(0)
            with tarfile.open(fileobj=file, mode="r:gz") as tar:
                return read_files(path, _tar_reader(path, tar, folder), published)
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
        labels = np.asarray(content[published.python_labels], np.int32)
        return Examples(planes.transpose(0, 2, 3, 1), labels)

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

    file, key = published.python_names
    names = tuple(name.decode() for name in unpickle(file)[key])
    return _join(path, batch, "", names, published)


def _read_binary(path: Path, read_file: ReadFile, published: Published) -> Dataset:
    record_bytes, label_at = published.label_bytes + PIXEL_BYTES, published.label_bytes - 1

    def batch(name: str) -> Examples:
        content = read_file(name)
        expected = published.batches[name.removesuffix(".bin")] * record_bytes
        if len(content) != expected:
            raise _damaged(path / name, f"{len(content)} bytes instead of {expected}")
        records = np.frombuffer(content, np.uint8).reshape(-1, record_bytes)
        labels = records[:, label_at]
        if labels.max() >= published.num_classes:
            raise _damaged(path / name, f"it holds the label {labels.max()}")
        planes = records[:, published.label_bytes :].reshape(-1, 3, 32, 32)
        return Examples(planes.transpose(0, 2, 3, 1), labels.astype(np.int32))

    file = published.binary_names
    names = tuple(read_file(file).decode(errors="replace").split())
    if len(names) != published.num_classes:
        raise _damaged(path / file, f"it holds {len(names)} class names")
    return _join(path, batch, ".bin", names, published)


def _join(
    path: Path,
    batch: Callable[[str], Examples],
    suffix: str,
    names: tuple[str, ...],
    published: Published,
) -> Dataset:
    batches = []
    for name, count in published.batches.items():
        batches.append(batch(name + suffix))
        if len(batches[-1].images) != count:
            raise _damaged(path / (name + suffix), f"it holds {len(batches[-1].images)} images")
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
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no official file needs")


def _verify(path: Path, found: str, expected: str) -> None:
    if found != expected:
        raise _damaged(path, f"md5 {found} instead of the published {expected}")


def _damaged(path: Path, why: str) -> UserError:
    return UserError(f"{path} is damaged or not the official file: {why}; delete it or get it anew")
