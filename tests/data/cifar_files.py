"""A small CIFAR-10 or -100 in each form that is published or prepared, and damage to files."""

import hashlib
import io
import json
import pickle
import tarfile
from functools import partial

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image
from tensorboardX.record_writer import RecordWriter
from tensorflow_datasets.proto import tf_example_pb2

from jaxcifar.data import Dataset, Examples
from jaxcifar.data.cifar import CIFAR10, CIFAR100, CLASS_NAMES
from jaxcifar.errors import UserError

SOURCES = (CIFAR10, CIFAR100)
BATCH_IMAGES = 8
WRITERS = {"array_record": lambda path: ArrayRecordWriter(path, "group_size:1")}
WRITERS["tfrecord"] = RecordWriter


def make_dataset(rng, source=CIFAR10):
    names = CLASS_NAMES if source is CIFAR10 else tuple(f"class_{n:02d}" for n in range(100))

    def examples(count):
        images = rng.integers(0, 256, (count, 32, 32, 3), np.uint8)
        return Examples(images, rng.integers(0, len(names), count).astype(np.int32))

    train = examples((len(source.batches) - 1) * BATCH_IMAGES)
    return Dataset(train, examples(BATCH_IMAGES), names)


def _contents(dataset, source):
    names, coarse = [name.encode() for name in dataset.class_names], np.uint8([0] * BATCH_IMAGES)
    python = {source.names_files[0]: pickle.dumps({source.prefix + b"label_names": names}, 3)}
    binary = {source.names_files[1]: b"\n".join(names) + b"\n\n"}
    images, labels = (np.concatenate(arrays) for arrays in zip(*dataset[:2], strict=True))
    planes = images.transpose(0, 3, 1, 2).reshape(-1, BATCH_IMAGES, 3072)
    labels = labels.astype(np.uint8).reshape(-1, BATCH_IMAGES)
    for name, pixels, fine in zip(source.batches, planes, labels, strict=True):
        batch = {b"data": pixels, b"coarse_labels": [0], source.prefix + b"labels": fine.tolist()}
        python[name] = pickle.dumps(batch, 3).replace(b"numpy._core", b"numpy.core")
        columns = [coarse, fine, *pixels.T] if source.prefix else [fine, *pixels.T]
        binary[f"{name}.bin"] = np.stack(columns, axis=1).tobytes()
    return python, binary


def write(folder, dataset, source=CIFAR10):
    """Write both folders and both archives; return the source with their facts."""
    md5 = {}
    forms = zip(source.folders, source.archives, _contents(dataset, source), strict=True)
    for name, archive, contents in forms:
        (folder / name).mkdir(parents=True)
        for file, content in contents.items():
            (folder / name / file).write_bytes(content)
            if name == source.folders[0]:  # the sums of the others are not published
                md5[file] = hashlib.md5(content).hexdigest()
        with tarfile.open(folder / archive, "w:gz") as tar:
            tar.add(folder / name, name)
        md5[archive] = hashlib.md5((folder / archive).read_bytes()).hexdigest()
    return source._replace(md5=md5, batches=dict.fromkeys(source.batches, BATCH_IMAGES))


def prepare(data_dir, dataset, source=CIFAR10, format="array_record"):
    """Write a folder as TFDS prepares it; return its path."""
    folder = data_dir / source.name / "3.0.2"
    folder.mkdir(parents=True)
    info = {"fileFormat": format, "name": source.name, "version": "3.0.2", "splits": []}
    info["moduleName"] = "tensorflow_datasets.image_classification.cifar"
    for split, examples in zip(("train", "test"), dataset[:2], strict=True):
        path = str(folder / f"{source.name}-{split}.{format}-00000-of-00001")
        writer = WRITERS[format](path)
        for image, label in zip(*examples, strict=True):
            example = tf_example_pb2.Example()
            feature = example.features.feature
            feature["image"].bytes_list.value.append(encode(Image.fromarray(image), "PNG"))
            feature["label"].int64_list.value.append(int(label))
            feature["coarse_label"].int64_list.value.append(int(label) // 5)
            writer.write(example.SerializeToString())
        writer.close()
        shards = {"numBytes": "1", "shardLengths": [str(len(examples.labels))]}
        template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
        info["splits"].append({"name": split, "filepathTemplate": template, **shards})
    (folder / "dataset_info.json").write_text(json.dumps(info, indent=2))
    image = tfds.features.Image(shape=(32, 32, 3))
    label = tfds.features.ClassLabel(names=dataset.class_names)
    tfds.features.FeaturesDict({"image": image, "label": label}).save_config(folder)
    return folder


def encode(image, format, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = truncate, flip_a_bit


def assert_equal(actual, expected):
    jax.tree.map(partial(np.testing.assert_array_equal, strict=True), actual, expected)


def refusal(call, *arguments):
    with pytest.raises(UserError) as error:
        call(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)
