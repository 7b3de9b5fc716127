"""The official files: read whole, refused damaged, and never trusted."""

import dataclasses
import hashlib
import os
import pickle
import re
import shutil
import tarfile

import pytest

from jaxcifar.data import archives, cifar10
from jaxcifar.errors import UserError
from tests import cifar_files

FORMS = (
    archives.PYTHON_FOLDER,
    archives.BINARY_FOLDER,
    archives.PYTHON_ARCHIVE,
    archives.BINARY_ARCHIVE,
)


@pytest.fixture
def dataset(rng):
    return cifar_files.make_dataset(rng)


@pytest.fixture
def official(tmp_path, dataset):
    """A folder with all four forms, and their checksums."""
    folder = tmp_path / "official"
    return folder, cifar_files.write(folder, dataset)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("place", ["{form}", "", "downloads/manual", "downloads"])
def test_each_form_is_found_and_read(form, place, official, dataset, tmp_path):
    folder, published = official
    data_dir = tmp_path / "data"
    target = data_dir if place == "{form}" else data_dir / place
    target.mkdir(parents=True)
    shutil.move(folder / form, target / form)
    where = target / form if place == "{form}" else data_dir
    cifar_files.assert_equal(cifar10.load(where, published=published), dataset)


@pytest.mark.parametrize("under", ["downloads", "downloads/cifar10"])
def test_a_download_of_tfds_is_found(under, official, dataset, tmp_path):
    folder, published = official
    target = tmp_path / "data" / under
    target.mkdir(parents=True)
    name = "cs.toronto.edu_kriz_cifar-10-binaryc4a38c.tar.gz"
    shutil.move(folder / archives.BINARY_ARCHIVE, target / name)
    cifar_files.assert_equal(cifar10.load(tmp_path / "data", published=published), dataset)


def assert_refused(path, published, named):
    with pytest.raises(UserError) as error:
        archives.read(path, published)
    assert named in str(error.value)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("form", [archives.PYTHON_ARCHIVE, archives.BINARY_ARCHIVE])
def test_a_damaged_archive_is_refused(form, official):
    folder, published = official
    content = (folder / form).read_bytes()
    for damaged in (content[:-100], b"", content[:50] + b"\x00" + content[51:]):
        (folder / form).write_bytes(damaged)
        assert "instead of the published" in assert_refused(folder / form, published, form)
        # Even if its checksum were the published one:
        md5 = {**published.md5, form: hashlib.md5(damaged).hexdigest()}
        assert_refused(folder / form, dataclasses.replace(published, md5=md5), form)


@pytest.mark.parametrize(
    ("form", "name"),
    [(archives.PYTHON_FOLDER, "data_batch_3"), (archives.BINARY_FOLDER, "data_batch_3.bin")],
)
def test_a_damaged_folder_is_refused(form, name, official):
    folder, published = official
    path = folder / form / name
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    assert_refused(folder / form, published, f"{form}/{name}")
    path.unlink()
    assert "it is missing" in assert_refused(folder / form, published, f"{form}/{name}")


@pytest.mark.parametrize("name", ["data_batch_2", "batches.meta"])
def test_an_altered_pickle_is_refused(name, official):
    folder, published = official
    path = folder / archives.PYTHON_FOLDER / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    error = assert_refused(folder / archives.PYTHON_FOLDER, published, name)
    assert "instead of the published" in error


@pytest.mark.parametrize("form", [archives.PYTHON_ARCHIVE, archives.BINARY_ARCHIVE])
def test_an_archive_without_its_files_is_refused(form, official):
    folder, published = official
    tarfile.open(folder / form, "w:gz").close()
    md5 = {**published.md5, form: hashlib.md5((folder / form).read_bytes()).hexdigest()}
    error = assert_refused(folder / form, dataclasses.replace(published, md5=md5), form)
    assert "it holds no cifar-10-batches-" in error


def test_a_wrong_label_is_refused(official):
    folder, published = official
    path = folder / archives.BINARY_FOLDER / "test_batch.bin"
    path.write_bytes(b"\x0a" + path.read_bytes()[1:])
    error = assert_refused(folder / archives.BINARY_FOLDER, published, "test_batch.bin")
    assert "label 10" in error


@pytest.mark.parametrize("content", [b"", b"airplane\nautomobile\n", b"\xff\xfe"])
def test_wrong_class_names_are_refused(content, official):
    folder, published = official
    (folder / archives.BINARY_FOLDER / "batches.meta.txt").write_bytes(content)
    assert_refused(folder / archives.BINARY_FOLDER, published, "batches.meta.txt")


class Hostile:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def test_a_hostile_pickle_never_runs(official, tmp_path):
    folder, published = official
    marker, path = tmp_path / "marker", folder / archives.PYTHON_FOLDER / "data_batch_1"
    path.write_bytes(pickle.dumps(Hostile(marker), protocol=2))
    error = assert_refused(folder / archives.PYTHON_FOLDER, published, "data_batch_1")
    assert "instead of the published" in error
    md5 = {**published.md5, "data_batch_1": hashlib.md5(path.read_bytes()).hexdigest()}
    published = dataclasses.replace(published, md5=md5)
    error = assert_refused(folder / archives.PYTHON_FOLDER, published, "data_batch_1")
    assert re.search(r"asks for (posix|nt)\.system", error)
    assert not marker.exists()
    pickle.loads(path.read_bytes())  # the trap works: without the guard it would have run
    assert marker.exists()


def test_the_published_checksums():
    assert set(archives.PUBLISHED.md5) == {
        *archives.TRAIN_BATCHES,
        "test_batch",
        "batches.meta",
        archives.PYTHON_ARCHIVE,
        archives.BINARY_ARCHIVE,
    }
    assert all(re.fullmatch("[0-9a-f]{32}", md5) for md5 in archives.PUBLISHED.md5.values())
    assert archives.PUBLISHED.batch_images == 10_000
