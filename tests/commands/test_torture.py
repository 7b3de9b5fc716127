"""A run that is killed at random moments and resumed ends as an undisturbed one, to the bit."""

import json
import random
import shutil
import subprocess
import sys
import time

import pytest

from jaxcifar.files.run import RunDirectory

# Every step writes a checkpoint, so that most kills fall into one.
OPTIONS = "--model resnet50_layer4 --dataset digits --batch-size 90 --checkpoint-every 1"


def start(workdir, options=""):
    command = [
        sys.executable,
        *f"-m jaxcifar train --workdir {workdir} {OPTIONS} {options}".split(),
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process, timeout=None):
    output, _ = process.communicate(timeout=timeout)
    assert process.returncode == 0, output


def result(workdir):
    """The digest of a run's last checkpoint, and its record of the test."""
    run = RunDirectory(workdir)
    checkpoint = run.checkpoints_dir / str(run.last_step()) / "_CHECKPOINT_METADATA"
    metadata = json.loads(checkpoint.read_text())["custom_metadata"]
    *_, record = run.read_metrics()
    assert record["split"] == "test"
    return metadata["sha256_of_values"], record


@pytest.mark.parametrize(
    "kills",
    [pytest.param(2, marks=pytest.mark.slow), pytest.param(20, marks=pytest.mark.torture)],
)
def test_killed_runs_end_as_an_undisturbed_one(kills, tmp_path):
    finish(start(tmp_path / "compiled"))
    begin = time.monotonic()
    finish(start(tmp_path / "undisturbed"))
    seconds = time.monotonic() - begin
    expected = result(tmp_path / "undisturbed")
    assert result(tmp_path / "compiled") == expected

    rng = random.Random(kills)
    killed = runs = 0
    while killed < kills:
        runs += 1
        workdir = tmp_path / f"run{runs}"
        process = start(workdir)
        while True:
            moment = rng.uniform(0.3, 1) * seconds if killed < kills else None
            try:
                finish(process, timeout=moment)
                break
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
            killed += 1
            print(f"kill {killed} after {moment:.1f} s", flush=True)  # make torture shows it
            saved = RunDirectory(workdir).last_step() is not None
            process = start(workdir, "--resume" if saved else "")
        assert result(workdir) == expected, f"run {runs} ended differently"
        shutil.rmtree(workdir)  # half a gigabyte
