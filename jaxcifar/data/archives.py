"""The official files of CIFAR-10 and -100 (Krizhevsky, 2009): archives and unpacked folders.

Published checksums are verified before parsing; unpickling may then only build arrays.
"""

import hashlib
import io
import pickle
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxcifar.data.dataset import NO_EXAMPLES, Dataset, Examples
from jaxcifar.errors import regular_file

# Of the archives and of the pickles in them, as in torchvision; md5sum --check reads the file.
_MD5SUMS = Path(__file__).with_name("md5sums.txt").read_text(encoding="ascii").split()
_IN_OFFICIAL_PICKLES = ("numpy.ndarray", "numpy.dtype", "numpy.core.multiarray._reconstruct")
_PIXELS = 3 * 32 * 32


class Source(NamedTuple):
    """The official files of one data set; pairs are of pickles ("python") and binary records."""

    name: str  # in TFDS and on the command line
    archives: tuple[str, str]
    folders: tuple[str, str]  # what the archives unpack to
    names_files: tuple[str, str]  # list the class names
    keys: tuple[bytes, bytes]  # of the class names and of the labels in pickles
    label_bytes: int  # of a record; the last one is the label
    batches: Mapping[str, int]  # number of images by file name; the last file is the test set
    md5: Mapping[str, str] = dict(zip(_MD5SUMS[1::2], _MD5SUMS[::2], strict=True))


CIFAR10 = Source(
    name="cifar10",
    archives=("cifar-10-python.tar.gz", "cifar-10-binary.tar.gz"),
    folders=("cifar-10-batches-py", "cifar-10-batches-bin"),
    names_files=("batches.meta", "batches.meta.txt"),
    keys=(b"label_names", b"labels"),
    label_bytes=1,
    batches={**{f"data_batch_{n}": 10_000 for n in range(1, 6)}, "test_batch": 10_000},
)

CIFAR100 = Source(
    name="cifar100",
    archives=("cifar-100-python.tar.gz", "cifar-100-binary.tar.gz"),
    folders=("cifar-100-python", "cifar-100-binary"),
    names_files=("meta", "fine_label_names.txt"),
    keys=(b"fine_label_names", b"fine_labels"),
    label_bytes=2,  # the coarse label comes first
    batches={"train": 50_000, "test": 10_000},
)


def find(data_dir: Path, source: Source) -> Iterator[Path]:
    """Yield the official folders and archives at, in, and in the downloads of ``data_dir``."""
    forms, downloads = (*source.folders, *source.archives), data_dir / "downloads"
    paths = [data_dir] if data_dir.name in forms else []
    for folder in (data_dir, downloads / "manual", downloads):
        paths += [folder / form for form in forms]
    # TFDS decorates the names of its downloads, and may put them into a folder of the data set.
    name = f"*{source.archives[1].removesuffix('.tar.gz')}*.tar.gz"
    paths += [*downloads.glob(name), *downloads.glob(f"cifar10*/{name}")]
    return filter(Path.exists, paths)


def read(path: Path, source: Source, *, test_only: bool) -> Dataset:
    """Read an archive or folder; any exception means that a file is missing or damaged."""
    binary = path.name not in (source.folders[0], source.archives[0])  # indexes the pairs, too
    batches = [name + ".bin" * binary for name in source.batches][-1 if test_only else 0 :]
    files = _read_files(path, [source.names_files[binary], *batches], source, binary)
    names = files.pop(source.names_files[binary])
    class_names = names.split() if binary else _unpickle(names)[source.keys[0]]
    parts = [_parse_batch(name, content, source) for name, content in files.items()]
    train, test = (
        Examples(*map(np.concatenate, zip(NO_EXAMPLES, *split, strict=True)))
        for split in (parts[:-1], parts[-1:])
    )
    return Dataset(train, test, tuple(name.decode() for name in class_names))


def _read_files(path: Path, names: Sequence[str], source: Source, binary: bool) -> dict[str, bytes]:
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
        expected = count * (source.label_bytes + _PIXELS)
        if len(content) != expected:
            raise ValueError(f"{name} has {len(content)} bytes instead of {expected}")
        records = np.frombuffer(content, np.uint8).reshape(count, -1)
        pixels, labels = records[:, -_PIXELS:], records[:, -_PIXELS - 1]
    else:
        batch = _unpickle(content)
        pixels, labels = batch[b"data"], np.asarray(batch[source.keys[1]])
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
