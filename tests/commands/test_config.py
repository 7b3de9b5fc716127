"""The configuration, its command line, and how they fail."""

import dataclasses
import importlib
import json
import shlex
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxcifar import __main__, cli
from jaxcifar.config import TrainConfig, flag, fraction
from jaxcifar.errors import UserError
from jaxcifar.train import main


def parse(*argv):
    return cli.parse(TrainConfig, argv, prog="test", description="")


def test_defaults_are_the_original_programs():
    config = TrainConfig()
    assert (config.epochs, config.batch_size, config.learning_rate) == (1, 100, None)
    assert (config.decay_rate, config.decay_epochs, config.dropout_rate) == (1 / 3, 20, 0.5)
    assert config.augments
    assert not TrainConfig(dataset="digits").augments
    assert TrainConfig(dataset="digits", augment="crop-flip").augments


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100", "digits", "folder:pets"])
def test_augmentation_follows_the_data_unless_asked_for(dataset):
    auto = {"digits": (False, False), "folder:pets": (True, False)}.get(dataset, (True, True))
    for augment, expected in (
        ("auto", auto),
        ("none", (False, False)),
        ("crop", (True, False)),
        ("crop-flip", (True, True)),
    ):
        config = TrainConfig(dataset=dataset, augment=augment)
        assert (config.augments, config.flips) == expected


def test_only_given_flags_are_returned():
    assert parse() == {}
    flags = parse("--decay-rate", "1/3", "--epochs", "7", "--resume", "--workdir", "w")
    assert flags == {"decay_rate": 1 / 3, "epochs": 7, "resume": True, "workdir": "w"}


@given(
    epochs=st.integers(1, 10**6),
    learning_rate=st.floats(1e-12, 1e6),
    workdir=st.none() | st.text(),
    val_fraction=st.floats(0, 0.999),
)
def test_json_round_trip(tmp_path_factory, epochs, learning_rate, workdir, val_fraction):
    config = TrainConfig(
        epochs=epochs, learning_rate=learning_rate, workdir=workdir, val_fraction=val_fraction
    )
    path = tmp_path_factory.mktemp("json") / "config.json"
    path.write_text(config.to_json())
    assert TrainConfig.from_json(path) == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "alexnet"}, "--model must be one of vgg16, vgg16_bn, resnet50_layer4, got"),
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


def test_fraction():
    assert fraction("1/3") == 1 / 3
    assert fraction("1e-3") == 1e-3
    for text in ("1/0", "a third", "", "1/x", "1//2"):
        with pytest.raises(ValueError, match="not a number"):
            fraction(text)


def test_saved_fields_are_json():
    saved = json.loads(TrainConfig().to_json())
    of_process = {"coordinator", "num_processes", "process_id"}  # another run has others
    assert set(saved) | of_process == {field.name for field in dataclasses.fields(TrainConfig)}
    assert not of_process & set(saved)
    assert flag("batch_size") == "--batch-size"


@pytest.mark.parametrize(
    "argv",
    [
        ["--epochs", "many"],
        ["--model", "alexnet"],
        ["--decay-rate", "1/0"],
        ["--no-such-flag"],
        ["--epoch", "1"],
        ["--learning-rate", "nan"],
        ["--resume", "--workdir", "nowhere"],
        ["--batch-size", "100000", "--dataset", "digits"],
        ["--workdir", "/dev/null/x", "--dataset", "digits"],
    ],
)
def test_the_command_fails_in_one_line(argv, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        cli.run(lambda _: main(argv), prog="jaxcifar.train")
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("jaxcifar.train: error: ")
    assert error.count("\n") == 1
    assert not list(tmp_path.glob("*/*/checkpoints"))


def test_help_names_every_option():
    out = subprocess.run(
        [sys.executable, "-m", "jaxcifar.train", "--help"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for field in dataclasses.fields(TrainConfig):
        assert flag(f"no_{field.name}" if field.default is True else field.name) in out
    assert "every 20th epoch" in " ".join(out.split())


@given(
    values=st.fixed_dictionaries(
        {},
        optional={
            "model": st.sampled_from(("vgg16", "resnet50_layer4")),
            "dataset": st.sampled_from(("digits", "folder:a b")),
            "workdir": st.text(st.characters(codec="ascii", exclude_characters="\0"), min_size=1),
            "epochs": st.integers(1, 9),
            "learning_rate": st.floats(1e-9, 1),
            "decay_rate": st.sampled_from((1 / 3, 0.1, 1)),
            "compile_cache": st.booleans(),
            "report": st.booleans(),
        },
    )
)
def test_a_command_line_gives_its_configuration_back(values):
    config = TrainConfig(**values)
    program, *argv = shlex.split(cli.command_line(config, "train"))
    assert program == "train"
    assert TrainConfig(**cli.parse(TrainConfig, argv, prog="", description="")) == config


def test_the_commands_are_listed(capsys):
    __main__.main([])
    out = capsys.readouterr().out
    for name in __main__.COMMANDS:
        assert f"python -m jaxcifar.{name} " in out
        assert callable(importlib.import_module(f"jaxcifar.{name}").main)
    with pytest.raises(UserError, match=r"run python -m jaxcifar\.train"):
        __main__.main(["train"])
