"""The official files: read whole, refused if damaged, and never trusted."""

import hashlib
import pickle
import re
import shutil
import tarfile
from pathlib import Path

import pytest
from tensorflow_datasets.core.download import resource

from jaxcifar.data import archives, cifar
from jaxcifar.data.archives import CIFAR10, CIFAR100
from tests.data import cifar_files
from tests.data.cifar_files import SOURCES, assert_equal, make_dataset, refusal, write

PYTHON, BINARY = CIFAR10.folders
by_name = pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)


@pytest.fixture
def official(tmp_path, rng):
    """A folder with all four forms of CIFAR-10, and their facts."""
    folder = tmp_path / "official"
    return folder, write(folder, make_dataset(rng))


def publish(source, path):
    """Return the source with the file's checksum as the published one."""
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    return source._replace(md5={**source.md5, path.name: md5})


@by_name
@pytest.mark.parametrize("form", range(4))
@pytest.mark.parametrize("place", [".", "downloads/manual", "downloads"])
def test_each_form_is_found_and_read(source, form, place, rng, tmp_path):
    dataset = make_dataset(rng, source)
    path = tmp_path / "data" / place / (*source.folders, *source.archives)[form]
    path.parent.mkdir(parents=True)
    source = write(tmp_path, dataset, source)
    shutil.move(tmp_path / path.name, path)
    assert_equal(cifar.load(source, tmp_path / "data"), dataset)
    assert_equal(cifar.load(source, path), dataset)


def test_one_data_set_is_not_taken_for_the_other(rng, tmp_path):
    datasets = []
    for source in SOURCES:
        dataset = make_dataset(rng, source)
        datasets.append((write(tmp_path, dataset, source), dataset))
    for form in range(4):
        for source, dataset in datasets:
            path = archives.find(tmp_path, source)
            assert path == tmp_path / (*source.folders, *source.archives)[form]
            assert_equal(archives.read(path, source), dataset)
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert not any(archives.find(tmp_path, source) for source, _ in datasets)


@by_name
@pytest.mark.parametrize("place", ["downloads", "downloads/{name}"])
def test_a_download_of_tfds_is_found(place, source, rng, tmp_path):
    ((url, info),) = cifar.tfds.builder_cls(source.name).url_infos.items()
    assert info.filename == source.archives[1]
    dataset = make_dataset(rng, source)
    source = write(tmp_path, dataset, source)
    target = tmp_path / "data" / place.format(name=source.name)
    target.mkdir(parents=True)
    decorated = resource.get_dl_fname(url, info.checksum)
    shutil.move(tmp_path / source.archives[1], target / decorated)
    assert_equal(cifar.load(source, tmp_path / "data"), dataset)


@pytest.mark.parametrize("form", CIFAR10.archives)
def test_a_damaged_archive_is_refused(form, official):
    folder, source = official
    path = folder / form
    content = path.read_bytes()
    for damaged in (content[:-100], b"", content[:50] + b"\x00" + content[51:]):
        path.write_bytes(damaged)
        message = refusal(archives.read, path, source, names=path)
        assert "instead of the published" in message
        refusal(archives.read, path, publish(source, path), names=path)
    tarfile.open(path, "w:gz").close()
    message = refusal(archives.read, path, publish(source, path), names=path)
    assert "it has no 'cifar-10-batches-" in message


@pytest.mark.parametrize(
    ("file", "damage", "reason"),
    [
        (f"{PYTHON}/data_batch_3", cifar_files.truncate, "data_batch_3 has md5"),
        (f"{PYTHON}/data_batch_2", cifar_files.flip_a_bit, "data_batch_2 has md5"),
        (f"{PYTHON}/batches.meta", cifar_files.flip_a_bit, "batches.meta has md5"),
        (f"{PYTHON}/data_batch_3", Path.unlink, f"{PYTHON}/data_batch_3'"),
        (f"{BINARY}/data_batch_3.bin", cifar_files.truncate, "data_batch_3.bin is damaged"),
        (f"{BINARY}/data_batch_3.bin", Path.unlink, f"{BINARY}/data_batch_3.bin'"),
    ],
)
def test_a_damaged_folder_is_refused(file, damage, reason, official):
    folder, source = official
    path = folder / file
    damage(path)
    assert reason in refusal(archives.read, path.parent, source, names=path.parent)


@pytest.mark.parametrize(
    ("source", "file", "record"),
    [(CIFAR10, "test_batch", b"\x0a"), (CIFAR100, "test", b"\x00\x64")],
)
def test_a_wrong_label_is_refused(source, file, record, rng, tmp_path):
    source = write(tmp_path, make_dataset(rng, source), source)
    path = tmp_path / source.folders[1] / f"{file}.bin"
    path.write_bytes(record + path.read_bytes()[len(record) :])
    message = refusal(archives.read, path.parent, source, names=path)
    assert f"label {source.num_classes}" in message


@pytest.mark.parametrize("content", [b"", b"airplane\nautomobile\n", b"\xff\xfe" + b"\n\xff" * 9])
def test_wrong_class_names_are_refused(content, official):
    folder, source = official
    path = folder / BINARY / "batches.meta.txt"
    path.write_bytes(content)
    refusal(archives.read, folder / BINARY, source, names=path)


def test_a_hostile_pickle_never_runs(official, tmp_path):
    folder, source = official
    marker, path = tmp_path / "marker", folder / PYTHON / "data_batch_1"
    path.write_bytes(f"cos\nsystem\n(S'touch {marker}'\ntR.".encode())
    assert "instead of the published" in refusal(archives.read, folder / PYTHON, source)
    message = refusal(archives.read, folder / PYTHON, publish(source, path), names=path)
    assert "asks for os.system" in message
    assert not marker.exists()
    pickle.loads(path.read_bytes())  # the trap works: without the guard it would have run
    assert marker.exists()


@by_name
def test_the_published_checksums(source):
    assert set(source.md5) == {*source.batches, source.names_files[0], *source.archives}
    assert all(re.fullmatch("[0-9a-f]{32}", md5) for md5 in source.md5.values())
    *train, test = source.batches.values()
    assert (sum(train), test) == (50_000, 10_000)
