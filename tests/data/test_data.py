"""Data sets: digits, prepared TFDS data, hold-out."""

import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from jaxcifar import data
from jaxcifar.data import Examples, archives, digits
from jaxcifar.errors import UserError
from tests.conftest import loaded_by
from tests.data import cifar_files

FEATURES = "tensorflow_datasets.core.features."


def test_digits():
    first, second = digits.load(), digits.load()
    assert first.train.images.shape == (1437, 32, 32, 3)
    assert first.test.images.shape == (360, 32, 32, 3)
    assert first.train.images.dtype == np.uint8
    assert first.train.images.max() == 255
    counts = np.bincount(first.train.labels) / np.bincount(first.test.labels)
    assert np.all(np.abs(counts / (1437 / 360) - 1) < 0.05)  # stratified
    cifar_files.assert_equal(first, second)
    assert first.class_names == tuple("0123456789")


def test_hold_out_is_fixed_and_disjoint():
    examples = Examples(np.arange(100), np.arange(100) % 10)
    train, val = data.hold_out(examples, 0.1)
    assert len(val.labels) == 10
    assert sorted([*train.images, *val.images]) == list(range(100))
    np.testing.assert_array_equal(val.images, data.hold_out(examples, 0.1)[1].images)
    assert data.hold_out(examples, 0.0) == (examples, None)
    for fraction, count in ((0.001, 0), (1.0, 100)):
        with pytest.raises(UserError, match=f"holds out {count} of 100"):
            data.hold_out(examples, fraction)


def test_importing_loads_no_other_framework():
    assert loaded_by("jaxcifar, jaxcifar.data", ("torch", "tensorflow", "sklearn")) == []


def test_bad_names_and_arrays_are_refused(monkeypatch):
    with pytest.raises(UserError, match="one of cifar10, cifar100, digits, folder:PATH, got"):
        data.load("mnist")
    good = Examples(np.zeros((2, 32, 32, 3), np.uint8), np.zeros(2, np.int32))
    for bad in (
        Examples(good.images[:, :28], good.labels),
        Examples(good.images.astype(np.float32), good.labels),
        Examples(good.images, good.labels[:1]),
        Examples(good.images, good.labels + 10),
        Examples(good.images, good.labels - 1),
    ):
        monkeypatch.setattr(
            digits, "load", lambda b=bad: data.Dataset(good, b, tuple("0123456789"))
        )
        with pytest.raises(UserError, match="digits"):
            data.load("digits")


@pytest.fixture
def prepared(tmp_path, rng):
    return prepare(tmp_path, "cifar10", cifar_files.make_dataset(rng))


def prepare(data_dir, name, dataset):
    """A folder as TFDS prepares it, in array_record, and what it holds."""
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.proto import tf_example_pb2

    folder = data_dir / name / "3.0.2"
    folder.mkdir(parents=True)
    splits = []
    for split, (images, labels) in (("train", dataset.train), ("test", dataset.test)):
        path = folder / f"{name}-{split}.array_record-00000-of-00001"
        writer = ArrayRecordWriter(str(path), "group_size:1")
        for image, label in zip(images, labels, strict=True):
            png = io.BytesIO()
            Image.fromarray(image).save(png, "PNG")
            example = tf_example_pb2.Example()
            example.features.feature["image"].bytes_list.value.append(png.getvalue())
            example.features.feature["label"].int64_list.value.append(int(label))
            if name == "cifar100":
                example.features.feature["coarse_label"].int64_list.value.append(int(label) // 5)
            writer.write(example.SerializeToString())
        writer.close()
        template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
        splits.append(
            {
                "filepathTemplate": template,
                "name": split,
                "numBytes": "1",
                "shardLengths": [str(len(labels))],
            }
        )
    info = {"fileFormat": "array_record", "name": name, "splits": splits, "version": "3.0.2"}
    info["moduleName"] = "tensorflow_datasets.image_classification.cifar"
    (folder / "dataset_info.json").write_text(json.dumps(info, indent=2))
    (folder / "features.json").write_text(json.dumps(features(len(dataset.class_names))))
    (folder / "label.labels.txt").write_text("\n".join(dataset.class_names) + "\n")
    return folder, dataset


def features(num_classes):
    shape = {"dimensions": ["32", "32", "3"]}
    image = {
        "image": {"dtype": "uint8", "shape": shape},
        "pythonClassName": FEATURES + "image_feature.Image",
    }
    label = {
        "classLabel": {"numClasses": str(num_classes)},
        "pythonClassName": FEATURES + "class_label_feature.ClassLabel",
    }
    return {
        "featuresDict": {"features": {"image": image, "label": label}},
        "pythonClassName": FEATURES + "features_dict.FeaturesDict",
    }


@pytest.mark.parametrize(
    ("name", "published"), [("cifar10", archives.CIFAR10), ("cifar100", archives.CIFAR100)]
)
def test_prepared_data_is_read_without_tensorflow(name, published, rng, tmp_path):
    dataset = cifar_files.make_dataset(rng, published)
    prepare(tmp_path, name, dataset)
    cifar_files.assert_equal(data.load(name, tmp_path), dataset)


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [truncate, flip, lambda path: path.unlink()])
@pytest.mark.parametrize("split", ["train", "test"])
def test_damaged_prepared_data_is_named(damage, split, prepared, tmp_path):
    shard = prepared[0] / f"cifar10-{split}.array_record-00000-of-00001"
    damage(shard)
    with pytest.raises(UserError, match="is damaged or missing") as error:
        cifar_files.load(tmp_path)
    assert str(error.value).startswith(str(shard))
    assert "\n" not in str(error.value)


def test_a_shard_with_too_few_records_is_named(prepared, tmp_path):
    shard = prepared[0] / "cifar10-train.array_record-00000-of-00001"
    shutil.copy(prepared[0] / "cifar10-test.array_record-00000-of-00001", shard)
    with pytest.raises(UserError, match="is damaged or missing") as error:
        cifar_files.load(tmp_path)
    assert str(error.value).startswith(str(shard))


def test_prepared_tfrecord_is_passed_over(prepared, tmp_path):
    folder, dataset = prepared
    info = folder / "dataset_info.json"
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    published = cifar_files.write(tmp_path / "downloads" / "manual", dataset)
    cifar_files.assert_equal(cifar_files.load(tmp_path, published), dataset)


def test_real_cifar10(real_cifar10):
    dataset = data.load("cifar10", real_cifar10)
    assert dataset.train.images.shape == (50_000, 32, 32, 3)
    assert dataset.test.images.shape == (1_000, 32, 32, 3)
    assert dataset.class_names == cifar_files.NAMES
    np.testing.assert_array_equal(np.bincount(dataset.train.labels), 5000)
