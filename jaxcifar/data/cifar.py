"""CIFAR-10 and -100 (Krizhevsky, 2009): prepared by TFDS, in an archive, or downloaded."""

import dataclasses
import io
import logging
from pathlib import Path
from typing import Any

import numpy as np

from jaxcifar.data import Dataset, Examples, archives
from jaxcifar.data.download import Remote, download
from jaxcifar.errors import UserError


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a data set comes from.

    Attributes:
      name: TFDS's, and ours.
      remote: the binary archive on the web; size and checksum are TFDS's.
      published: what the official files are.
    """

    name: str
    remote: Remote
    published: archives.Published


CIFAR10 = Source(
    "cifar10",
    Remote(
        url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        size=170_052_171,
        sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    ),
    archives.CIFAR10,
)

CIFAR100 = Source(
    "cifar100",
    Remote(
        url="https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
        size=168_513_733,
        sha256="58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
    ),
    archives.CIFAR100,
)

CLASS_NAMES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)


def load(source: Source, data_dir: Path) -> Dataset:
    """Loads 50,000 training and 10,000 test images from the first of three places.

    1. ``data_dir/NAME/VERSION``: what TFDS has prepared, as array_record.
    2. One of the official archives, or the folder it unpacks to, as the official page and
       torchvision leave them, in ``data_dir`` or its ``downloads``.
    3. A download into ``data_dir/downloads`` through TFDS.

    Args:
      source: the data set; of CIFAR-100 the labels are the fine ones.
      data_dir: the folder to look in, or one of the archives or folders itself.

    Raises:
      UserError: damaged data, or none and no network.
    """
    for info in sorted(data_dir.glob(f"{source.name}/*/dataset_info.json"), reverse=True):
        if _is_array_record(info):
            return _read_prepared(info.parent)
    path = archives.find(data_dir, source.published)
    if path is None:
        path = download(source.remote, data_dir)
    return archives.read(path, source.published)


def _is_array_record(info: Path) -> bool:
    # TFDS's default format is tfrecord, which only TensorFlow reads.
    return '"fileFormat": "array_record"' in info.read_text(errors="replace")


def _read_prepared(folder: Path) -> Dataset:
    logging.getLogger("absl").setLevel(logging.ERROR)  # "OpenCV is not installed"
    import tensorflow_datasets as tfds

    where = folder
    try:
        builder = tfds.builder_from_directory(folder)
        names = tuple(builder.info.features["label"].names)
        splits = {}
        for split in ("train", "test"):
            where = Path(builder.info.splits[split].filepaths[0])
            raw = tfds.decode.DeserializeMethod.RAW_BYTES
            splits[split] = _decode(builder.as_data_source(split=split, deserialize_method=raw))
    except Exception as error:  # whatever array_record, protobuf or Pillow raise on bad bytes
        raise UserError(
            f"{where} is damaged or missing; delete {folder} to load the data anew ({error})"
        ) from error
    return Dataset(splits["train"], splits["test"], names)


def _decode(source: Any) -> Examples:
    """Parses and decodes all records here, which takes two thirds of TFDS's own time."""
    from PIL import Image
    from tensorflow_datasets.proto import tf_example_pb2

    records = source.__getitems__(range(len(source)))
    images = np.empty((len(records), 32, 32, 3), np.uint8)
    labels = np.empty(len(records), np.int32)
    for index, record in enumerate(records):
        feature = tf_example_pb2.Example.FromString(record).features.feature
        png = io.BytesIO(feature["image"].bytes_list.value[0])
        images[index] = np.asarray(Image.open(png, formats=("PNG",)))
        labels[index] = feature["label"].int64_list.value[0]
    return Examples(images, labels)
