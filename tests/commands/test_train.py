"""Whole runs: output, logs, checkpoints, interruption and exact resumption."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcifar.config import TrainConfig
from jaxcifar.core.steps import Metrics
from jaxcifar.errors import UserError
from jaxcifar.files import checkpoints as checkpoint
from jaxcifar.files import metrics as logs
from jaxcifar.files.run import has_checkpoint
from jaxcifar.train import train_and_evaluate

pytestmark = pytest.mark.usefixtures("few_digits")


def config(workdir, **changes):
    options = {
        "model": "resnet50_layer4",
        "dataset": "digits",
        "batch_size": 8,
        "report": False,
        "log_every": 2,
    }
    return TrainConfig(workdir=str(workdir), **{**options, **changes})


def assert_same_state(first, second):
    for name in ("step", "params", "batch_stats", "opt_state"):
        jax.tree.map(np.testing.assert_array_equal, getattr(first, name), getattr(second, name))


def interrupt_after(monkeypatch, steps, signum):
    calls = []
    advance = logs.Progress.advance

    def advancing(self, images, label):
        advance(self, images, label)
        calls.append(1)
        if len(calls) == steps:
            os.kill(os.getpid(), signum)

    monkeypatch.setattr(logs.Progress, "advance", advancing)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "augment"), [("vgg16", "none"), ("resnet50_layer4", "crop-flip")]
)
def test_interrupted_and_resumed_is_bit_identical(model, augment, tmp_path, monkeypatch, capsys):
    options = {"model": model, "augment": augment, "epochs": 2}
    whole = train_and_evaluate(config(tmp_path / "whole", **options))
    whole_out = capsys.readouterr().out

    with monkeypatch.context() as patch:
        interrupt_after(patch, 8, signal.SIGINT)  # step 3 of 5 in epoch 2
        with pytest.raises(KeyboardInterrupt):
            train_and_evaluate(config(tmp_path / "cut", **options))
    stopped = capsys.readouterr()
    assert "Stopped after step 8 of 10; continue with: python -m jaxcifar.train" in stopped.err
    assert has_checkpoint(tmp_path / "cut")

    resumed = train_and_evaluate(config(tmp_path / "cut", resume=True, **options))
    assert_same_state(whole.state, resumed.state)
    assert whole.test_accuracy == resumed.test_accuracy
    assert stopped.out + capsys.readouterr().out == whole_out

    def comparable(records):
        return [{k: v for k, v in r.items() if k != "images_per_second"} for r in records]

    assert comparable(resumed.records) == comparable(whole.records)


def test_output_logs_and_checkpoints(tmp_path, capsys):
    history = train_and_evaluate(config(tmp_path, epochs=2, val_fraction=0.2, keep=1))
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
    assert TrainConfig.from_json(tmp_path / "config.json").val_fraction == 0.2

    # The last one and, if it is another, the best on the validation images.
    best = max((r["accuracy"], r["step"]) for r in records if r["split"] == "val")[1]
    kept = {int(path.name) for path in (tmp_path / "checkpoints").iterdir()}
    assert kept == {8, best}

    with pytest.raises(UserError, match="holds a run already: continue it with --resume"):
        train_and_evaluate(config(tmp_path))
    with pytest.raises(UserError, match=r"--seed 1 is not what .* was started with"):
        train_and_evaluate(config(tmp_path, resume=True, seed=1, val_fraction=0.2))
    with pytest.raises(UserError, match="stands at step 8, beyond the 4 steps of --epochs 1"):
        train_and_evaluate(config(tmp_path, resume=True, epochs=1, val_fraction=0.2, keep=1))
    # A finished run resumes to its own end.
    again = train_and_evaluate(config(tmp_path, resume=True, epochs=2, val_fraction=0.2, keep=1))
    assert_same_state(again.state, history.state)


def test_a_run_that_saved_nothing_can_start_again(tmp_path, monkeypatch):
    def fail(self, images, label):
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(logs.Progress, "advance", fail)
        with pytest.raises(RuntimeError, match="killed"):
            train_and_evaluate(config(tmp_path))
    with pytest.raises(UserError, match=r"no whole checkpoint in .*: start without --resume"):
        train_and_evaluate(config(tmp_path, resume=True))
    assert train_and_evaluate(config(tmp_path)).records[-1]["split"] == "test"


def test_the_best_checkpoint_outlives_the_last_ones(tmp_path, capsys):
    history = train_and_evaluate(config(tmp_path / "run"))
    accuracies = {1: 0.2, 2: 0.9, 3: 0.5, 4: None, 5: 0.1}
    with checkpoint.open_checkpoints(tmp_path / "other", keep=2) as checkpoints:
        for step, accuracy in accuracies.items():
            state = history.state.replace(step=jnp.int32(step))
            checkpoint.save(
                checkpoints, state, Metrics.zeros(), config(tmp_path), val_accuracy=accuracy
            )
        assert [c.step for c in checkpoints.checkpoints] == [2, 4, 5]


def test_records_beyond_the_checkpoint_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "split": "train"}\n{"step": 9, "split": "train"}\n{"step": 1')
    writer = logs.MetricWriter(tmp_path, 5)
    writer.write(6, "val", loss=1.0, missing=None)
    writer.close()
    assert logs.read_metrics(path) == [
        {"step": 1, "split": "train"},
        {"step": 6, "split": "val", "loss": 1.0},
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signalled_command_leaves_a_checkpoint(signum, code, tmp_path):
    argv = [sys.executable, "-m", "jaxcifar.train", "--dataset", "digits", "--batch-size", "16"]
    argv += ["--model", "resnet50_layer4", "--log-every", "1", "--workdir", str(tmp_path / "w")]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline().startswith("Epoch [1/1], Step [1/89] Loss: ")
    process.send_signal(signum)
    deadline = time.monotonic() + 60
    _, error = process.communicate(timeout=deadline - time.monotonic())
    assert process.returncode == code
    assert f"--workdir {tmp_path / 'w'} --resume" in error
    assert "Traceback" not in error
    assert has_checkpoint(tmp_path / "w")


def test_bfloat16_trains(tmp_path):
    history = train_and_evaluate(config(tmp_path, precision="bfloat16"))
    assert np.isfinite(history.records[0]["loss"])
    assert {leaf.dtype for leaf in jax.tree.leaves(history.state.params)} == {np.dtype("float32")}
