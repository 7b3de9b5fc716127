"""The user's images in folders: read at any size and mode, and refused in words."""

import os
import shutil

import numpy as np
import pytest
from PIL import Image

from jaxcifar import data
from jaxcifar.errors import difference
from tests.data import cifar_files

COLOURS = {"ant": (255, 0, 0), "bee": (0, 255, 0), "Cat": (0, 0, 255)}  # sorted: Cat, ant, bee


def write(path, colour, size=(32, 32), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).convert(mode).save(path)


def write_pets(path):
    """Write two training images and a test image of each class, each class in its own colour."""
    for name, colour in COLOURS.items():
        write(path / "train" / name / "b.PNG", colour, (7, 50), "RGBA")
        write(path / "train" / name / "a.jpeg", colour, (64, 33))
        write(path / "test" / name / "1.bmp", colour, (1, 1), "P")
    for name in (".thumbnails/a.png", "README.md", "ant/.a.png", "ant/._a.jpeg", "ant/Thumbs.db"):
        (path / "train" / name).parent.mkdir(exist_ok=True)
        (path / "train" / name).write_text("not an image: to be skipped")
    (path / "train" / "ant" / "folder.png").mkdir()
    return path


@pytest.fixture
def pets(tmp_path):
    return write_pets(tmp_path / "pets")


def refusal(path):
    return cifar_files.refusal(data.load, f"folder:{path}")


def test_classes_are_the_folders_sorted_by_name_and_other_files_are_skipped(pets):
    dataset = data.load(f"folder:{pets}")
    assert dataset.class_names == ("Cat", "ant", "bee")
    np.testing.assert_array_equal(dataset.train.labels, [0, 0, 1, 1, 2, 2])
    np.testing.assert_array_equal(dataset.test.labels, [0, 1, 2])
    assert dataset.train.labels.dtype == np.int32
    for examples in (dataset.train, dataset.test):
        for image, label in zip(*examples, strict=True):
            colour = COLOURS[dataset.class_names[label]]
            np.testing.assert_allclose(image, np.broadcast_to(colour, image.shape), atol=2)


def test_unreadable_files_are_counted(pets):
    cifar_files.truncate(pets / "train" / "bee" / "a.jpeg")
    error = refusal(pets)
    assert f"{pets}/train/bee/a.jpeg" in error
    assert "more" not in error
    (pets / "train" / "ant" / "c.webp").write_text("text")
    (pets / "test" / "ant" / "gone.png").symlink_to(pets / "nowhere")
    error = refusal(pets)
    assert f"{pets}/train/ant/c.webp" in error
    assert "and 2 more: repair or remove" in error


def test_another_layout_is_refused(pets, tmp_path):
    (pets / "test" / "bee").rename(pets / "test" / "wasp")
    assert "only in train: bee; only in test: wasp" in refusal(pets)
    shutil.rmtree(pets / "test" / "wasp")
    assert refusal(pets).endswith("only in train: bee")
    assert "there is no folder" in refusal(tmp_path / "nowhere")
    assert f"put the images into {tmp_path}/train/CLASS and" in refusal(tmp_path)
    image = pets / "test" / "ant" / "1.bmp"
    image.rename(image.with_suffix(".heic"))
    assert f"{pets}/test/ant has no images (.png, " in refusal(pets)
    for split in ("train", "test"):
        shutil.rmtree(pets / split)
        write(pets / split / "loose.png", (0, 0, 0))
    assert f"{pets}/train has no folders" in refusal(pets)
    for split in ("train", "test"):
        write(pets / split / "only" / "1.png", (0, 0, 0))
    assert "has the class only only: add another one" in refusal(pets)


def test_a_home_is_found_and_class_names_are_printable(pets, monkeypatch):
    monkeypatch.setenv("HOME", str(pets.parent))
    for split in ("train", "test"):
        (pets / split / "bee").rename(pets / split / os.fsdecode(b"bee\n\xff"))
    assert data.load("folder:~/pets").class_names == ("Cat", "ant", "bee ?")


def test_the_difference_between_two_lists():
    assert difference("abc", "abc", "x", "y") == ""
    assert difference("ab", "ba", "x", "y") == "they are in another order"
    assert difference("abcdefgh", "h", "x", "y") == "only in x: a, b, c, d, e and 2 more"
