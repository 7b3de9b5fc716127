"""The command line: flags, help, exit codes, and random arguments."""

import contextlib
import dataclasses
import importlib
import io
import logging
import shlex
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxcifar import TrainConfig, UserError, cli, train
from jaxcifar.config.options import choices, command_line, fields_with_types, flag
from jaxcifar.files.run import RunDirectory
from jaxcifar.runtime import distributed, setup

# What an operating system can pass: no NUL, no lone surrogates.
text = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=12)
numbers = st.integers(-3, 300) | st.floats()
literals = [name for _, kind in fields_with_types(TrainConfig) for name in choices(kind)]
odd = "1/0 1e999 -1 0x10 auto localhost:1 [::1]:99999 digits cifar100 folder:~x . / /dev/null"
words = text | numbers.map(str) | st.sampled_from([*literals, *odd.split()])
fuzz = settings(
    deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(autouse=True)
def no_signals(monkeypatch, tmp_path):
    monkeypatch.setattr(cli.signal, "signal", lambda *args: None)
    monkeypatch.setattr(logging.getLogger("jaxcifar"), "propagate", True)  # restored after a test
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def no_work(monkeypatch):
    """Everything up to the first computation is real."""

    def stop(*args, **kwargs):
        raise UserError("the work would begin here")

    monkeypatch.setattr(setup, "prepare", stop)
    monkeypatch.setattr(distributed, "join", stop)
    monkeypatch.setattr(RunDirectory, "locked", contextlib.nullcontext)


def run(*argv):
    """Return a command's exit code, and what it printed to stderr."""
    errors = io.StringIO()
    with (
        contextlib.redirect_stderr(errors),
        contextlib.redirect_stdout(io.StringIO()),
        pytest.raises(SystemExit) as end,
    ):
        cli.main(argv)
    return end.value.code, errors.getvalue()


def test_only_given_flags_are_parsed():
    assert cli.parse("train", []) == {}
    assert cli.parse("train", ["--no-compile-cache"]) == {"compile_cache": False}
    flags = cli.parse("train", shlex.split("--decay-rate 1/3 --epochs 7 --resume --workdir w"))
    assert flags == {"decay_rate": 1 / 3, "epochs": 7, "resume": True, "workdir": "w"}


@pytest.mark.parametrize(
    "line",
    [
        "train --epochs many",
        "train --model alexnet",
        "train --decay-rate 1/0",
        "train --no-such-flag",
        "train --epoch 1",
        "train --learning-rate nan",
        "train --resume --workdir nowhere",
        "train --batch-size 100000 --dataset digits",
        "train --workdir /dev/null/x --dataset digits --model resnet50_layer4",
        "predict --checkpoint nowhere --top 0 x.png",
        "predict --checkpoint nowhere",
        "evaluate --checkpoint nowhere --batch-size 0",
        "trian --epochs 1",
    ],
)
def test_a_command_fails_in_one_line(line, tmp_path, tiny_network):
    name = line.split()[0]
    code, error = run(*line.split())
    assert code == 2
    assert error.startswith("jaxcifar: " if name == "trian" else f"jaxcifar {name}: error: ")
    assert error.count("\n") == 1
    assert not list(tmp_path.glob("*/*/checkpoints"))


@pytest.mark.parametrize(("returned", "code"), [(None, 0), (0, 0), (1, 1)])
def test_a_command_returns_its_exit_code(returned, code, monkeypatch):
    monkeypatch.setattr(train, "main", lambda config: returned)
    assert run("train")[0] == code


def test_warnings_and_notes_of_a_command_are_lines_on_stderr(monkeypatch):
    log = logging.getLogger("jaxcifar.somewhere")

    def main(config):
        log.info("took %s", "this")
        log.warning("beware")

    monkeypatch.setattr(train, "main", main)
    assert run("train") == (0, "took this\nWarning: beware\n")


def test_help_lists_the_commands_and_every_option(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main([])
    assert end.value.code == 0
    out = capsys.readouterr().out
    for name in cli.COMMANDS:
        assert f"    {name} " in out
        assert callable(importlib.import_module(f"jaxcifar.{name}").main)
    for start in (["jaxcifar", "train"], ["jaxcifar.train"]):
        command = [sys.executable, "-m", *start, "--help"]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        for field in dataclasses.fields(TrainConfig):
            assert flag(f"no_{field.name}" if field.default is True else field.name) in out
        assert "every 20th epoch" in " ".join(out.split())


@given(
    dataset=st.sampled_from(("digits", "folder:a b")),
    workdir=st.text(st.characters(codec="ascii", exclude_characters="\0"), min_size=1),
    learning_rate=st.floats(1e-9, 1),
    decay_rate=st.sampled_from((1 / 3, 0.1, 1)),
    report=st.booleans(),
)
def test_a_command_line_gives_its_options_back(**values):
    config = TrainConfig(**values)
    program, name, *argv = shlex.split(command_line(config))
    assert (program, name) == ("jaxcifar", "train")
    assert TrainConfig(**cli.parse("train", argv)) == config


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("name", cli.COMMANDS)
@fuzz
@given(data=st.data())
def test_random_arguments_end_with_0_or_2(name, data):
    flags = [flag(field.name) for field in dataclasses.fields(cli.COMMANDS[name].options)]
    flags += ["--no-compile-cache", "--help", "--", "--unknown"]
    part = st.tuples(st.sampled_from(flags), words).map(list) | st.lists(words, max_size=1)
    argv = [word for part in data.draw(st.lists(part, max_size=6)) for word in part]
    code, errors = run(name, *argv)
    assert code in (0, 2)
    assert code == 0 or errors.splitlines()[-1].startswith(f"jaxcifar {name}: error: ")


@fuzz
@given(data=st.data())
def test_random_options_are_accepted_or_refused_in_words(data):
    names = st.sampled_from([field.name for field in dataclasses.fields(TrainConfig)])
    values = data.draw(st.dictionaries(names, numbers | st.booleans() | text | st.none()))
    with contextlib.suppress(UserError):
        assert type(TrainConfig(**values).epochs) is int
