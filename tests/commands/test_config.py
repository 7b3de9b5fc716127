"""The options of a run: their values, and how they are saved."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxcifar import TrainConfig, UserError
from jaxcifar.config.options import flag, fraction
from jaxcifar.config.train import MODEL_NAMES
from jaxcifar.core.models import MODELS


def test_the_defaults_are_the_original_programs():
    config = TrainConfig()
    assert (config.epochs, config.batch_size, config.learning_rate) == (1, 100, None)
    assert (config.decay_rate, config.decay_epochs, config.dropout_rate) == (1 / 3, 20, 0.5)
    assert config.compile_cache
    assert tuple(MODELS) == MODEL_NAMES


@pytest.mark.parametrize(
    ("dataset", "auto"),
    [
        *(("cifar10", "crop-flip"), ("cifar100", "crop-flip")),
        *(("digits", "none"), ("folder:pets", "crop")),
    ],
)
def test_augmentation_follows_the_data_unless_asked_for(dataset, auto):
    assert TrainConfig(dataset=dataset).augmentation == auto
    for augment in ("none", "crop", "crop-flip"):
        assert TrainConfig(dataset=dataset, augment=augment).augmentation == augment


@given(
    epochs=st.integers(1, 10**6),
    learning_rate=st.floats(1e-12, 1e6),
    workdir=st.none() | st.text(),
    val_fraction=st.floats(0, 0.999),
)
def test_json_round_trip(tmp_path_factory, **options):
    config = TrainConfig(**options)
    path = tmp_path_factory.mktemp("json") / "config.json"
    path.write_text(json.dumps(config.to_dict()))
    assert TrainConfig.from_json(path) == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "alexnet"}, "--model must be one of vgg16, vgg16_bn, resnet50_layer4, got"),
        ({"dataset": "mnist"}, "--dataset must be one of cifar10, cifar100, digits, folder:PATH"),
        ({"dataset": "folder:"}, "--dataset must be one of"),
        ({"epochs": 0}, "--epochs must be at least 1, got 0"),
        ({"epochs": True}, "--epochs must be a whole number"),
        ({"batch_size": -1}, "--batch-size must be at least 1"),
        ({"learning_rate": float("nan")}, "--learning-rate must be a positive number"),
        ({"learning_rate": float("inf")}, "--learning-rate must be a positive number"),
        ({"learning_rate": "fast"}, "--learning-rate must be a number"),
        ({"decay_rate": 0.0}, "--decay-rate must be above 0"),
        ({"decay_epochs": 0}, "--decay-epochs must be at least 1"),
        ({"dropout_rate": 1.0}, "--dropout-rate must be at least 0 and below 1"),
        ({"val_fraction": 1.0}, "--val-fraction must be at least 0 and below 1"),
        ({"seed": -1}, "--seed must be between"),
        ({"keep": 0}, "--keep must be at least 1"),
        ({"checkpoint_every": -5}, "--checkpoint-every must be 0 or more"),
        ({"resume": True}, "--resume needs --workdir"),
        ({"ema": True}, "--ema selects among the weights of --init-from"),
        ({"num_processes": 2}, "--coordinator HOST:PORT needs --num-processes and --process-id"),
        ({"coordinator": "h:1"}, "--coordinator HOST:PORT needs --num-processes and --process-id"),
        (
            {"coordinator": "host", "num_processes": 2, "process_id": 1},
            "--coordinator must be HOST:PORT or auto",
        ),
        (
            {"coordinator": "h:1", "num_processes": 2, "process_id": 2},
            "--process-id must be from 0 to --num-processes 2 less one, got 2",
        ),
    ],
)
def test_wrong_values_are_named(changes, message):
    with pytest.raises(UserError) as error:
        TrainConfig(**changes)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "[]", "null", '{"epochs": 0}', '{"speed": 1}', "\x00"])
def test_a_broken_configuration_file_is_named(tmp_path, text):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"config\.json is not a saved training configuration"):
        TrainConfig.from_json(path)


def test_fractions_are_numbers():
    assert fraction("1/3") == 1 / 3
    assert fraction("1e-3") == 1e-3
    for text in ("1/0", "a third", "", "1/x", "1//2"):
        with pytest.raises(ValueError, match="not a number"):
            fraction(text)


def test_what_belongs_to_one_process_is_not_saved():
    saved = TrainConfig().to_dict()
    of_process = {"coordinator", "num_processes", "process_id"}
    assert set(saved) | of_process == {field.name for field in dataclasses.fields(TrainConfig)}
    assert not of_process & set(saved)
    assert flag("batch_size") == "--batch-size"
