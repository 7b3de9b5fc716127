"""A small CIFAR-10 or -100 in each form that the official one is published in."""

import dataclasses
import hashlib
import io
import pickle
import tarfile

import numpy as np

from jaxcifar.data import Dataset, Examples, archives, cifar

BATCH_IMAGES = 8
NAMES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)


def names(published):
    few = published.num_classes == 10
    return NAMES if few else tuple(f"class_{n:02d}" for n in range(published.num_classes))


def make_dataset(rng, published=archives.CIFAR10):
    def examples(count):
        images = rng.integers(0, 256, (count, 32, 32, 3), np.uint8)
        return Examples(images, rng.integers(0, published.num_classes, count).astype(np.int32))

    train_images = (len(published.batches) - 1) * BATCH_IMAGES
    return Dataset(examples(train_images), examples(BATCH_IMAGES), names(published))


def _batches(dataset, published):
    *train, test = published.batches
    for index, name in enumerate(train):
        part = slice(index * BATCH_IMAGES, (index + 1) * BATCH_IMAGES)
        yield name, dataset.train.images[part], dataset.train.labels[part]
    yield test, *dataset.test


def _files(dataset, published):
    """Content by file name, of both folders."""
    own = names(published)
    file, key = published.python_names
    python = {file: pickle.dumps({key: [name.encode() for name in own]}, protocol=2)}
    binary = {published.binary_names: "\n".join(own).encode() + b"\n\n"}
    for name, images, labels in _batches(dataset, published):
        planes = np.ascontiguousarray(images.transpose(0, 3, 1, 2)).reshape(len(images), -1)
        batch = {b"data": planes, published.python_labels: labels.tolist()}
        coarse = np.arange(len(labels), dtype=np.uint8)[:, None]  # read for fine, they would differ
        if published.label_bytes == 2:
            batch[b"coarse_labels"] = coarse[:, 0].tolist()
        python[name] = pickle.dumps(batch, protocol=2)
        columns = [coarse] * (published.label_bytes - 1) + [labels[:, None].astype(np.uint8)]
        binary[f"{name}.bin"] = np.concatenate([*columns, planes], axis=1).tobytes()
    return python, binary


def write(folder, dataset, published=archives.CIFAR10):
    """Writes both folders and both archives, and returns what is "published" of them."""
    md5 = {}
    python, binary = _files(dataset, published)
    for name, archive, files in (
        (published.python_folder, published.python_archive, python),
        (published.binary_folder, published.binary_archive, binary),
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
    batches = dict.fromkeys(published.batches, BATCH_IMAGES)
    return dataclasses.replace(published, md5=md5, batches=batches)


def load(data_dir, published=archives.CIFAR10, **changes):
    """Loads as ``data.load`` does, with these files for the official ones."""
    source = cifar.CIFAR10 if published.num_classes == 10 else cifar.CIFAR100
    return cifar.load(dataclasses.replace(source, published=published, **changes), data_dir)


def assert_equal(got, expected):
    for ours, theirs in zip(
        (*got.train, *got.test), (*expected.train, *expected.test), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
        assert ours.dtype == theirs.dtype
    assert got.class_names == expected.class_names
