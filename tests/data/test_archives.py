"""The official files: read whole, refused if damaged, and never trusted."""

import hashlib
import pickle
import shutil
import tarfile
from functools import partial
from pathlib import Path

import pytest
from tensorflow_datasets.core.download import resource

from jaxcifar.data import cifar
from jaxcifar.data.cifar import CIFAR10
from tests.data import cifar_files as files

PYTHON, BINARY = CIFAR10.folders
by_name = pytest.mark.parametrize("source", files.SOURCES, ids=lambda source: source.name)


@pytest.fixture
def official(tmp_path, rng):
    return tmp_path, files.write(tmp_path, files.make_dataset(rng))


@pytest.mark.parametrize("place", [".", "downloads/manual", "downloads"])
def test_each_form_of_each_data_set_is_found_and_read(place, rng, tmp_path):
    datasets = [files.make_dataset(rng, source) for source in files.SOURCES]
    sources = list(map(partial(files.write, tmp_path / place), datasets, files.SOURCES))
    for form in range(4):
        for source, dataset in zip(sources, datasets, strict=True):
            path = tmp_path / place / (*source.folders, *source.archives)[form]
            assert cifar.find(tmp_path, source)[0] == path
            for data_dir in (tmp_path, path):
                files.assert_equal(cifar.load(source, data_dir), dataset)
            for needless in (*path.glob("data_batch*"), *path.glob("train*")):
                needless.unlink()
            train, *others = cifar.load(source, path, test_only=True)
            files.assert_equal(tuple(others), dataset[1:])
            assert len(train.labels) == 0
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert not any(cifar.find(tmp_path, source) for source in sources)


@by_name
@pytest.mark.parametrize("place", ["downloads", "downloads/{name}"])
def test_a_download_of_tfds_is_found(place, source, rng, tmp_path):
    ((url, info),) = cifar.tfds.builder_cls(source.name).url_infos.items()
    assert info.filename == source.archives[1]
    dataset = files.make_dataset(rng, source)
    source = files.write(tmp_path, dataset, source)
    target = tmp_path / "data" / place.format(name=source.name)
    target.mkdir(parents=True)
    decorated = resource.get_dl_fname(url, info.checksum)
    shutil.move(tmp_path / source.archives[1], target / decorated)
    files.assert_equal(cifar.load(source, tmp_path / "data"), dataset)


@pytest.mark.parametrize("form", CIFAR10.archives)
def test_a_damaged_archive_is_refused(form, official):
    folder, source = official
    path = folder / form
    content = path.read_bytes()
    start = f"{path} is damaged or incomplete ("
    for damaged in (content[:-100], b"", content[:50] + b"\x00" + content[51:], None):
        path.write_bytes(damaged) if damaged is not None else tarfile.open(path, "w:gz").close()
        assert f"{start}{form} has md5" in files.refusal(cifar.load, source, path)
        md5 = hashlib.md5(path.read_bytes()).hexdigest()
        published = source._replace(md5={**source.md5, form: md5})
        message = files.refusal(cifar.load, published, path)
        assert start + ("" if damaged is not None else "'cifar-10-batches-") in message


def overwritten(content):
    return lambda path: path.write_bytes(content + path.read_bytes()[len(content) :])


@pytest.mark.parametrize(
    ("file", "damage", "reason"),
    [
        (f"{PYTHON}/data_batch_3", files.truncate, "data_batch_3 has md5"),
        (f"{PYTHON}/batches.meta", files.flip_a_bit, "batches.meta has md5"),
        (f"{PYTHON}/data_batch_3", Path.unlink, "-py/data_batch_3'"),
        (f"{BINARY}/data_batch_3.bin", files.truncate, "size 12292 into shape (8,3073)"),
        (f"{BINARY}/data_batch_3.bin", Path.unlink, "-bin/data_batch_3.bin'"),
        (f"{BINARY}/test_batch.bin", overwritten(b"\x0a"), "a label has no class"),
        (f"{BINARY}/batches.meta.txt", lambda path: path.write_text("a\nb"), "has no class"),
        (f"{BINARY}/batches.meta.txt", lambda path: path.write_bytes(b"\xff"), "'utf-8' codec"),
    ],
)
def test_a_damaged_folder_is_refused(file, damage, reason, official):
    folder, source = official
    path = folder / file
    damage(path)
    message = files.refusal(cifar.load, source, path.parent)
    assert f"{path.parent} is damaged or incomplete" in message
    assert reason in message


def test_a_hostile_pickle_never_runs(official, tmp_path):
    folder, source = official
    marker, path = tmp_path / "marker", folder / PYTHON / "data_batch_1"
    path.write_bytes(f"cos\nsystem\n(S'touch {marker}'\ntR.".encode())
    assert "instead of the published" in files.refusal(cifar.load, source, path.parent)
    assert not marker.exists()
    pickle.loads(path.read_bytes())  # the trap works: without the check it would have run
    assert marker.exists()
