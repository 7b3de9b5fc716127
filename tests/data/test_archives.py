"""The official files: read whole, refused damaged, and never trusted."""

import dataclasses
import hashlib
import os
import pickle
import re
import shutil
import tarfile

import pytest

from jaxcifar.data import archives, cifar
from jaxcifar.errors import UserError
from tests.data import cifar_files

FORMS = [
    pytest.param(published, form, id=form)
    for published in (archives.CIFAR10, archives.CIFAR100)
    for form in published.forms
]
PYTHON, BINARY = archives.CIFAR10.python_archive, archives.CIFAR10.binary_archive
PYTHON_FOLDER, BINARY_FOLDER = archives.CIFAR10.python_folder, archives.CIFAR10.binary_folder


@pytest.fixture
def dataset(rng):
    return cifar_files.make_dataset(rng)


@pytest.fixture
def official(tmp_path, dataset):
    """A folder with all four forms, and their checksums."""
    folder = tmp_path / "official"
    return folder, cifar_files.write(folder, dataset)


@pytest.mark.parametrize(("published", "form"), FORMS)
@pytest.mark.parametrize("place", ["{form}", "", "downloads/manual", "downloads"])
def test_each_form_is_found_and_read(published, form, place, rng, tmp_path):
    dataset = cifar_files.make_dataset(rng, published)
    published = cifar_files.write(tmp_path / "official", dataset, published)
    data_dir = tmp_path / "data"
    target = data_dir if place == "{form}" else data_dir / place
    target.mkdir(parents=True)
    shutil.move(tmp_path / "official" / form, target / form)
    where = target / form if place == "{form}" else data_dir
    cifar_files.assert_equal(cifar_files.load(where, published), dataset)


def test_one_data_set_is_not_taken_for_the_other(rng, tmp_path):
    datasets = []
    for published in (archives.CIFAR10, archives.CIFAR100):
        dataset = cifar_files.make_dataset(rng, published)
        datasets.append((cifar_files.write(tmp_path, dataset, published), dataset))
    for form in range(4):
        for published, dataset in datasets:
            found = archives.find(tmp_path, published)
            assert found == tmp_path / published.forms[form]
            cifar_files.assert_equal(archives.read(found, published), dataset)
            shutil.rmtree(found) if found.is_dir() else found.unlink()
    assert not any(archives.find(tmp_path, published) for published, _ in datasets)


@pytest.mark.parametrize("under", ["downloads", "downloads/{name}"])
@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_a_download_of_tfds_is_found(under, name, rng, tmp_path):
    from tensorflow_datasets.core.download import resource

    source = {"cifar10": cifar.CIFAR10, "cifar100": cifar.CIFAR100}[name]
    dataset = cifar_files.make_dataset(rng, source.published)
    published = cifar_files.write(tmp_path, dataset, source.published)
    target = tmp_path / "data" / under.format(name=name)
    target.mkdir(parents=True)
    file = resource.get_dl_fname(source.remote.url, source.remote.sha256)
    shutil.move(tmp_path / published.binary_archive, target / file)
    cifar_files.assert_equal(cifar_files.load(tmp_path / "data", published), dataset)


def assert_refused(path, published, named):
    with pytest.raises(UserError) as error:
        archives.read(path, published)
    assert named in str(error.value)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("form", [PYTHON, BINARY])
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
    [(PYTHON_FOLDER, "data_batch_3"), (BINARY_FOLDER, "data_batch_3.bin")],
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
    path = folder / PYTHON_FOLDER / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    error = assert_refused(folder / PYTHON_FOLDER, published, name)
    assert "instead of the published" in error


@pytest.mark.parametrize("form", [PYTHON, BINARY])
def test_an_archive_without_its_files_is_refused(form, official):
    folder, published = official
    tarfile.open(folder / form, "w:gz").close()
    md5 = {**published.md5, form: hashlib.md5((folder / form).read_bytes()).hexdigest()}
    error = assert_refused(folder / form, dataclasses.replace(published, md5=md5), form)
    assert "it holds no cifar-10-batches-" in error


def test_a_wrong_label_is_refused(official):
    folder, published = official
    path = folder / BINARY_FOLDER / "test_batch.bin"
    path.write_bytes(b"\x0a" + path.read_bytes()[1:])
    error = assert_refused(folder / BINARY_FOLDER, published, "test_batch.bin")
    assert "label 10" in error


@pytest.mark.parametrize("content", [b"", b"airplane\nautomobile\n", b"\xff\xfe"])
def test_wrong_class_names_are_refused(content, official):
    folder, published = official
    (folder / BINARY_FOLDER / "batches.meta.txt").write_bytes(content)
    assert_refused(folder / BINARY_FOLDER, published, "batches.meta.txt")


class Hostile:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def test_a_hostile_pickle_never_runs(official, tmp_path):
    folder, published = official
    marker, path = tmp_path / "marker", folder / PYTHON_FOLDER / "data_batch_1"
    path.write_bytes(pickle.dumps(Hostile(marker), protocol=2))
    error = assert_refused(folder / PYTHON_FOLDER, published, "data_batch_1")
    assert "instead of the published" in error
    md5 = {**published.md5, "data_batch_1": hashlib.md5(path.read_bytes()).hexdigest()}
    published = dataclasses.replace(published, md5=md5)
    error = assert_refused(folder / PYTHON_FOLDER, published, "data_batch_1")
    assert re.search(r"asks for (posix|nt)\.system", error)
    assert not marker.exists()
    pickle.loads(path.read_bytes())  # the trap works: without the guard it would have run
    assert marker.exists()


def test_a_label_beyond_the_fine_ones_is_refused(rng, tmp_path):
    dataset = cifar_files.make_dataset(rng, archives.CIFAR100)
    published = cifar_files.write(tmp_path, dataset, archives.CIFAR100)
    path = tmp_path / published.binary_folder / "test.bin"
    path.write_bytes(b"\x00\x64" + path.read_bytes()[2:])
    assert "label 100" in assert_refused(path.parent, published, "test.bin")


@pytest.mark.parametrize("published", [archives.CIFAR10, archives.CIFAR100])
def test_the_published_checksums(published):
    archive_names = (published.python_archive, published.binary_archive)
    assert set(published.md5) == {*published.batches, published.python_names[0], *archive_names}
    assert all(re.fullmatch("[0-9a-f]{32}", md5) for md5 in published.md5.values())
    *train, test = published.batches.values()
    assert (sum(train), test) == (50_000, 10_000)
