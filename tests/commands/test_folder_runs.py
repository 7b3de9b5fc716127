"""Runs on folders of images: named after them, and resumed on the same images only."""

import json
import os
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxcifar import TrainConfig, UserError, cli, train_and_evaluate
from jaxcifar.core.models import head
from jaxcifar.files import weights
from jaxcifar.files.run import RunDirectory
from tests.conftest import SMALL, assert_same, random_variables, run_config, write_image
from tests.tiny import Small


@given(path=st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), min_size=1))
def test_a_run_is_named_after_its_folder(path):
    config = TrainConfig(dataset=f"folder:{path}")
    run = RunDirectory.for_run(config).path
    assert run.parent == Path("runs")
    assert re.fullmatch(r"[^\W_][\w.]*-vgg16-\d{8}-\d{6}-\d{6}", run.name)
    assert run.name.isprintable()
    assert len(os.fsencode(run.name)) < 255
    assert config.augmentation == "crop"
    for dataset, name in (("cifar10", "cifar10"), ("folder:data/my pets/", "my_pets")):
        run = RunDirectory.for_run(TrainConfig(dataset=dataset)).path
        assert run.name.startswith(f"{name}-vgg16-")


@pytest.fixture
def train(pets, tmp_path, small_network):
    """Train on ``pets``, or resume that run."""

    def train(dataset=f"folder:{pets}", **changes):
        config = run_config(tmp_path / "run", dataset=dataset, batch_size=3, **changes)
        return train_and_evaluate(config)

    return train


def assert_refused(train, changes):
    message = f"is not what the run was started with ({changes}): "
    with pytest.raises(UserError, match=re.escape(message)):
        train(epochs=2, resume=True)


def test_a_resumed_run_has_the_same_data(train, pets):
    train()
    pets = pets.rename(pets.with_name("moved"))
    train = partial(train, f"folder:{pets}")
    assert train(epochs=2, resume=True).state.step == 4
    with pytest.raises(UserError, match="--dataset digits is not what"):
        train.func("digits", resume=True)
    write_image(pets / "train" / "ant" / "a.jpeg", (250, 0, 0), (64, 33))
    assert_refused(train, "other training images: it has 6, had 6")
    write_image(pets / "train" / "ant" / "c.png", (250, 0, 0), (64, 33))
    assert_refused(train, "other training images: it has 7, had 6")
    for split in ("train", "test"):
        (pets / split / "ant").rename(pets / split / "emu")
    assert_refused(train, "only in the data: emu; only in the checkpoint: ant")


def test_checkpoints_that_do_not_tell_are_passed_over(train, pets, tmp_path):
    train(epochs=2)
    path = tmp_path / "run" / "checkpoints" / "4" / "_CHECKPOINT_METADATA"
    metadata = json.loads(path.read_text())
    for name in ("class_names", "train_images", "train_digest"):  # as older versions did
        del metadata["custom_metadata"][name]
    path.write_text(json.dumps(metadata))
    for split in ("train", "test"):
        (pets / split / "ant").rename(pets / split / "emu")
    assert train(epochs=2, resume=True).state.step == 4
    path.write_text("{}")
    assert_refused(train, "only in the data: emu; only in the checkpoint: ant")


def test_weights_for_other_classes_get_a_new_head(pets, tmp_path, caplog, capsys):
    source, run, dataset = str(tmp_path / "source"), tmp_path / "run", f"folder:{pets}"
    variables = random_variables(SMALL)
    weights.write(Path(source), weights.Weights(SMALL, 10, variables), "orbax", {})
    options = {"model": SMALL, "dataset": dataset, "batch_size": 3, "init_from": source}
    options["learning_rate"] = 1e-30  # too small to move anything
    caplog.set_level("INFO", "jaxcifar")
    train_and_evaluate(run_config(run, **options))
    out = capsys.readouterr().out
    last = ".".join(head(Small()))
    line = f"{source} has 10 classes, {dataset} has 3: reinitialising the head ({last})"
    assert caplog.messages.count(line) == 1
    loaded, params = weights.load(run, model=SMALL), variables["params"]
    assert (loaded.num_classes, loaded.class_names) == (3, ("Cat", "ant", "bee"))
    kernel, old = loaded.variables["params"][last]["kernel"], params[last]["kernel"]
    assert kernel.shape == (len(old), 3)
    bound = len(old) ** -0.5  # torch's
    assert 0.9 * bound < np.abs(kernel).max() <= bound
    assert_same(params | {last: None}, loaded.variables["params"] | {last: None})

    caplog.clear()
    evaluate = ["--model", SMALL, "--batch-size", "3", "--checkpoint"]
    cli.call("evaluate", [*evaluate, str(run)])
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].endswith(f"on 3 test images of {dataset}")
    assert printed[1] == out.splitlines()[-1]
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    with pytest.raises(UserError, match=f"has 10 classes, {dataset} has 3$"):
        cli.call("evaluate", [*evaluate, source, "--dataset", dataset])
    write_image(pets / "train" / "ant" / "c.png", (250, 0, 0))
    with pytest.raises(UserError, match="it has 7, had 6"):
        train_and_evaluate(run_config(run, **options, resume=True, epochs=2))
