"""CIFAR-10 and -100: prepared by TFDS, as official files, or downloaded; without TensorFlow."""

import hashlib
import io
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import platformdirs
from etils import epy
from PIL import Image

from jaxcifar.core.steps import Dataset, Examples
from jaxcifar.data import archives
from jaxcifar.errors import UserError, regular_file

with epy.lazy_imports():
    import pooch
    import tensorflow_datasets as tfds
    from array_record.python import array_record_data_source as array_record
    from tensorflow_datasets import proto

SECONDS = 8.0  # to wait for a server
_CLASSES = "airplane automobile bird cat deer dog frog horse ship truck"
CLASS_NAMES = tuple(_CLASSES.split())


def load(source: archives.Source, data_dir: Path, *, test_only: bool = False) -> Dataset:
    """Load what TFDS prepared, the newest version, or an archive or folder, or a download."""
    prepared = sorted(data_dir.glob(f"{source.name}/*/dataset_info.json"), reverse=True)
    paths = [*[info.parent for info in prepared], *archives.find(data_dir, source)]
    path = paths[0] if paths else download(source.name, data_dir)
    try:
        dataset = _prepared(path, test_only) if prepared else archives.read(path, source, test_only)
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


def _prepared(folder: Path, test_only: bool) -> Dataset:
    for file in folder.iterdir():
        regular_file(file)
    info = tfds.builder_from_directory(folder).info
    splits = [archives.NO_EXAMPLES] if test_only else []
    for split in ("train", "test")[len(splits) :]:
        examples = _kept([Path(file) for file in info.splits[split].filepaths])
        if len(examples.labels) != (count := info.splits[split].num_examples):
            raise ValueError(f"{split} has {len(examples.labels)} records instead of {count}")
        splits.append(examples)
    return Dataset(splits[0], splits[1], tuple(info.features["label"].names))


def _kept(files: list[Path]) -> Examples:
    """Return what was read from files with these bytes before, out of the user's cache."""
    name = hashlib.sha256("".join(map(pooch.file_hash, files)).encode()).hexdigest()
    path = None
    with suppress(Exception):  # there is no home, or nothing kept, or it is damaged
        path = platformdirs.user_cache_path("jaxcifar", ensure_exists=True) / f"{name}.npz"
        with path.open("rb") as file, np.load(file) as arrays:
            return Examples(**arrays)  # with the checksums of the archive
    examples = _read(files)
    with suppress(OSError):  # the disk is full
        if path is not None:
            np.savez(path, **examples._asdict())
    return examples


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
