"""Own images in folders: read at any size and mode, and refused in words."""

import dataclasses
import os
import shutil

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from jaxcifar import data, evaluate, train
from jaxcifar.config import TrainConfig, folder_of
from jaxcifar.core.models import abstract_variables, create_model
from jaxcifar.errors import UserError, difference
from jaxcifar.files import checkpoints as checkpoint
from jaxcifar.files import run as workdir
from jaxcifar.files import weights
from tests.files.test_checkpoints import state_at, totals

COLOURS = {"ant": (255, 0, 0), "bee": (0, 255, 0), "Cat": (0, 0, 255)}  # sorted: Cat, ant, bee


def write(path, colour, size=(32, 32), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).convert(mode).save(path)


@pytest.fixture
def pets(tmp_path):
    """Two images of each class to train on, one to test on, each class in its own colour."""
    path = tmp_path / "pets"
    for name, colour in COLOURS.items():
        write(path / "train" / name / "b.PNG", colour, (7, 50), "RGBA")
        write(path / "train" / name / "a.jpeg", colour, (64, 33))
        write(path / "test" / name / "1.bmp", colour, (1, 1), "P")
    return path


def refusal(path):
    with pytest.raises(UserError) as error:
        data.load(f"folder:{path}")
    assert "\n" not in str(error.value)
    return str(error.value)


def test_classes_are_the_folders_sorted_by_name(pets):
    dataset = data.load(f"folder:{pets}")
    assert dataset.class_names == ("Cat", "ant", "bee")
    np.testing.assert_array_equal(dataset.train.labels, [0, 0, 1, 1, 2, 2])
    np.testing.assert_array_equal(dataset.test.labels, [0, 1, 2])
    assert dataset.train.labels.dtype == np.int32
    assert dataset.train.images.shape == (6, 32, 32, 3)
    for examples in (dataset.train, dataset.test):
        for image, label in zip(*examples, strict=True):
            colour = COLOURS[dataset.class_names[label]]
            np.testing.assert_allclose(image, np.broadcast_to(colour, image.shape), atol=2)


def test_what_is_no_image_is_left_out(pets):
    before = data.load(f"folder:{pets}")
    (pets / "train" / ".thumbnails").mkdir()
    (pets / "train" / "README.md").write_text("read me")
    for name in (".a.png", "._a.jpeg", "Thumbs.db", "notes.txt", "png"):
        (pets / "train" / "ant" / name).write_bytes(b"no image")
    (pets / "train" / "ant" / "folder.png").mkdir()
    after = data.load(f"folder:{pets}")
    assert data.identity(after.train) == data.identity(before.train)
    assert after.class_names == before.class_names


def test_other_classes_to_test_on_are_named(pets):
    (pets / "test" / "bee").rename(pets / "test" / "wasp")
    assert "only in train: bee; only in test: wasp" in refusal(pets)
    shutil.rmtree(pets / "test" / "wasp")
    assert refusal(pets).endswith("only in train: bee")


