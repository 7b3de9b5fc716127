"""Runs on folders of images: named after them, and resumed on the same images only."""

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxcifar import TrainConfig, UserError, train_and_evaluate
from jaxcifar.files.run import RunDirectory
from tests.conftest import run_config
from tests.data.test_folder import write, write_pets


@pytest.fixture
def pets(tmp_path):
    return write_pets(tmp_path / "pets")


@given(path=st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), min_size=1))
def test_a_run_is_named_after_its_folder(path):
    run = RunDirectory.for_run(TrainConfig(dataset=f"folder:{path}")).path
    assert len(run.parts) == 2
    assert run.name[0] not in "-._"
    assert run.name.isprintable()
    assert len(os.fsencode(run.name)) < 255


@pytest.fixture
def train(pets, tmp_path, tiny_network):
    """Train on ``pets``, or resume that run."""

    def train(dataset=f"folder:{pets}", **changes):
        config = run_config(tmp_path / "run", dataset=dataset, batch_size=3, **changes)
        return train_and_evaluate(config)

    return train


def assert_refused(train, changes):
    with pytest.raises(UserError) as error:
        train(epochs=2, resume=True)
    assert f"is not what the run was started with ({changes}): " in str(error.value)


def rename_a_class(pets):
    for split in ("train", "test"):
        (pets / split / "ant").rename(pets / split / "emu")


def test_a_moved_folder_is_followed(train, pets):
    train()
    moved = pets.rename(pets.with_name("moved"))
    assert train(f"folder:{moved}", epochs=2, resume=True).state.step == 4


def test_a_resumed_run_has_the_same_data(train, pets):
    train()
    write(pets / "train" / "ant" / "a.jpeg", (250, 0, 0), (64, 33))
    assert_refused(train, "it has as many training images, but other ones")
    write(pets / "train" / "ant" / "c.png", (250, 0, 0), (64, 33))
    assert_refused(train, "it has 7 training images, and had 6")
    rename_a_class(pets)
    assert_refused(train, "only in the data: emu; only in the checkpoint: ant")


def test_checkpoints_that_do_not_tell_are_passed_over(train, pets, tmp_path):
    train(epochs=2)
    path = tmp_path / "run" / "checkpoints" / "4" / "_CHECKPOINT_METADATA"
    metadata = json.loads(path.read_text())
    for name in ("class_names", "train_images", "train_sha256"):  # as older versions did
        del metadata["custom_metadata"][name]
    path.write_text(json.dumps(metadata))
    rename_a_class(pets)
    assert train(epochs=2, resume=True).state.step == 4
    path.write_text("{}")
    assert_refused(train, "only in the data: emu; only in the checkpoint: ant")
