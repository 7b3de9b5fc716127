"""The directory of a run: its lock, its metrics, and whose it is."""

import contextlib
import dataclasses
import errno
import os
from pathlib import Path
from unittest.mock import Mock

import filelock
import pytest

from jaxcifar import TrainConfig, UserError
from jaxcifar.files.run import METRICS_FILE, MetricWriter, RunDirectory
from jaxcifar.files.weights import resolve
from tests.files.test_checkpoints import save


def test_two_runs_do_not_share_a_directory(tmp_path):
    run = RunDirectory(tmp_path / "run")
    with run.locked(), pytest.raises(UserError, match="another run writes to"), run.locked():
        pass
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
    writer = MetricWriter(RunDirectory(tmp_path), 5)
    writer.write(6, "val", loss=1.0, missing=None)
    writer.close()
    assert RunDirectory(tmp_path).read_metrics() == [
        {"step": 1, "split": "train"},
        {"step": 6, "split": "val", "loss": 1.0},
    ]


def test_the_best_checkpoint_is_the_best_of_those_on_disk(tmp_path):
    with pytest.raises(UserError, match="no checkpoint with a validation accuracy: pass"):
        resolve(f"{tmp_path}:best", None)
    writer = MetricWriter(RunDirectory(tmp_path), 9)
    for step, accuracy in ((1, 0.9), (2, 0.7), (3, 0.8), (4, 0.6)):
        writer.write(step, "val", accuracy=accuracy)
    writer.close()
    for step in (2, 3, 4):  # the first was deleted
        (tmp_path / "checkpoints" / str(step)).mkdir(parents=True)
    assert resolve(f"{tmp_path}:best", None) == tmp_path / "checkpoints" / "3"
    assert resolve(tmp_path, None) == tmp_path
    (tmp_path / "a:best").touch()
    assert resolve(str(tmp_path / "a:best"), None) == tmp_path / "a:best"


def test_options_are_read_once_by_a_resumed_command(tmp_path):
    saved = TrainConfig(dataset="digits", epochs=3, learning_rate=0.5)
    RunDirectory(tmp_path).write_config(saved, {"devices": "1 x cpu"})
    assert RunDirectory(tmp_path).read_config() == saved
    assert RunDirectory(tmp_path).read_environment() == {"devices": "1 x cpu"}
    flags = {"resume": True, "workdir": str(tmp_path), "epochs": 5}
    assert TrainConfig(**flags).resumed(flags) == dataclasses.replace(saved, **flags)


def test_runs_of_one_second_have_a_directory_each(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = RunDirectory.for_run(TrainConfig(dataset="digits", model="nets/my.py:Net"))
    assert run.path.parent == Path("runs")
    assert RunDirectory.for_run(TrainConfig()).path != RunDirectory.for_run(TrainConfig()).path


@pytest.mark.parametrize("exists", [False, True])
def test_a_failed_start_leaves_nothing_behind(exists, tmp_path):
    path = tmp_path / "runs" / "run"
    if exists:
        path.mkdir(parents=True)

    def fail(*losses):
        with RunDirectory(path).locked() as run:
            run.write_config(TrainConfig(), {})
            with contextlib.closing(MetricWriter(run, 0)) as writer:
                for loss in losses:
                    writer.write(1, "train", loss=loss)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.exists() == exists
    with pytest.raises(KeyboardInterrupt):
        fail(1.0)
    assert RunDirectory(path).read_metrics() == [{"step": 1, "split": "train", "loss": 1.0}]


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(filelock.FileLock, "acquire", Mock(side_effect=OSError(errno.ENOLCK, "No")))
    with RunDirectory(tmp_path).locked():
        assert "cannot be locked: start no other run in it" in caplog.text


@pytest.mark.parametrize("name", ["lock", "metrics.jsonl", "report", "report/x", "checkpoints"])
def test_a_link_that_leads_out_of_a_run_is_refused(name, tmp_path):
    (path := tmp_path / "run" / name).parent.mkdir(parents=True)
    path.symlink_to(tmp_path / "outside")
    with (
        pytest.raises(UserError, match=f"{name} is a link"),
        RunDirectory(tmp_path / "run").locked(),
    ):
        pass
    assert not (tmp_path / "outside").exists()


ODD = [b"", b"[1]", b"\xff", b"[" * 10**5, b'{"nothing": 1}']
ODD += [b'{"learning_rate": "fast"}', b'{"learning_rate": 1%s}' % (b"0" * 400)]


@pytest.mark.parametrize("content", [*ODD, None], ids=lambda odd: str(odd)[:30])
def test_files_of_a_run_that_do_not_fit_are_said_in_a_line(content, tmp_path, caplog):
    for name in ("config.json", "environment.json", METRICS_FILE):
        if content is None:
            os.mkfifo(tmp_path / name)
        else:
            (tmp_path / name).write_bytes(content + b"\n" * bool(content))
    run = RunDirectory(tmp_path)
    with pytest.raises(UserError, match=r"config\.json is not a saved training configuration"):
        run.read_config()
    assert all(isinstance(text, str) for text in run.read_environment().values())
    with contextlib.suppress(UserError):
        assert run.read_metrics() == []
        assert (METRICS_FILE in caplog.text) == (content != b"")
