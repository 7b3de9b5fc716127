"""Data sets: digits, prepared TFDS data, names, hold-out."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from jaxcifar import data
from jaxcifar.config.train import TrainConfig
from jaxcifar.data import Examples, cifar
from jaxcifar.errors import UserError
from tests.data import cifar_files as files


def test_digits():
    train, test, class_names = dataset = data.load("digits")
    assert (train.images.shape, test.images.shape) == ((1437, 32, 32, 3), (360, 32, 32, 3))
    assert (train.images.dtype, train.images.max()) == (np.uint8, 255)
    counts = np.bincount(train.labels) / np.bincount(test.labels)
    assert np.all(np.abs(counts / (1437 / 360) - 1) < 0.05)  # stratified
    files.assert_equal(dataset, data.load("digits"))
    assert class_names == tuple("0123456789")


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


@pytest.mark.parametrize("name", ["", "CIFAR-10", "folder", "folder:", "Folder:a", "digits:a"])
def test_unknown_names_are_refused(name):
    hint = "; did you mean cifar10" if name == "CIFAR-10" else ""
    for load in (data.load, lambda name: TrainConfig(dataset=name)):
        with pytest.raises(
            UserError, match=f"one of cifar10, cifar100, digits, folder:PATH.*{hint}"
        ):
            load(name)


@pytest.mark.parametrize("source", files.SOURCES, ids=lambda source: source.name)
def test_prepared_data_comes_first(source, rng, tmp_path):
    prepared, official = (files.make_dataset(rng, source) for _ in range(2))
    files.prepare(tmp_path, prepared, source)
    source = files.write(tmp_path / "downloads" / "manual", official, source)
    files.assert_equal(data.load(source.name, tmp_path), prepared)


@pytest.mark.parametrize("format", files.WRITERS)
def test_prepared_data_is_read_and_only_test_is_needed(format, rng, tmp_path, monkeypatch):
    dataset = files.make_dataset(rng)
    folder = files.prepare(tmp_path, dataset, format=format)
    monkeypatch.chdir(tmp_path)
    files.assert_equal(data.load("cifar10", "."), dataset)
    for shard in folder.glob("*train*"):
        shard.unlink()
    files.assert_equal(data.load("cifar10", tmp_path, test_only=True)[1:], dataset[1:])


def test_prepared_data_is_decoded_once(rng, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    files.prepare(tmp_path, dataset := files.make_dataset(rng))
    reads = []
    read = lambda *a, read=cifar._read: reads.append(a) or read(*a)  # noqa: E731
    monkeypatch.setattr(cifar, "_read", read)
    for _ in range(2):
        files.assert_equal(data.load("cifar10", tmp_path), dataset)
        assert len(reads) == 2  # of two splits
    for number, damage in enumerate(files.DAMAGES, start=2):
        damage(*tmp_path.glob("cache/*/*.npz"))
        files.assert_equal(data.load("cifar10", tmp_path), dataset)
        assert len(reads) == 2 * number


def replace_by_the_test_set(shard):
    shutil.copy(shard.with_name(shard.name.replace("train", "test")), shard)


def replace_by_a_pipe(shard):
    shard.unlink()
    os.mkfifo(shard)


DAMAGES = *files.DAMAGES, Path.unlink, replace_by_the_test_set, replace_by_a_pipe


@pytest.mark.parametrize("format", files.WRITERS)
@pytest.mark.parametrize("damage", [*DAMAGES, -10, 10])
def test_damaged_prepared_data_is_refused(damage, format, rng, tmp_path):
    train, test, names = files.make_dataset(rng)
    shift = damage if isinstance(damage, int) else 0  # to labels without a class
    shifted = data.Dataset(train, Examples(test.images, test.labels + shift), names)
    folder = files.prepare(tmp_path, shifted, format=format)
    if not shift:
        damage(folder / f"cifar10-train.{format}-00000-of-00001")
    message = files.refusal(cifar.load, cifar.CIFAR10, tmp_path)
    assert message.startswith(f"{folder} is damaged or incomplete")
    assert not shift or "a label has no class" in message


def test_real_cifar10_beside_the_repository():
    path = Path(__file__).parents[3] / "shared" / "data" / "tfds"
    if not path.exists():
        pytest.skip("real CIFAR-10 is not beside the repository")
    dataset = data.load("cifar10", path)
    assert dataset.train.images.shape == (50_000, 32, 32, 3)
    assert dataset.test.images.shape == (1_000, 32, 32, 3)
    assert dataset.class_names == cifar.CLASS_NAMES
    np.testing.assert_array_equal(np.bincount(dataset.train.labels), 5000)