def test_all_files_that_cannot_be_read_are_counted(pets):
    whole = (pets / "train" / "bee" / "a.jpeg").read_bytes()
    (pets / "train" / "bee" / "a.jpeg").write_bytes(whole[: len(whole) // 2])
    error = refusal(pets)
    assert f"{pets}/train/bee/a.jpeg" in error
    assert "more" not in error
    (pets / "train" / "ant" / "c.webp").write_text("text")
    (pets / "test" / "ant" / "gone.png").symlink_to(pets / "nowhere")
    error = refusal(pets)
    assert f"{pets}/train/ant/c.webp" in error
    assert "and 2 more: mend or remove" in error


def test_a_folder_that_is_made_otherwise_is_refused(pets, tmp_path):
    assert "there is no folder" in refusal(tmp_path / "nowhere")
    assert f"images go into {tmp_path}/train/CLASS and" in refusal(tmp_path)
    for name in ("1.bmp", "1.heic"):  # a class whose files are all of another kind
        file = pets / "test" / "ant" / name
        file.rename(file.with_suffix(".heic"))
        assert f"{pets}/test/ant holds no image (.png, " in refusal(pets)
        file = file.with_suffix(".heic")
    for split in ("train", "test"):
        shutil.rmtree(pets / split)
        write(pets / split / "loose.png", (0, 0, 0))
    assert f"{pets}/train holds no folders" in refusal(pets)
    for split in ("train", "test"):
        write(pets / split / "only" / "1.png", (0, 0, 0))
    assert "has the one class only: it takes two or more" in refusal(pets)


def test_a_home_is_found_and_names_are_printable(pets, monkeypatch):
    monkeypatch.setenv("HOME", str(pets.parent))
    for split in ("train", "test"):
        (pets / split / "bee").rename(pets / split / os.fsdecode(b"bee\n\xff"))
    assert data.load("folder:~/pets").class_names == ("Cat", "ant", "bee ?")


@settings(deadline=None, max_examples=20, suppress_health_check=list(HealthCheck))
@given(draw=st.data(), counts=st.lists(st.integers(1, 3), min_size=2, max_size=4))
def test_any_size_and_mode(tmp_path_factory, draw, counts):
    """Black and white are the same in all modes."""
    path = tmp_path_factory.mktemp("any")
    sizes = st.tuples(st.integers(1, 80), st.integers(1, 80))
    modes = st.sampled_from(["1", "L", "LA", "P", "RGB", "RGBA"])
    for label, count in enumerate(counts):
        for file in (
            *(f"train/{label}/{index}.png" for index in range(count)),
            f"test/{label}/1.png",
        ):
            write(path / file, (label % 2 * 255,) * 3, draw.draw(sizes), draw.draw(modes))
    dataset = data.load(f"folder:{path}")
    shutil.rmtree(path)
    np.testing.assert_array_equal(np.bincount(dataset.train.labels), counts)
    np.testing.assert_array_equal(dataset.test.labels, range(len(counts)))
    for images, labels in (dataset.train, dataset.test):
        expected = (labels % 2 * 255).astype(np.uint8)[:, None, None, None]
        np.testing.assert_array_equal(images, np.broadcast_to(expected, (len(labels), 32, 32, 3)))


@given(path=st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), min_size=1))
def test_a_run_is_named_after_its_folder(path):
    config = TrainConfig(dataset=f"folder:{path}")
    run = workdir.choose(config)
    assert run.parts[0] == "runs"
    assert len(run.parts) == 2
    assert run.name.count("-vgg16-") >= 1
    assert run.name[0] not in "-._"
    assert run.name.isprintable()
    assert len(os.fsencode(run.name)) < 255
    assert config.augments
    assert not config.flips


