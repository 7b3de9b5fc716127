"""A run that is killed at random moments and resumed ends as an undisturbed one, to the bit."""

import random
import shutil
import subprocess
import time

import pytest

from jaxcifar.files.checkpoints import DIGEST
from jaxcifar.files.run import RunDirectory
from tests.commands.processes import finish, start, wait_for
from tests.conftest import TINY

# Every step writes a checkpoint, so that most kills fall into one.
OPTIONS = "--batch-size 90 --checkpoint-every 1"


def result(workdir):
    """The digest of a run's last checkpoint, and its record of the test."""
    run = RunDirectory(workdir)
    *_, record = run.read_metrics()
    assert record["split"] == "test"
    return run.read_metadata()[DIGEST], record


@pytest.mark.parametrize(
    ("kills", "model", "options"),
    [
        pytest.param(2, TINY, "--epochs 2 --no-report", marks=pytest.mark.slow),
        pytest.param(20, "resnet50_layer4", "", marks=pytest.mark.torture),
    ],
)
def test_killed_runs_end_as_an_undisturbed_one(kills, model, options, tmp_path):
    options = f"{OPTIONS} {options}"
    undisturbed = start(tmp_path / "undisturbed", options, model)
    wait_for(undisturbed, "Step [1/")
    begin = time.monotonic()
    finish(undisturbed)
    seconds = time.monotonic() - begin
    expected = result(tmp_path / "undisturbed")

    rng = random.Random(3)
    killed = runs = 0
    while killed < kills:
        runs += 1
        workdir = tmp_path / f"run{runs}"
        process = start(workdir, options, model)
        while True:
            moment = rng.uniform(0, seconds) if killed < kills else None
            if moment and killed % 5 < 4:  # every fifth kill can fall into the start
                wait_for(process, "Step [")
            try:
                finish(process, timeout=moment)
                break
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
            killed += 1
            saved = RunDirectory(workdir).last_step()
            print(f"kill {killed} after {moment:.1f} s, step {saved}", flush=True)
            process = start(workdir, options + " --resume" * (saved is not None), model)
        assert result(workdir) == expected, f"run {runs} ended differently"
        shutil.rmtree(workdir)  # half a gigabyte
