"""The command line: flags, help, exit codes, and random arguments."""

import contextlib
import dataclasses
import importlib
import logging
import subprocess
import sys
from typing import get_args
from unittest import mock

import jax
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxcifar import TrainConfig, UserError, cli, train
from jaxcifar.config.options import fields_with_types, flag
from jaxcifar.files.run import RunDirectory
from jaxcifar.runtime import process, setup

# What an operating system can pass: no NUL, no lone surrogates.
text = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=12)
numbers = st.integers(-3, 300) | st.floats()
literals = [name for _, kind, _ in fields_with_types(TrainConfig) for name in get_args(kind)]
odd = "1/0 1e999 -1 0x10 auto localhost:1 [::1]:99999 digits cifar100 folder:~x . / /dev/null"
words = text | numbers.map(str) | st.sampled_from([*literals, *odd.split()])
fuzz = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """Run a command in an empty folder; return its exit code, stdout and stderr."""
    monkeypatch.setattr(cli.console, "catch_signals", lambda: None)
    monkeypatch.setattr(cli.console, "leave", sys.exit)
    monkeypatch.setattr(logging.getLogger("jaxcifar"), "propagate", True)  # restored after a test
    monkeypatch.setattr(sys, "argv", sys.argv[:1])
    monkeypatch.chdir(tmp_path)

    def run(*argv):
        with pytest.raises(SystemExit) as end:
            cli.main(*argv)
        return end.value.code, *capsys.readouterr()

    return run


@pytest.fixture
def no_work(monkeypatch):
    """Everything up to the first computation is real."""

    def stop(*args, **kwargs):
        raise UserError("the work would begin here")

    monkeypatch.setattr(setup, "prepare", stop)
    monkeypatch.setattr(process, "join", stop)
    monkeypatch.setattr(RunDirectory, "locked", contextlib.nullcontext)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("train --model alexnet", "one of vgg16, vgg16_bn, resnet50_layer4, FILE.py:NAME or"),
        ("train --model VGG-16", "got 'VGG-16'; did you mean vgg16?"),
        ("train --batchsize=1", "--batchsize=1; did you mean --batch-size? (see --help)"),
        ("evaluate --chekpoint x", "are required: --checkpoint (see --help)"),
        ("train --decay-rate 1/0", "--decay-rate must be above 0 and at most 1, got nan"),
        ("train --batch-size 100000 --dataset digits", "--batch-size 100000 is more than the 1437"),
        ("train --workdir /dev/null/x --dataset digits", "/dev/null/x cannot be written to"),
        ("predict --checkpoint nowhere", "the following arguments are required: IMAGE"),
        ("evaluate --checkpoint nowhere", "No such file or directory: 'nowhere'"),
        ("trian --epochs 1", "'port'); did you mean train?"),
        ("train --coordinator h:65536 --workdir x", "must be HOST:PORT or auto, got 'h:65536'"),
        ("train --coordinator auto --workdir x", "auto needs Slurm, Kubernetes, Open MPI or a TPU"),
    ],
)
def test_a_command_fails_in_one_line(line, message, run, tmp_path, small_network):
    name = line.split()[0]
    code, _, error = run(*line.split())
    assert code == 2
    assert error.startswith("jaxcifar: " if name == "trian" else f"jaxcifar {name}: error: ")
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.glob("*/*/checkpoints"))


@pytest.mark.parametrize(("end", "code"), [([None], 0), ([0], 0), ([1], 1), (BrokenPipeError, 0)])
def test_a_command_returns_its_exit_code(end, code, run, monkeypatch):
    """It is no error if a reader has enough."""
    monkeypatch.setattr(train, "main", mock.Mock(side_effect=end))
    assert run("train") == (code, "", "")


@pytest.mark.parametrize(
    "error",
    [MemoryError(), jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9")],
)
def test_want_of_memory_is_said_with_a_smaller_batch(error, run, monkeypatch):
    def main(config):
        try:
            raise error
        except Exception as cause:
            raise UserError("is no whole checkpoint") from cause

    monkeypatch.setattr(train, "main", main)
    code, _, line = run("train", "--batch-size", "64")
    assert (code, line.count("\n")) == (2, 1)
    assert "not enough memory for --batch-size 64: try 32" in line


def test_help_lists_the_commands_and_every_option(run):
    code, out, _ = run()
    assert code == 0
    for name in cli.COMMANDS:
        assert f"    {name} " in out
        assert callable(importlib.import_module(f"jaxcifar.{name}").main)
    command = [sys.executable, "-m", "jaxcifar.train", "--help"]
    out = subprocess.check_output(command, text=True)
    for field in dataclasses.fields(TrainConfig):
        assert flag(f"no_{field.name}" if field.default is True else field.name) in out


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("name", cli.COMMANDS)
@fuzz
@given(data=st.data())
def test_random_arguments_end_with_0_or_2(name, run, data):
    flags = [flag(field.name) for field in dataclasses.fields(cli.COMMANDS[name])]
    flags += ["--no-compile-cache", "--help", "--", "--unknown"]
    part = st.tuples(st.sampled_from(flags), words).map(list) | st.lists(words, max_size=1)
    argv = [word for part in data.draw(st.lists(part, max_size=6)) for word in part]
    code, _, errors = run(name, *argv)
    assert code in (0, 2)
    assert code == 0 or errors.splitlines()[-1].startswith(f"jaxcifar {name}: error: ")
