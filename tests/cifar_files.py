"""A small CIFAR-10 in each form that the official one is published in."""

import hashlib
import io
import pickle
import tarfile

import numpy as np

from jaxcifar.data import Dataset, Examples
from jaxcifar.data.archives import (
    BINARY_ARCHIVE,
    BINARY_FOLDER,
    PYTHON_ARCHIVE,
    PYTHON_FOLDER,
    TRAIN_BATCHES,
    Published,
)

BATCH_IMAGES = 8
NAMES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)


def make_dataset(rng):
    def examples(count):
        images = rng.integers(0, 256, (count, 32, 32, 3), np.uint8)
        return Examples(images, rng.integers(0, 10, count).astype(np.int32))

    return Dataset(examples(5 * BATCH_IMAGES), examples(BATCH_IMAGES), NAMES)


def _batches(dataset):
    for index, name in enumerate(TRAIN_BATCHES):
        part = slice(index * BATCH_IMAGES, (index + 1) * BATCH_IMAGES)
        yield name, dataset.train.images[part], dataset.train.labels[part]
    yield "test_batch", *dataset.test


def _files(dataset):
    """Content by file name, of both folders."""
    python, binary = {}, {"batches.meta.txt": "\n".join(NAMES).encode() + b"\n\n"}
    names = [name.encode() for name in NAMES]
    python["batches.meta"] = pickle.dumps({b"label_names": names}, protocol=2)
    for name, images, labels in _batches(dataset):
        planes = np.ascontiguousarray(images.transpose(0, 3, 1, 2)).reshape(len(images), -1)
        batch = {b"data": planes, b"labels": labels.tolist()}
        python[name] = pickle.dumps(batch, protocol=2)
        records = np.concatenate([labels[:, None].astype(np.uint8), planes], axis=1)
        binary[f"{name}.bin"] = records.tobytes()
    return python, binary


def write(folder, dataset):
    """Writes both folders and both archives, and returns what is "published" of them."""
    md5 = {}
    python, binary = _files(dataset)
    for name, archive, files in (
        (PYTHON_FOLDER, PYTHON_ARCHIVE, python),
        (BINARY_FOLDER, BINARY_ARCHIVE, binary),
    ):
        (folder / name).mkdir(parents=True)
        with tarfile.open(folder / archive, "w:gz") as tar:
            for file, content in files.items():
                (folder / name / file).write_bytes(content)
                md5[file] = hashlib.md5(content).hexdigest()
                info = tarfile.TarInfo(f"{name}/{file}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        md5[archive] = hashlib.md5((folder / archive).read_bytes()).hexdigest()
    return Published(md5, BATCH_IMAGES)


def assert_equal(got, expected):
    for ours, theirs in zip(
        (*got.train, *got.test), (*expected.train, *expected.test), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
        assert ours.dtype == theirs.dtype
    assert got.class_names == expected.class_names
