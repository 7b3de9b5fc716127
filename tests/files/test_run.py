"""The directory of a run: its lock, its metrics, and whose it is."""

import dataclasses
import subprocess
import sys

import pytest

from jaxcifar import TrainConfig, UserError
from jaxcifar.files.run import METRICS_FILE, RunDirectory, weights_path
from tests.files.test_checkpoints import save


def test_two_runs_do_not_share_a_directory(tmp_path):
    run = RunDirectory(tmp_path / "run")
    with run.locked():
        with pytest.raises(UserError, match="another run writes to"), run.locked():
            pass
        code = "from jaxcifar.files.run import RunDirectory; from pathlib import Path\n"
        code += f"with RunDirectory(Path({str(run.path)!r})).locked(): pass"
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert "another run writes to" in other.stderr
    with run.locked():
        pass


def test_the_directory_of_another_run_is_left_alone(tmp_path):
    started = TrainConfig(dataset="digits", workdir=str(tmp_path))
    save(tmp_path, 1, metadata=started.to_dict())
    with pytest.raises(UserError, match="holds a run already: continue it with --resume"):
        RunDirectory.for_run(started)
    saved = RunDirectory(tmp_path).read_metadata()
    for change in ({"model": "resnet50_layer4"}, {"dataset": "cifar10"}):
        other = dataclasses.replace(started, resume=True, **change)
        with pytest.raises(UserError, match=r"is not what .* was started with"):
            other.check_resumes(saved, tmp_path)


def test_records_beyond_the_checkpoint_are_dropped(tmp_path):
    path = tmp_path / METRICS_FILE
    path.write_text('{"step": 1, "split": "train"}\n{"step": 9, "split": "train"}\n{"step": 1')
    writer = RunDirectory(tmp_path).open_metrics(5)
    writer.write(6, "val", loss=1.0, missing=None)
    writer.close()
    assert RunDirectory(tmp_path).read_metrics() == [
        {"step": 1, "split": "train"},
        {"step": 6, "split": "val", "loss": 1.0},
    ]


def test_the_best_checkpoint_is_the_best_of_those_on_disk(tmp_path):
    with pytest.raises(UserError, match="no checkpoint with a validation accuracy: train with"):
        weights_path(f"{tmp_path}:best")
    writer = RunDirectory(tmp_path).open_metrics(9)
    for step, accuracy in ((1, 0.9), (2, 0.7), (3, 0.8), (4, 0.6)):
        writer.write(step, "val", accuracy=accuracy)
    writer.close()
    for step in (2, 3, 4):  # the first was deleted
        (tmp_path / "checkpoints" / str(step)).mkdir(parents=True)
    assert weights_path(f"{tmp_path}:best") == tmp_path / "checkpoints" / "3"
    assert weights_path(tmp_path) == tmp_path
    (tmp_path / "a:best").touch()
    assert weights_path(str(tmp_path / "a:best")) == tmp_path / "a:best"


def test_options_are_read_once_by_a_resumed_command(tmp_path):
    saved = TrainConfig(dataset="digits", epochs=3, learning_rate=0.5)
    RunDirectory(tmp_path).write_config(saved, {"devices": "1 x cpu"})
    assert RunDirectory(tmp_path).read_config() == saved
    assert RunDirectory(tmp_path).read_environment() == {"devices": "1 x cpu"}
    flags = {"resume": True, "workdir": str(tmp_path), "epochs": 5}
    assert TrainConfig.from_flags(flags) == dataclasses.replace(saved, **flags)
