"""The official files of CIFAR-10 and -100 (Krizhevsky, 2009): archives and unpacked folders.

Published checksums are verified before parsing; unpickling may then only build arrays.
"""

import hashlib
import io
import pickle
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxcifar.data.dataset import NO_EXAMPLES, Dataset, Examples
from jaxcifar.errors import UserError, regular_file

# Of the archives and of the pickles in them, as in torchvision; md5sum --check reads the file.
_MD5SUMS = Path(__file__).with_name("md5sums.txt").read_text(encoding="ascii").split()
_IN_OFFICIAL_PICKLES = ("numpy.ndarray", "numpy.dtype", "numpy.core.multiarray._reconstruct")


class Source(NamedTuple):
    """The official files of one data set; pairs are of pickles ("python") and binary records."""

    name: str  # in TFDS and on the command line
    num_classes: int
    archives: tuple[str, str]
    folders: tuple[str, str]  # what the archives unpack to
    names_files: tuple[str, str]  # list the class names
    keys: tuple[bytes, bytes]  # of the class names and of the labels in pickles
    label_bytes: int  # of a record; the last one is the label
    batches: Mapping[str, int]  # number of images by file name; the last file is the test set
    md5: Mapping[str, str] = dict(zip(_MD5SUMS[1::2], _MD5SUMS[::2], strict=True))


CIFAR10 = Source(
    name="cifar10",
    num_classes=10,
    archives=("cifar-10-python.tar.gz", "cifar-10-binary.tar.gz"),
    folders=("cifar-10-batches-py", "cifar-10-batches-bin"),
    names_files=("batches.meta", "batches.meta.txt"),
    keys=(b"label_names", b"labels"),
    label_bytes=1,
    batches={**{f"data_batch_{n}": 10_000 for n in range(1, 6)}, "test_batch": 10_000},
)

CIFAR100 = Source(
    name="cifar100",
    num_classes=100,
    archives=("cifar-100-python.tar.gz", "cifar-100-binary.tar.gz"),
    folders=("cifar-100-python", "cifar-100-binary"),
    names_files=("meta", "fine_label_names.txt"),
    keys=(b"fine_label_names", b"fine_labels"),
    label_bytes=2,  # the coarse label comes first
    batches={"train": 50_000, "test": 10_000},
)


def find(data_dir: Path, source: Source) -> Path | None:
    """Return the first official folder or archive at, in, or in the downloads of ``data_dir``."""
    forms, downloads = (*source.folders, *source.archives), data_dir / "downloads"
    folders = (data_dir, downloads / "manual", downloads)
    paths = [data_dir] if data_dir.name in forms else []
    paths += [folder / form for folder in folders for form in forms]
    # TFDS decorates the names of its downloads, and may put them into a folder of the data set.
    stem = source.archives[1].removesuffix(".tar.gz")
    for pattern in (f"*{stem}*.tar.gz", f"cifar10*/*{stem}*.tar.gz"):
        paths += downloads.glob(pattern)
    return next((path for path in paths if path.is_file() or path.is_dir()), None)


def read(path: Path, source: Source, *, test_only: bool = False) -> Dataset:
    """Read an archive or folder; ``UserError`` names a file that is missing or damaged."""
    binary = path.name not in (source.folders[0], source.archives[0])  # indexes the pairs, too
    wanted = list(source.batches.items())[-1 if test_only else 0 :]
    counts = {name + ".bin" * binary: count for name, count in wanted}
    name, batches = "", []
    try:
        files = _read_files(path, [source.names_files[binary], *counts], source, binary)
        name = source.names_files[binary]
        names = files[name].split() if binary else _unpickle(files[name])[source.keys[0]]
        class_names = tuple(text.decode() for text in names)
        if len(class_names) != source.num_classes:
            raise ValueError(f"{len(class_names)} class names instead of {source.num_classes}")
        for name, count in counts.items():
            batches.append(_parse_batch(files[name], count, source, binary))
    except Exception as error:  # a damaged pickle can raise anything
        raise UserError(f"{path / name} is damaged or unreadable ({error}): replace it") from error
    splits = (zip(NO_EXAMPLES, *part, strict=True) for part in (batches[:-1], batches[-1:]))
    train, test = (Examples(*map(np.concatenate, arrays)) for arrays in splits)
    return Dataset(train, test, class_names)


def _read_files(path: Path, names: Sequence[str], source: Source, binary: bool) -> dict[str, bytes]:
    if path.is_dir():
        files = {name: regular_file(path / name).read_bytes() for name in names}
        for name in () if binary else names:
            _verify(files[name], name, source)
        return files
    content = regular_file(path).read_bytes()
    _verify(content, source.archives[binary], source)
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as tar:
        # In the archive's order, since seeking back would decompress it again.
        files = {m.name: f.read() for m in tar if (f := tar.extractfile(m)) is not None}
    try:
        return {name: files[f"{source.folders[binary]}/{name}"] for name in names}
    except KeyError as error:
        raise ValueError(f"it has no {error}") from error


def _verify(content: bytes, name: str, source: Source) -> None:
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if md5 != source.md5[name]:
        raise ValueError(f"{name} has md5 {md5} instead of the published {source.md5[name]}")


def _parse_batch(content: bytes, count: int, source: Source, binary: bool) -> Examples:
    if binary:
        expected = count * (source.label_bytes + 3 * 32 * 32)
        if len(content) != expected:
            raise ValueError(f"{len(content)} bytes instead of {expected}")
        records = np.frombuffer(content, np.uint8).reshape(count, -1)
        pixels, labels = records[:, source.label_bytes :], records[:, source.label_bytes - 1]
    else:
        batch = _unpickle(content)
        pixels, labels = batch[b"data"], np.asarray(batch[source.keys[1]])
    if labels.max() >= source.num_classes:
        raise ValueError(f"label {labels.max()}, but only {source.num_classes} classes")
    images = pixels.reshape(count, 3, 32, 32).transpose(0, 2, 3, 1)
    return Examples(images, labels.astype(np.int32))


def _unpickle(content: bytes) -> Any:
    return _ArrayUnpickler(io.BytesIO(content), encoding="bytes").load()


class _ArrayUnpickler(pickle.Unpickler):
    """Builds numpy arrays and nothing else, whatever the pickle asks for."""

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" in _IN_OFFICIAL_PICKLES:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no official file needs")
