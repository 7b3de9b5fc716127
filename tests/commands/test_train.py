"""Whole runs: output, logs, checkpoints, interruption and resumption."""

import itertools
import re
import signal
import sys
from functools import partial
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jaxcifar import TrainConfig, UserError, train_and_evaluate
from jaxcifar.core import sharding, steps
from jaxcifar.files import networks
from jaxcifar.files.run import RunDirectory
from jaxcifar.layers import BatchNorm, Flatten, Linear, Sequential
from jaxcifar.reporting.progress import Progress
from jaxcifar.runtime import process
from tests.commands.processes import start
from tests.conftest import assert_same, create, run_config

pytestmark = pytest.mark.usefixtures("few_digits", "small_network")
EPOCH_OF_TWO = """\
Epoch [{0}/2], Step [2/4] Loss: NUMBER
Epoch [{0}/2], Step [4/4] Loss: NUMBER
Accuracy of the model on the 8 validation images: NUMBER %
"""


def stop_after(monkeypatch, number, action):
    """Call ``action`` when a run has made so many steps."""
    calls = itertools.count(1)
    advance = Progress.advance

    def advancing(self, images, label):
        advance(self, images, label)
        if next(calls) == number:
            action()

    monkeypatch.setattr(Progress, "advance", advancing)


def assert_resumes_exactly(tmp_path, monkeypatch, capsys, stop, **options):
    """A run that is interrupted and resumed prints, logs and ends as one that is not."""
    whole = train_and_evaluate(run_config(tmp_path / "whole", **options))
    whole_out = capsys.readouterr().out
    with monkeypatch.context() as patch:
        stop_after(patch, stop, lambda: signal.raise_signal(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            train_and_evaluate(run_config(tmp_path / "cut", **options))
    assert RunDirectory(tmp_path / "cut").last_step() == stop

    resumed = assert_resumes_as(whole, tmp_path / "cut", **options)
    assert capsys.readouterr().out == whole_out
    assert {leaf.dtype for leaf in jax.tree.leaves(resumed.params)} == {np.dtype("float32")}


def assert_resumes_as(whole, path, **options):
    """A run that is resumed ends as a whole one, and its records are those of a whole one."""
    resumed = train_and_evaluate(run_config(path, resume=True, **options))
    for name in ("step", "params", "batch_stats", "opt_state"):
        assert_same(getattr(whole.state, name), getattr(resumed.state, name))
    records, expected = (
        [record | {"images_per_second": None} for record in RunDirectory(path).read_metrics()]
        for path in (path, whole.workdir)
    )
    assert records == expected
    return resumed.state


@pytest.mark.slow
def test_a_resumed_run_of_the_resnet_is_bit_identical(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(networks, "create", create)
    assert_resumes_exactly(tmp_path, monkeypatch, capsys, stop=3)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_resumed_run_with_dropout_and_crops_is_bit_identical(
    precision, tmp_path, monkeypatch, capsys
):
    options = {"augment": "crop-flip", "precision": precision}
    options |= {"epochs": 2, "stop": 8}  # after step 3 of 5 in epoch 2
    assert_resumes_exactly(tmp_path, monkeypatch, capsys, **options)


@pytest.mark.parametrize("line", EPOCH_OF_TWO.format(1).splitlines()[1:])
def test_what_was_saved_and_not_yet_reported_is_reported_after_a_kill(line, tmp_path, monkeypatch):
    options = {"epochs": 2, "val_fraction": 0.2}
    whole = train_and_evaluate(run_config(tmp_path / "whole", **options))
    result = Progress.result

    def result_or_death(self, printed, *note_and_pace):
        if printed.startswith(line.split("NUMBER")[0]):
            raise SystemExit("killed")
        result(self, printed, *note_and_pace)

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "result", result_or_death)
        with pytest.raises(SystemExit, match="killed"):
            train_and_evaluate(run_config(tmp_path / "cut", **options))
    assert RunDirectory(tmp_path / "cut").last_step() == 4
    reported = [record["split"] for record in RunDirectory(tmp_path / "cut").read_metrics()]
    assert reported == (["train"] if "[4/4]" in line else ["train", "train"])
    assert_resumes_as(whole, tmp_path / "cut", **options)


def test_output_logs_and_checkpoints(tmp_path, capsys, caplog):
    caplog.set_level("INFO", "jaxcifar")
    options = {"val_fraction": 0.2, "keep": 1}
    history = train_and_evaluate(run_config(tmp_path, epochs=2, **options))
    out = capsys.readouterr().out
    assert re.sub(r"\d+\.(\d{4}|\d\d(?= %))", "NUMBER", out).splitlines() == [
        *EPOCH_OF_TWO.format(1).splitlines(),
        *EPOCH_OF_TWO.format(2).splitlines(),
        "Accuracy of the model on the test images: NUMBER %",
    ]
    assert out.endswith(f": {100 * history.test_accuracy:.2f} %\n")

    records = RunDirectory(tmp_path).read_metrics()
    assert records == history.records
    assert [r["split"] for r in records] == ["train", "train", "val"] * 2 + ["test"]
    assert [r["step"] for r in records] == [2, 4, 4, 6, 8, 8, 8]
    assert records[0]["learning_rate"] == pytest.approx(1e-3)
    assert RunDirectory(tmp_path).read_config().val_fraction == 0.2

    # The last one and, if it is another, the best on the validation images.
    best = max((r["accuracy"], r["step"]) for r in records if r["split"] == "val")
    assert {int(path.name) for path in (tmp_path / "checkpoints").iterdir()} == {8, best[1]}
    said = f"images after step {best[1]}: {100 * best[0]:.2f} %; evaluate it with: "
    assert (
        f"{said}{sys.executable} -m jaxcifar evaluate --checkpoint {tmp_path}:best" in caplog.text
    )

    with pytest.raises(UserError, match="holds a run already: continue it with --resume"):
        train_and_evaluate(run_config(tmp_path))
    with pytest.raises(UserError, match=r"--seed 1 is not what .* was started with"):
        train_and_evaluate(run_config(tmp_path, resume=True, seed=1, **options))
    with pytest.raises(UserError, match="stands at step 8, beyond the 4 steps of --epochs and"):
        train_and_evaluate(run_config(tmp_path, resume=True, epochs=1, **options))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    again = train_and_evaluate(run_config(tmp_path, resume=True, epochs=2, **options))
    assert_same(again.state.params, history.state.params)  # a finished run has nothing to do
    assert again[1:3] == history[1:3]
    assert capsys.readouterr().out == out.splitlines(keepends=True)[-1]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_run_can_be_tried_out_for_some_steps(tmp_path, capsys):
    options = {"limit_steps": 3, "val_fraction": 0.2, "epochs": 9}
    RunDirectory(tmp_path).write_config(run_config(tmp_path, **options), {})
    # Also one that was killed before it saved, as a queue starts it again.
    flags = {"workdir": str(tmp_path), "resume": True}
    again = TrainConfig(**flags).resumed(flags)
    assert again == run_config(tmp_path, resume=True, **options)
    history = train_and_evaluate(again)
    ends = [("train", 2), ("train", 3), ("val", 3), ("test", 3)]
    assert [(record["split"], record["step"]) for record in history.records] == ends
    assert RunDirectory(tmp_path).last_step() == 3
    loss, accuracy = (history.records[1][name] for name in ("loss", "accuracy"))
    out, err = capsys.readouterr()
    assert f"Epoch [1/9], Step [3/4] Loss: {loss:.4f}\n" in out
    assert f" left, training accuracy {100 * accuracy:.2f} %\n" in err


@pytest.mark.slow
def test_a_signalled_command_leaves_a_checkpoint(tmp_path):
    run = start(tmp_path / "w 1", "--batch-size 16")
    assert run.stdout.readline().startswith("Epoch [1/1], Step [1/89] Loss: ")
    run.send_signal(signal.SIGINT)
    _, error = run.communicate(timeout=60)
    assert run.returncode == 130
    assert "Stopped after step " in error
    words = f"train --model tests.tiny:Small --workdir '{tmp_path}/w 1' --resume"
    assert f"continue with: {sys.executable} -m jaxcifar {words}\n" in error
    assert "Traceback" not in error
    assert RunDirectory(tmp_path / "w 1").last_step() is not None


def test_on_an_accelerator_the_host_reads_only_behind_the_next_dispatch(tmp_path, monkeypatch):
    """A dispatch ends where something is due, and what is saved is read at once."""
    options = {"batch_size": 5, "epochs": 2, "log_every": 4, "checkpoint_every": 3}
    events = []
    train_steps_at, means = steps.train_steps_at, steps.Metrics.means

    def dispatch(*args, count, **kwargs):
        events.append(count)
        with jax.transfer_guard("disallow"):  # nothing but what is on the device already
            return train_steps_at(*args, count=count, **kwargs)

    def read(metrics):
        events.append("read")
        return means(metrics)

    monkeypatch.setattr(steps, "train_steps_at", dispatch)
    monkeypatch.setattr(steps.Metrics, "means", read)
    monkeypatch.setattr(process, "computes_on_cpu", lambda: False)
    in_chunks = train_and_evaluate(run_config(tmp_path, **options))
    assert events == [3, 1, 2, "read", 2, "read", 1, 3, "read", 3, 1, "read"]
    assert [r["step"] for r in in_chunks.records] == [4, 8, 12, 16, 16]


def test_a_batch_that_does_not_fit_is_refused(tmp_path, monkeypatch):
    layers = Flatten, BatchNorm, partial(Linear, 10)
    monkeypatch.setattr(networks, "create", lambda name, **options: Sequential(layers))
    with pytest.raises(UserError, match="--batch-size 1 is too small: BatchNorm cannot train on"):
        train_and_evaluate(run_config(tmp_path, batch_size=1))
    monkeypatch.setattr(sharding, "make_mesh", lambda: SimpleNamespace(size=4))
    with pytest.raises(UserError, match="--batch-size 10 must be a multiple of the 4 devices"):
        train_and_evaluate(run_config(tmp_path, batch_size=10))
    assert {path.name for path in tmp_path.iterdir()} <= {"lock"}
