"""The user's images in folders: read at any size and mode, and refused in words."""

import os
import shutil
import unicodedata

import numpy as np

from jaxcifar import data
from tests.conftest import COLOURS, write_image
from tests.data import cifar_files


def refusal(path):
    return cifar_files.refusal(data.load, f"folder:{path}")


def test_classes_are_the_folders_sorted_by_name_and_only_test_is_needed(pets):
    dataset = data.load(f"folder:{pets}")
    assert dataset.class_names == ("Cat", "ant", "bee")
    np.testing.assert_array_equal(dataset.train.labels, np.int32([0, 0, 1, 1, 2, 2]), strict=True)
    np.testing.assert_array_equal(dataset.test.labels, [0, 1, 2])
    for examples in (dataset.train, dataset.test):
        for image, label in zip(*examples, strict=True):
            colour = COLOURS[dataset.class_names[label]]
            np.testing.assert_allclose(image, np.broadcast_to(colour, image.shape), atol=2)
    shutil.rmtree(pets / "train")
    train, *others = data.load(f"folder:{pets}", test_only=True)
    cifar_files.assert_equal(tuple(others), dataset[1:])
    assert (train.images.shape, train.labels.shape) == ((0, 32, 32, 3), (0,))


def test_unreadable_files_are_counted(pets):
    cifar_files.truncate(pets / "train" / "bee" / "a.jpeg")
    (pets / "train" / "ant" / "c.webp").write_text("text")
    (pets / "train" / "ant" / "gone.png").symlink_to(pets / "nowhere")
    error = refusal(pets)
    assert error.startswith(f"3 of 8 images cannot be read: {pets}/train/ant/c.webp is not a read")
    assert f"{pets}/train/bee/a.jpeg is not a readable image" in error
    assert f"No such file or directory: '{pets}/train/ant/gone.png'" in error


def test_subfolders_are_read_and_what_is_skipped_is_named(pets, caplog):
    (pets / "train" / "ant" / "2023").mkdir()
    (pets / "train" / "ant" / "a.jpeg").rename(pets / "train" / "ant" / "2023" / "a.jpeg")
    (pets / "train" / "bee" / "linked").symlink_to(pets / "train" / "ant" / "2023")
    write_image(pets / "train" / "loose.png", (0, 0, 0))
    with caplog.at_level("INFO"):
        dataset = data.load(f"folder:{pets}")
    np.testing.assert_array_equal(dataset.train.labels, [0, 0, 1, 1, 2, 2, 2])
    (line,) = caplog.messages
    assert line.startswith(f"{pets}/train: skipped 6 (hidden, no image's suffix, outside of a")
    names = line.rpartition(": ")[2]
    assert names == ".thumbnails, README.md, ant/._a.jpeg, ant/.a.png, ant/Thumbs.db and 1 more"


def test_another_layout_is_refused(pets, tmp_path):
    (pets / "test" / "bee").rename(pets / "test" / "wasp")
    assert "only in train: bee; only in test: wasp" in refusal(pets)
    assert "nowhere/train is not a folder with two or more" in refusal(tmp_path / "nowhere")
    assert f"put the images into {tmp_path}/train/CLASS and" in refusal(tmp_path)
    image = pets / "test" / "ant" / "1.bmp"
    image.rename(image.with_suffix(".heic"))
    assert f"{pets}/test/ant has no images (.png " in refusal(pets)
    shutil.rmtree(pets / "train")
    for name in ("loose.png", "only/1.png"):
        write_image(pets / "train" / name, (0, 0, 0))
        assert f"{pets}/train is not a folder with two or more classes" in refusal(pets)


def test_a_home_is_found_and_class_names_are_composed_and_printable(pets, monkeypatch):
    monkeypatch.setenv("HOME", str(pets.parent))
    for split, form in (("train", "NFC"), ("test", "NFD")):  # as a Mac writes them
        (pets / split / "ant").rename(pets / split / unicodedata.normalize(form, "café"))
        (pets / split / "bee").rename(pets / split / os.fsdecode(b"bee\n\xff"))
    assert data.load("folder:~/pets").class_names == ("Cat", "bee ?", "caf\u00e9")
