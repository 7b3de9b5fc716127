"""Two processes with two devices each do what one process does: ``make test-distributed``."""

import shutil
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
# Two epochs of the small network, so that signals reach it on its way.
SMALL = (conftest.SMALL, f"{OPTIONS} --epochs 2 --checkpoint-every 4 --no-report")


def start(network, path, devices, options=""):
    model, fixed = network
    return processes.start(path, f"{fixed} {options}", model, JAX_NUM_CPU_DEVICES=str(devices))


def start_two(network, path, options=""):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        options += f" --coordinator localhost:{free.getsockname()[1]} --num-processes 2"
    return [start(network, path, 2, f"{options} --process-id {index}") for index in range(2)]


def finish_two(*arguments):
    (out, _), silent = finish(*start_two(*arguments))
    assert "Accuracy of the model on the test images" in out
    assert "Step" not in silent[0]  # where Gloo reports a connection
    assert silent[1] == ""


def assert_same_run(path, reference):
    """The parameters, as one vector, are within 1e-5 of their length; so is each loss."""
    one, two = map(RunDirectory, (reference, path))
    expected, found = (
        ocp.load(run.checkpoints_dir.absolute() / str(run.last_step())) for run in (one, two)
    )
    assert found["step"] == expected["step"]
    difference = jax.tree.map(np.subtract, found["params"], expected["params"])
    assert optax.tree.norm(difference) <= 1e-5 * optax.tree.norm(expected["params"])
    expected, found = one.read_metrics(), two.read_metrics()
    assert [r["step"] for r in found] == [r["step"] for r in expected]
    losses = [[r["loss"] for r in each] for each in (found, expected)]
    np.testing.assert_allclose(*losses, rtol=1e-5, atol=0)


def assert_ends(process):
    """Within a minute, with our line, or with JAX's if it waited for the dead one in a save."""
    _, error = process.communicate(timeout=60)
    if process.returncode == 2:
        assert "another process of the run has ended" in error
        assert "Traceback" not in error
    else:
        assert process.returncode == -signal.SIGABRT
        assert "another task died" in error


def test_stopped_and_killed_runs_resume(tmp_path):
    run, killed, undisturbed = tmp_path / "run", tmp_path / "killed", tmp_path / "undisturbed"
    finish(start(SMALL, undisturbed, 4))

    # A signal to one process stops both after the same step.
    first, second = start_two(SMALL, run)
    wait_for(first, "Step [3/")
    second.send_signal(signal.SIGTERM)
    _, error = first.communicate(timeout=60)
    second.communicate(timeout=60)
    assert (first.returncode, second.returncode) == (143, 143)
    assert f" --workdir {run} --resume --coordinator localhost:" in error
    shutil.copytree(run, killed)
    finish_two(SMALL, run, "--resume")
    assert_same_run(run, undisturbed)

    # A process that is killed ends the other, be it the first or the second.
    for index in (0, 1):
        both = start_two(SMALL, killed, "--resume")
        wait_for(both[0], "Step [")
        both[index].kill()
        assert_ends(both[1 - index])
        both[index].communicate()

    # One process with one device takes over.
    finish(start(SMALL, killed, 1, "--resume"))
    assert_same_run(killed, undisturbed)


@pytest.mark.torture
def test_two_processes_train_vgg16_as_one_does(tmp_path):
    network = "vgg16", OPTIONS
    finish(start(network, tmp_path / "one", 4))
    finish_two(network, tmp_path / "two")
    assert_same_run(tmp_path / "two", tmp_path / "one")
