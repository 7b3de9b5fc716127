"""Two processes with two devices each do what one process does: ``make test-distributed``."""

import signal
import socket

import jax
import numpy as np
import optax
import pytest
from orbax.checkpoint import v1 as ocp

from jaxcifar.files.run import RunDirectory
from tests import conftest
from tests.commands import processes
from tests.commands.processes import finish, wait_for

pytestmark = pytest.mark.slow

# At a larger rate, or with many biases before batch norms, float32 runs part: docs/scaling.md.
OPTIONS = "--batch-size 96 --learning-rate 1e-6"
# Two epochs of the tiny network, so that signals reach it on its way.
TINY = (conftest.TINY, f"{OPTIONS} --epochs 2 --no-report")
VGG16 = ("vgg16", OPTIONS)


def start(network, path, devices, options=""):
    model, fixed = network
    return processes.start(path, f"{fixed} {options}", model, JAX_NUM_CPU_DEVICES=str(devices))


def start_two(network, path, options=""):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        options += f" --coordinator localhost:{free.getsockname()[1]} --num-processes 2"
    return [start(network, path, 2, f"{options} --process-id {index}") for index in range(2)]


def assert_close(path, reference):
    """The parameters, as one vector, are within 1e-5 of their length."""
    runs = map(RunDirectory, (path, reference))
    first, second = (
        ocp.load(run.checkpoints_dir.absolute() / str(run.last_step())) for run in runs
    )
    assert first["step"] == second["step"]
    difference = jax.tree.map(np.subtract, first["params"], second["params"])
    assert optax.tree.norm(difference) <= 1e-5 * optax.tree.norm(second["params"])


def assert_ends(process):
    """Within a minute, with our line, or with JAX's if it waited for the dead one in a save."""
    _, error = process.communicate(timeout=60)
    if process.returncode == 2:
        assert "another process of the run has ended" in error
        assert "Traceback" not in error
    else:
        assert process.returncode == -signal.SIGABRT
        assert "another task died" in error


def test_no_cluster_is_said_to_be_missing(tmp_path):
    process = start(TINY, tmp_path, 1, "--coordinator auto")
    _, error = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "auto needs Slurm, Kubernetes, Open MPI or a TPU" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("network", [TINY, pytest.param(VGG16, marks=pytest.mark.torture)])
def test_two_processes_end_as_one_does(network, tmp_path):
    finish(start(network, tmp_path / "one", 4))
    (out, _), silent = finish(*start_two(network, tmp_path / "two"))
    assert "Accuracy of the model on the test images" in out
    assert "Step" not in silent[0]  # where Gloo reports a connection
    assert silent[1] == ""
    assert_close(tmp_path / "two", tmp_path / "one")
    expected, records = (RunDirectory(tmp_path / name).read_metrics() for name in ("one", "two"))
    assert [r["step"] for r in records] == [r["step"] for r in expected]
    losses = [[r["loss"] for r in each] for each in (records, expected)]
    np.testing.assert_allclose(*losses, rtol=1e-5, atol=0)


def test_stopped_and_killed_runs_resume(tmp_path):
    run, undisturbed = tmp_path / "run", tmp_path / "undisturbed"
    finish(start(TINY, undisturbed, 4))

    # A signal to one process stops both after the same step.
    first, second = start_two(TINY, run, "--checkpoint-every 4")
    wait_for(first, "Step [3/")
    second.send_signal(signal.SIGTERM)
    _, error = first.communicate(timeout=60)
    second.communicate(timeout=60)
    assert (first.returncode, second.returncode) == (143, 143)
    assert f" --workdir {run} --resume --coordinator localhost:" in error

    # A process that is killed ends the other.
    first, second = start_two(TINY, run, "--resume --checkpoint-every 4")
    wait_for(first, "Step [6/")
    second.kill()
    assert_ends(first)
    second.communicate()

    # One process with one device takes over.
    finish(start(TINY, run, 1, "--resume"))
    assert_close(run, undisturbed)


def test_the_end_of_the_first_process_ends_the_others(tmp_path):
    first, second = start_two(TINY, tmp_path)
    wait_for(first, "Step [3/")
    first.kill()
    assert_ends(second)
    first.communicate()
