"""Whole runs: output, logs, checkpoints, interruption and resumption."""

import json
import os
import re
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from jaxcifar import TrainConfig, UserError, train_and_evaluate
from jaxcifar.core import steps
from jaxcifar.files.run import RunDirectory
from jaxcifar.reporting.progress import Progress
from jaxcifar.runtime import loop, process, setup
from tests.conftest import assert_same, run_config

pytestmark = pytest.mark.usefixtures("few_digits")


def stop_after(monkeypatch, number, action):
    """Call ``action`` when a run has made so many steps."""
    calls = []
    advance = Progress.advance

    def advancing(self, images, label):
        advance(self, images, label)
        calls.append(1)
        if len(calls) == number:
            action()

    monkeypatch.setattr(Progress, "advance", advancing)


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


def assert_resumes_exactly(tmp_path, monkeypatch, capsys, **options):
    """A run that is interrupted and resumed prints, logs and ends as one that is not."""
    whole = train_and_evaluate(run_config(tmp_path / "whole", **options))
    whole_out = capsys.readouterr().out
    with monkeypatch.context() as patch:
        stop_after(patch, 8, interrupt)  # step 3 of 5 in epoch 2
        with pytest.raises(KeyboardInterrupt):
            train_and_evaluate(run_config(tmp_path / "cut", **options))
    stopped_out = capsys.readouterr().out
    assert RunDirectory(tmp_path / "cut").last_step() == 8

    resumed = train_and_evaluate(run_config(tmp_path / "cut", resume=True, **options))
    for name in ("step", "params", "batch_stats", "opt_state"):
        assert_same(getattr(whole.state, name), getattr(resumed.state, name))
    assert whole.test_accuracy == resumed.test_accuracy
    assert stopped_out + capsys.readouterr().out == whole_out
    timeless = [
        [{k: v for k, v in record.items() if k != "images_per_second"} for record in run.records]
        for run in (whole, resumed)
    ]
    assert timeless[0] == timeless[1]


@pytest.mark.slow
def test_a_resumed_run_of_the_resnet_is_bit_identical(tmp_path, monkeypatch, capsys):
    assert_resumes_exactly(tmp_path, monkeypatch, capsys, augment="crop-flip", epochs=2)


def test_a_resumed_run_with_dropout_is_bit_identical(tmp_path, monkeypatch, capsys, tiny_network):
    assert_resumes_exactly(tmp_path, monkeypatch, capsys, epochs=2)


@pytest.mark.usefixtures("tiny_network")
def test_output_logs_and_checkpoints(tmp_path, capsys):
    options = {"val_fraction": 0.2, "keep": 1}
    history = train_and_evaluate(run_config(tmp_path, epochs=2, **options))
    out = capsys.readouterr().out.splitlines()
    patterns = [r"Epoch \[1/2\], Step \[2/4\] Loss: \d+\.\d{4}"]
    patterns += [r"Epoch \[1/2\], Step \[4/4\] Loss: \d+\.\d{4}"]
    patterns += [r"Accuracy of the model on the 8 validation images: \d+\.\d\d %"]
    patterns += [p.replace("[1/", "[2/") for p in patterns]
    patterns += [r"Accuracy of the model on the test images: \d+\.\d\d %"]
    assert len(out) == len(patterns)
    for line, pattern in zip(out, patterns, strict=True):
        assert re.fullmatch(pattern, line)
    assert out[-1].endswith(f": {100 * history.test_accuracy:.2f} %")

    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert records == history.records
    assert [r["split"] for r in records] == ["train", "train", "val"] * 2 + ["test"]
    assert [r["step"] for r in records] == [2, 4, 4, 6, 8, 8, 8]
    assert records[0]["learning_rate"] == pytest.approx(1e-3)
    assert list((tmp_path / "tensorboard").glob("events.out.tfevents.*"))
    assert RunDirectory(tmp_path).read_config().val_fraction == 0.2

    # The last one and, if it is another, the best on the validation images.
    best = max((r["accuracy"], r["step"]) for r in records if r["split"] == "val")[1]
    assert {int(path.name) for path in (tmp_path / "checkpoints").iterdir()} == {8, best}

    with pytest.raises(UserError, match="holds a run already: continue it with --resume"):
        train_and_evaluate(run_config(tmp_path))
    with pytest.raises(UserError, match=r"--seed 1 is not what .* was started with"):
        train_and_evaluate(run_config(tmp_path, resume=True, seed=1, **options))
    with pytest.raises(UserError, match="stands at step 8, beyond the 4 steps of --epochs 1"):
        train_and_evaluate(run_config(tmp_path, resume=True, epochs=1, **options))
    again = train_and_evaluate(run_config(tmp_path, resume=True, epochs=2, **options))
    assert_same(again.state.params, history.state.params)  # a finished run resumes to its end


