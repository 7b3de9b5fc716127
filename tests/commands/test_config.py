"""The options of a run: their values, and how they are saved."""

import json
import os
import re
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxcifar import TrainConfig, UserError, cli
from jaxcifar.config.options import command_line, this_program
from jaxcifar.config.train import MODEL_NAMES
from jaxcifar.core.models import MODELS

TWO = {"coordinator": "h:1", "num_processes": 2, "process_id": 1}
parse = cli.make_parser("train").parse_args


def test_the_defaults_are_the_original_programs():
    config = TrainConfig()
    assert (config.epochs, config.batch_size, config.learning_rate) == (1, 100, None)
    assert (config.decay_rate, config.decay_epochs, config.dropout_rate) == (1 / 3, 20, 0.5)
    assert config.compile_cache
    assert config.augmentation == "crop-flip"
    assert TrainConfig(dataset="digits").augmentation == "none"
    assert TrainConfig(dataset="digits", augment="crop").augmentation == "crop"
    assert vars(config).keys() - config.to_dict().keys() == TWO.keys()  # of one process
    assert tuple(MODELS) == MODEL_NAMES


@settings(deadline=None)  # it starts bash
@given(
    dataset=st.sampled_from(("digits", "folder:a b")),
    workdir=st.none() | st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
    epochs=st.integers(1, 10**6),
    learning_rate=st.floats(1e-12, 1e6),
    decay_rate=st.sampled_from((1 / 3, 0.1, 1)),
    val_fraction=st.floats(0, 0.999),
    report=st.booleans(),
)
def test_options_come_back_from_json_and_from_a_command_line(tmp_path_factory, **options):
    config = TrainConfig(**options)
    path = tmp_path_factory.mktemp("json") / "config.json"
    path.write_text(json.dumps(config.to_dict()))
    assert TrainConfig.from_json(path) == config
    assert TrainConfig(**vars(parse(shell_words(command_line(config))))) == config


def shell_words(line):
    """The words that bash reads in a line."""
    out = subprocess.check_output(["bash", "-c", f"printf '%s\\0' {line}"], text=False)
    return os.fsdecode(out).split("\0")[:-1]


@pytest.mark.parametrize("path", ["a b", "$HOME", "it's", '"', "-x", "名 前"])
@pytest.mark.parametrize("script", ["/env/bin/jaxcifar", "/env/jaxcifar/__main__.py"])
def test_a_command_can_be_pasted_into_a_shell(path, script, monkeypatch):
    monkeypatch.setattr("sys.argv", [script])
    config = TrainConfig(workdir=path, resume=True)
    line = command_line(config, *this_program(), "train")
    words = shell_words(line)
    python = [sys.executable, "-m", "jaxcifar", "train"]
    start = [script, "train"] if script.endswith("bin/jaxcifar") else python
    assert words[: len(start)] == start
    assert TrainConfig(**vars(parse(words[len(start) :]))) == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "--epochs must be at least 1, got 0"),
        ({"epochs": True}, "--epochs must be a whole number"),
        ({"learning_rate": float("nan")}, "--learning-rate must be a positive number"),
        ({"learning_rate": "fast"}, "--learning-rate must be a number"),
        ({"checkpoint_every": -5}, "--checkpoint-every must be 0 or more"),
        ({"resume": True}, "--resume and --coordinator need --workdir"),
        ({"ema": True}, "--ema selects among the weights of --init-from"),
        ({"coordinator": "h:1"}, "--coordinator HOST:PORT needs --num-processes"),
        (TWO | {"coordinator": "host"}, "--coordinator must be HOST:PORT or auto"),
        (TWO | {"process_id": 2}, "needs --num-processes N and --process-id, from 0 to N - 1"),
        ({"num_processes": 2}, "--coordinator HOST:PORT needs --num-processes"),
    ],
)
def test_wrong_values_are_named_in_a_line(changes, message):
    with pytest.raises(UserError, match=rf"\A.*{re.escape(message)}.*\Z"):
        TrainConfig(**changes)
