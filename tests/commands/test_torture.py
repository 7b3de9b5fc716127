"""A run that is killed at random moments and resumed ends as an undisturbed one, to the bit."""

import random
import shutil
import subprocess
import time

import pytest

from jaxcifar.files.checkpoints import DIGEST
from jaxcifar.files.run import RunDirectory
from tests.commands.processes import finish, start, wait_for
from tests.conftest import SMALL

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
        pytest.param(2, SMALL, "--no-report", marks=pytest.mark.slow),
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

    rng, workdir = random.Random(3), tmp_path / "run"
    for kill in range(kills + 1):
        process = start(workdir, f"{options} --resume", model)
        if kill < kills and kill % 5 < 4:  # every fifth kill can fall into the start
            wait_for(process, "Step [")
        try:
            finish(process, timeout=rng.uniform(0, seconds) if kill < kills else None)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            print(f"kill {kill + 1} at step {RunDirectory(workdir).last_step()}", flush=True)
        else:
            assert result(workdir) == expected
            shutil.rmtree(workdir)  # the next kill is one of another run
    assert not workdir.exists()