@pytest.mark.usefixtures("tiny_network")
def test_a_run_that_saved_nothing_can_start_again(tmp_path, monkeypatch):
    def fail():
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        stop_after(patch, 1, fail)
        with pytest.raises(RuntimeError, match="killed"):
            train_and_evaluate(run_config(tmp_path))
    with pytest.raises(UserError, match=r"no checkpoint in .*: start without --resume"):
        train_and_evaluate(run_config(tmp_path, resume=True))
    assert train_and_evaluate(run_config(tmp_path)).records[-1]["split"] == "test"


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signalled_command_leaves_a_checkpoint(signum, code, tmp_path):
    argv = [sys.executable, "-m", "jaxcifar.train", "--dataset", "digits", "--batch-size", "16"]
    argv += ["--model", "resnet50_layer4", "--log-every", "1", "--workdir", str(tmp_path / "w 1")]
    run = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert run.stdout.readline().startswith("Epoch [1/1], Step [1/89] Loss: ")
    run.send_signal(signum)
    _, error = run.communicate(timeout=60)
    assert run.returncode == code
    assert "Stopped after step " in error
    assert f"continue with: jaxcifar train --workdir '{tmp_path}/w 1' --resume" in error
    assert "Traceback" not in error
    assert RunDirectory(tmp_path / "w 1").last_step() is not None


@pytest.mark.usefixtures("tiny_network")
def test_bfloat16_trains(tmp_path):
    history = train_and_evaluate(run_config(tmp_path, precision="bfloat16"))
    assert np.isfinite(history.records[0]["loss"])
    assert {leaf.dtype for leaf in jax.tree.leaves(history.state.params)} == {np.dtype("float32")}


@pytest.mark.usefixtures("tiny_network")
def test_on_an_accelerator_the_host_reads_only_behind_the_next_dispatch(tmp_path, monkeypatch):
    options = {"batch_size": 5, "epochs": 2, "log_every": 4}
    options["learning_rate"] = 1e-6  # at 1e-3 Adam's division turns rounding into another run
    one_by_one = train_and_evaluate(run_config(tmp_path / "one", **options))

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
    in_chunks = train_and_evaluate(run_config(tmp_path / "chunks", **options))

    assert events == [4, 4, "read", "read"] * 2
    assert [r["step"] for r in in_chunks.records] == [r["step"] for r in one_by_one.records]
    # test_a_scan_of_steps_is_the_same_steps has the proof.
    losses = [run.records[0]["loss"] for run in (in_chunks, one_by_one)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.parametrize("checkpoint_every", [0, 1, 3, 7, 50])
@pytest.mark.parametrize("log_every", [1, 4, 60])
@pytest.mark.parametrize("per_epoch", [1, 5, 12])
def test_a_dispatch_ends_where_something_is_due(per_epoch, log_every, checkpoint_every):
    config = TrainConfig(log_every=log_every, checkpoint_every=checkpoint_every)

    def due(step):
        done = step % per_epoch or per_epoch
        saves = checkpoint_every and step % checkpoint_every == 0
        return done == per_epoch or done % log_every == 0 or saves

    for step in range(60):
        count = loop._steps_to_pause(config, step, per_epoch)
        assert count >= 1
        assert due(step + count)
        assert not any(due(step + i) for i in range(1, count))


@pytest.mark.parametrize(("batch_size", "nearest"), [(10, "8 or 12"), (3, "4"), (5, "4 or 8")])
def test_a_batch_that_cannot_be_split_names_the_nearest_sizes(batch_size, nearest):
    with pytest.raises(UserError, match=f"over 4 devices: use {nearest}$"):
        setup._check_divisible(batch_size, 4)
    setup._check_divisible(8, 4)
