"""The official files of CIFAR-10 and -100 (Krizhevsky, 2009): archives and unpacked folders."""

import hashlib
import io
import pickle
import tarfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxcifar.core.steps import Dataset, Examples
from jaxcifar.errors import regular_file

NO_EXAMPLES = Examples(np.empty((0, 32, 32, 3), np.uint8), np.empty(0, np.int32))
# Of the archives and of the pickles in them, as in torchvision; md5sum --check reads the file.
_MD5SUMS = Path(__file__).with_name("md5sums.txt").read_text(encoding="ascii").split()
_unpickle = partial(pickle.loads, encoding="bytes")  # only what has its published checksum


class Source(NamedTuple):
    """The official files of one data set; pairs are of pickles ("python") and binary records."""

    name: str  # in TFDS and on the command line
    archives: tuple[str, str]
    folders: tuple[str, str]  # what the archives unpack to
    names_files: tuple[str, str]  # list the class names
    prefix: bytes  # of the labels' keys in pickles; with it, records have a coarse label first
    batches: Mapping[str, int]  # number of images by file name; the last file is the test set
    md5: Mapping[str, str] = dict(zip(_MD5SUMS[1::2], _MD5SUMS[::2], strict=True))


CIFAR10 = Source(
    name="cifar10",
    archives=("cifar-10-python.tar.gz", "cifar-10-binary.tar.gz"),
    folders=("cifar-10-batches-py", "cifar-10-batches-bin"),
    names_files=("batches.meta", "batches.meta.txt"),
    prefix=b"",
    batches={**{f"data_batch_{n}": 10_000 for n in range(1, 6)}, "test_batch": 10_000},
)

CIFAR100 = Source(
    name="cifar100",
    archives=("cifar-100-python.tar.gz", "cifar-100-binary.tar.gz"),
    folders=("cifar-100-python", "cifar-100-binary"),
    names_files=("meta", "fine_label_names.txt"),
    prefix=b"fine_",
    batches={"train": 50_000, "test": 10_000},
)


def find(data_dir: Path, source: Source) -> list[Path]:
    """Return the official folders and archives at, in, and in the downloads of ``data_dir``."""
    forms, archive = (*source.folders, *source.archives), f"*{source.archives[1][:-7]}*.tar.gz"
    patterns = [place + form for place in ("", "downloads/manual/", "downloads/") for form in forms]
    # TFDS decorates the names of its downloads, and may put them into a folder of the data set.
    patterns += [f"downloads/{archive}", f"downloads/cifar10*/{archive}"]
    paths = [path for pattern in patterns for path in data_dir.glob(pattern)]
    return [data_dir, *paths] if data_dir.name in forms and data_dir.exists() else paths


def read(path: Path, source: Source, test_only: bool) -> Dataset:
    """Read an archive or folder; any exception means that a file is missing or damaged."""
    binary = path.name not in (source.folders[0], source.archives[0])  # indexes the pairs, too
    batches = [name + ".bin" * binary for name in source.batches][-1 if test_only else 0 :]
    files = _read_files(path, [source.names_files[binary], *batches], source, binary)
    names = files.pop(source.names_files[binary])
    class_names = names.split() if binary else _unpickle(names)[source.prefix + b"label_names"]
    *parts, test = (_parse_batch(name, content, source) for name, content in files.items())
    train = Examples(*map(np.concatenate, zip(NO_EXAMPLES, *parts, strict=True)))
    return Dataset(train, test, tuple(name.decode() for name in class_names))


def _read_files(path: Path, names: list[str], source: Source, binary: bool) -> dict[str, bytes]:
    if path.is_dir():
        return {name: _verified(path / name, name, source) for name in names}
    content = io.BytesIO(_verified(path, source.archives[binary], source))
    with tarfile.open(fileobj=content, mode="r:gz") as tar:
        # In the archive's order, since seeking back would decompress it again.
        files = {m.name: f.read() for m in tar if (f := tar.extractfile(m)) is not None}
    return {name: files[f"{source.folders[binary]}/{name}"] for name in names}


def _verified(path: Path, name: str, source: Source) -> bytes:
    content = regular_file(path).read_bytes()
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if md5 != source.md5.get(name, md5):
        raise ValueError(f"{name} has md5 {md5} instead of the published {source.md5[name]}")
    return content


def _parse_batch(name: str, content: bytes, source: Source) -> Examples:
    count = source.batches[name.removesuffix(".bin")]
    if name.endswith(".bin"):
        label_bytes = 2 if source.prefix else 1
        records = np.frombuffer(content, np.uint8).reshape(count, label_bytes + 3 * 32 * 32)
        pixels, labels = records[:, label_bytes:], records[:, label_bytes - 1]
    else:
        batch = _unpickle(content)
        pixels, labels = batch[b"data"], np.asarray(batch[source.prefix + b"labels"])
    images = pixels.reshape(count, 3, 32, 32).transpose(0, 2, 3, 1)
    return Examples(images, labels.astype(np.int32))
