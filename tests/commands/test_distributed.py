"""Two processes with two devices each do what one process does: ``make test-distributed``."""

import os
import signal
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from jaxcifar.files import weights
from jaxcifar.files.run import RunDirectory

pytestmark = pytest.mark.slow

# At a larger rate, or with biases before batch norms, float32 runs part: see docs/scaling.md.
OPTIONS = "--model vgg16 --dataset digits --batch-size 96 --learning-rate 1e-6 --log-every 1"


def start(path, devices, options=""):
    return subprocess.Popen(
        [sys.executable, *f"-m jaxcifar.train --workdir {path} {OPTIONS} {options}".split()],
        env={**os.environ, "JAX_NUM_CPU_DEVICES": str(devices)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def start_two(path, options=""):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        options += f" --coordinator localhost:{free.getsockname()[1]} --num-processes 2"
    return [start(path, 2, f"{options} --process-id {index}") for index in range(2)]


def finish(*processes):
    """Return what each printed, a list of (stdout, stderr); none may have failed."""
    outputs = [process.communicate(timeout=400) for process in processes]
    for process, (_, error) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, error
    return outputs


def wait_for_step(process, step):
    for line in process.stdout:
        if f"Step [{step}/14]" in line:
            return
    raise AssertionError(process.stderr.read())


def assert_close(path, reference):
    """The parameters, as one vector, are within 1e-5 of their length."""
    first, second = (
        np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(loaded.variables["params"])])
        for loaded in map(weights.load, (path, reference))
    )
    assert np.linalg.norm(first - second) <= 1e-5 * np.linalg.norm(second)


def assert_ends(process):
    """Within a minute, with our line, or with JAX's if it waited for the dead one in a save."""
    _, error = process.communicate(timeout=60)
    if process.returncode == 2:
        assert "another process of the run has ended" in error
        assert "Traceback" not in error
    else:
        assert process.returncode == -signal.SIGABRT
        assert "another task died" in error


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    """A run in one process with four devices."""
    path = tmp_path_factory.mktemp("one")
    finish(start(path, 4))
    return path


def test_two_processes_end_as_one_does(one_process, tmp_path):
    (out, _), silent = finish(*start_two(tmp_path))
    assert "Accuracy of the model on the test images" in out
    assert silent == ("", "")
    assert_close(tmp_path, one_process)
    records, expected = (RunDirectory(path).read_metrics() for path in (tmp_path, one_process))
    assert [r["step"] for r in records] == [r["step"] for r in expected]
    losses = [[r["loss"] for r in each] for each in (records, expected)]
    np.testing.assert_allclose(*losses, rtol=1e-5, atol=0)


def test_stopped_and_killed_runs_resume(one_process, tmp_path):
    # A signal to one process stops both after the same step.
    first, second = start_two(tmp_path, "--checkpoint-every 4")
    wait_for_step(first, 3)
    second.send_signal(signal.SIGTERM)
    _, error = first.communicate(timeout=60)
    second.communicate(timeout=60)
    assert (first.returncode, second.returncode) == (143, 143)
    assert "continue with: jaxcifar train --workdir" in error

    # A process that is killed ends the other.
    first, second = start_two(tmp_path, "--resume --checkpoint-every 4")
    wait_for_step(first, 6)
    second.kill()
    assert_ends(first)
    second.communicate()

    # One process with one device takes over.
    finish(start(tmp_path, 1, "--resume"))
    assert_close(tmp_path, one_process)


def test_the_end_of_the_first_process_ends_the_others(tmp_path):
    first, second = start_two(tmp_path)
    wait_for_step(first, 3)
    first.kill()
    assert_ends(second)
    first.communicate()