@pytest.mark.parametrize(
    ("path", "name"), [("data/my pets/", "my_pets"), ("~/..", "home"), ("/", "folder"), (".x", "x")]
)
def test_names_of_runs(path, name, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert workdir.choose(TrainConfig(dataset=f"folder:{path}")).name.startswith(f"{name}-vgg16-")


@pytest.mark.parametrize("name", ["", "folder", "folder:", "Folder:a", "cifar-10", "digits:a"])
def test_names_of_no_data_set_are_refused(name):
    for load in (data.load, lambda name: TrainConfig(dataset=name)):
        with pytest.raises(UserError, match="one of cifar10, cifar100, digits, folder:PATH, got"):
            load(name)


def test_a_moved_folder_is_followed(tmp_path):
    started = TrainConfig(dataset="folder:pets", workdir=str(tmp_path))
    workdir.write_config(tmp_path, started)
    resumed = dataclasses.replace(started, resume=True, dataset="folder:/new/pets")
    assert workdir.choose(resumed) == tmp_path
    assert folder_of(resumed.dataset).name == "pets"
    with pytest.raises(UserError, match="--dataset digits is not what"):
        workdir.choose(dataclasses.replace(resumed, dataset="digits"))


@pytest.fixture
def checkpoints(pets, tmp_path):
    """Those of a run on ``pets``."""
    dataset = data.load(f"folder:{pets}")
    with checkpoint.open_checkpoints(tmp_path / "run", keep=2) as checkpoints:
        checkpoint.save(
            *(checkpoints, state_at(1), totals(), TrainConfig(dataset=f"folder:{pets}")),
            class_names=dataset.class_names,
            data=data.identity(dataset.train),
        )
        checkpoint.finish(checkpoints)
        yield checkpoints


def test_a_resumed_run_has_the_same_data(pets, checkpoints):
    def require():
        dataset = data.load(f"folder:{pets}")
        identity = data.identity(dataset.train)
        checkpoint.require_data(checkpoints, "folder:pets", dataset.class_names, identity)

    def assert_refused(changes):
        with pytest.raises(UserError) as error:
            require()
        expected = f"folder:pets is not what the run was started with ({changes}): bring it back"
        assert str(error.value).startswith(expected)

    require()
    write(pets / "train" / "ant" / "a.jpeg", (250, 0, 0), (64, 33))
    assert_refused("it has as many training images, but other ones")
    write(pets / "train" / "ant" / "c.png", (250, 0, 0), (64, 33))
    assert_refused("it has 7 training images, and had 6")
    for split in ("train", "test"):
        (pets / split / "ant").rename(pets / split / "emu")
    assert_refused("only in the data: emu; only in the checkpoint: ant")


def test_checkpoints_that_do_not_tell_are_passed_over(checkpoints, tmp_path):
    other = ("folder:pets", ("a", "b"), {"train_images": 1, "train_sha256": ""})
    checkpoint.save(checkpoints, state_at(2), totals(), TrainConfig())  # as older versions did
    checkpoint.finish(checkpoints)
    checkpoint.require_data(checkpoints, *other)
    (tmp_path / "run" / "checkpoints" / "2" / "_CHECKPOINT_METADATA").write_text("{}")
    with pytest.raises(UserError, match="only in the data: a, b; only in the checkpoint: Cat, ant"):
        checkpoint.require_data(checkpoints, *other)


@pytest.mark.slow
def test_trained_from_weights_for_other_classes_and_evaluated(pets, tmp_path, rng, capsys):
    model = create_model("resnet50_layer4", num_classes=10)
    variables = jax.tree.map(
        lambda leaf: rng.uniform(0, 0.02, leaf.shape).astype(leaf.dtype), abstract_variables(model)
    )
    source, run = str(tmp_path / "ten"), str(tmp_path / "run")
    ten = weights.Weights("resnet50_layer4", 10, variables, None, None, {}, ())
    weights.save(tmp_path / "ten", ten, {})
    flags = ["--dataset", f"folder:{pets}", "--model", "resnet50_layer4", "--workdir", run]
    train.main([*flags, "--init-from", source, "--batch-size", "3"])
    out, error = capsys.readouterr()
    assert f"{source} has 10 classes, folder:{pets} has 3: the head fc starts anew" in error
    loaded = weights.load(run)
    assert (loaded.num_classes, loaded.class_names) == (3, ("Cat", "ant", "bee"))
    evaluate.main(["--checkpoint", run, "--batch-size", "3"])
    printed = capsys.readouterr()
    assert printed.out.splitlines()[0].endswith(f"on 3 test images of folder:{pets}")
    assert printed.out.splitlines()[1] == out.splitlines()[-1]
    assert "Warning" not in printed.err
    write(pets / "train" / "ant" / "c.png", (250, 0, 0))
    with pytest.raises(UserError, match="it has 7 training images, and had 6"):
        train.main(["--workdir", run, "--resume", "--epochs", "2"])


def test_what_two_lists_do_not_share():
    assert difference("abc", "abc", "x", "y") == ""
    assert difference("ab", "ba", "x", "y") == "they are in another order"
    assert difference("abcdefgh", "h", "x", "y") == "only in x: a, b, c, d, e and 2 more"
