"""CIFAR-10 and -100 (Krizhevsky, 2009): prepared by TFDS, official files, or a download."""

import hashlib
import io
import pickle
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import platformdirs
from etils import epy
from PIL import Image

from jaxcifar.core.steps import Dataset, Examples
from jaxcifar.errors import UserError, regular_file

with epy.lazy_imports():
    import pooch
    import tensorflow_datasets as tfds
    from array_record.python import array_record_data_source as array_record
    from tensorflow_datasets import proto

SECONDS = 8.0  # to wait for a server
_CLASSES = "airplane automobile bird cat deer dog frog horse ship truck"
CLASS_NAMES = tuple(_CLASSES.split())
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


def load(source: Source, data_dir: Path, *, test_only: bool = False) -> Dataset:
    """Load what TFDS prepared, the newest version, or an archive or folder, or a download."""
    prepared = sorted(data_dir.glob(f"{source.name}/*/dataset_info.json"), reverse=True)
    paths = [*[info.parent for info in prepared], *find(data_dir, source)]
    path = paths[0] if paths else download(source.name, data_dir)
    try:
        dataset = _prepared(path, test_only) if prepared else _official(path, source, test_only)
        if not {*dataset.train.labels, *dataset.test.labels} <= {*range(len(dataset.class_names))}:
            raise ValueError("a label has no class")
    except Exception as error:  # whatever pickle, array_record, protobuf or Pillow raise
        advice = "replace or delete it; TFDS's array_record and tfrecord are read"
        raise UserError(f"{path} is damaged or incomplete ({error}): {advice}") from error
    return dataset


def download(name: str, data_dir: Path) -> Path:
    """Download the archive that TFDS knows for a data set into ``data_dir/downloads``."""
    ((url, info),) = tfds.builder_cls(name).url_infos.items()
    http = pooch.HTTPDownloader(progressbar=True, chunk_size=2**16, timeout=SECONDS)
    folder = data_dir / "downloads"
    try:
        file = pooch.retrieve(url, info.checksum, info.filename, folder, downloader=http)
        Path(file).chmod(0o644)  # pooch leaves it to its owner alone
        return Path(file)
    except Exception as error:  # of requests, the checksum, or the disk
        advice = f"Put {info.filename} into {data_dir} (--data-dir), or train on --dataset digits"
        raise UserError(f"could not download {url}: {error}. {advice}") from error


def find(data_dir: Path, source: Source) -> list[Path]:
    """Return the official folders and archives at, in, and in the downloads of ``data_dir``."""
    forms, archive = (*source.folders, *source.archives), f"*{source.archives[1][:-7]}*.tar.gz"
    patterns = [place + form for place in ("", "downloads/manual/", "downloads/") for form in forms]
    # TFDS decorates the names of its downloads, and may put them into a folder of the data set.
    patterns += [f"downloads/{archive}", f"downloads/cifar10*/{archive}"]
    paths = [path for pattern in patterns for path in data_dir.glob(pattern)]
    return [data_dir, *paths] if data_dir.name in forms and data_dir.exists() else paths


def _official(path: Path, source: Source, test_only: bool) -> Dataset:
    """Read an archive or folder; any exception means that a file is missing or damaged."""
    binary = path.name not in (source.folders[0], source.archives[0])  # indexes the pairs, too
    batches = [name + ".bin" * binary for name in source.batches][-1 if test_only else 0 :]
    files = _official_files(path, [source.names_files[binary], *batches], source, binary)
    names = files.pop(source.names_files[binary])
    class_names = names.split() if binary else _unpickle(names)[source.prefix + b"label_names"]
    *parts, test = (_parse_batch(name, content, source) for name, content in files.items())
    train = Examples(*map(np.concatenate, zip(NO_EXAMPLES, *parts, strict=True)))
    return Dataset(train, test, tuple(name.decode() for name in class_names))


def _official_files(path: Path, names: list[str], source: Source, binary: bool) -> dict[str, bytes]:
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
    return Examples(pixels.reshape(count, 3, 32, 32).transpose(0, 2, 3, 1), labels.astype(np.int32))


def _prepared(folder: Path, test_only: bool) -> Dataset:
    """Return what was decoded from files with these bytes before, out of the user's cache."""
    files = sorted(path for path in folder.iterdir() if regular_file(path).is_file())
    sums = [f"{file.name} {pooch.file_hash(file)}" for file in files]
    name = hashlib.sha256("\n".join([*sums, str(test_only)]).encode()).hexdigest()
    path = None
    with suppress(Exception):  # there is no home, or nothing kept, or it is damaged
        path = platformdirs.user_cache_path("jaxcifar", ensure_exists=True) / f"{name}.npz"
        with path.open("rb") as kept, np.load(kept) as arrays:  # with the archive's checksums
            *parts, names = arrays.values()
            return Dataset(Examples(*parts[:2]), Examples(*parts[2:]), tuple(names.tolist()))
    dataset = _decoded(folder, test_only)
    with suppress(OSError):  # the disk is full
        if path is not None:
            np.savez(path, *dataset.train, *dataset.test, dataset.class_names)
    return dataset


def _decoded(folder: Path, test_only: bool) -> Dataset:
    info = tfds.builder_from_directory(folder).info
    splits = [NO_EXAMPLES] if test_only else []
    for split in ("train", "test")[len(splits) :]:
        examples = _read([Path(file) for file in info.splits[split].filepaths])
        if len(examples.labels) != (count := info.splits[split].num_examples):
            raise ValueError(f"{split} has {len(examples.labels)} records instead of {count}")
        splits.append(examples)
    return Dataset(splits[0], splits[1], tuple(info.features["label"].names))


def _read(files: list[Path]) -> Examples:
    if "array_record" in files[0].name:
        source = array_record.ArrayRecordDataSource(files)
        records = source.__getitems__(range(len(source)))
    else:
        records = _split_tfrecord(io.BytesIO(b"".join(map(Path.read_bytes, files))))
    features = [proto.tf_example_pb2.Example.FromString(each).features.feature for each in records]
    images = np.stack([_decode(feature["image"].bytes_list.value[0]) for feature in features])
    labels = [feature["label"].int64_list.value[0] for feature in features]
    return Examples(images, np.array(labels, np.int32))


def _decode(png: bytes) -> np.ndarray:
    image, verified = (Image.open(io.BytesIO(png), formats=["PNG"]) for _ in range(2))
    verified.verify()  # its checksums, which decoding does not; it cannot be decoded afterwards
    return np.asarray(image)


def _split_tfrecord(file: io.BytesIO) -> Iterator[bytes]:
    """Yield the records; their CRC-32C, for which Python needs a minute, is left unchecked."""
    while header := file.read(12):  # the length and its checksum
        yield file.read(int.from_bytes(header[:8], "little"))
        file.read(4)  # the record's checksum
