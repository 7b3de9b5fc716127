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
OPTIONS = ["--model", "vgg16", "--dataset", "digits", "--batch-size", "96"]
OPTIONS += ["--learning-rate", "1e-6", "--log-every", "1"]


def start(folder, devices, *more):
    return subprocess.Popen(
        [sys.executable, "-m", "jaxcifar.train", "--workdir", str(folder), *OPTIONS, *more],
        env={**os.environ, "JAX_NUM_CPU_DEVICES": str(devices)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def start_two(folder, *more):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    processes = []
    for process_id in range(2):
        where = ["--coordinator", f"localhost:{port}", "--num-processes", "2"]
        where += ["--process-id", str(process_id)]
        processes.append(start(folder, 2, *where, *more))
    return processes


def finish(*processes):
    """What each printed: a list of (stdout, stderr). None may have failed."""
    outputs = [process.communicate(timeout=400) for process in processes]
    for process, (_, error) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, error
    return outputs


def wait_for_step(process, step):
    for line in process.stdout:
        if f"Step [{step}/14]" in line:
            return
    raise AssertionError(process.stderr.read())


def assert_close(folder, reference):
    """The parameters as one vector, over their length."""
    ours, theirs = (
        np.concatenate(
            [np.ravel(p) for p in jax.tree.leaves(weights.load(path).variables["params"])]
        )
        for path in (folder, reference)
    )
    assert np.linalg.norm(ours - theirs) <= 1e-5 * np.linalg.norm(theirs)


def assert_ends(process):
    """Within a minute, with our line, or JAX's where it waited for the dead one in a save."""
    _, error = process.communicate(timeout=60)
    if process.returncode == 2:
        assert "another process of the run has ended" in error
        assert "Traceback" not in error
    else:
        assert process.returncode == -signal.SIGABRT
        assert "another task died" in error


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    """The folder of a run in one process with four devices."""
    folder = tmp_path_factory.mktemp("one")
    finish(start(folder, 4))
    return folder


def test_two_processes_end_as_one_does(one_process, tmp_path):
    (out, _), (silent_out, silent_err) = finish(*start_two(tmp_path))
    assert "Accuracy of the model on the test images" in out
    assert silent_out == ""
    assert silent_err == ""
    assert_close(tmp_path, one_process)
    ours, theirs = (RunDirectory(path).read_metrics() for path in (tmp_path, one_process))
    assert [r["step"] for r in ours] == [r["step"] for r in theirs]
    np.testing.assert_allclose(
        [r["loss"] for r in ours], [r["loss"] for r in theirs], rtol=1e-5, atol=0
    )


def test_stopped_and_killed_runs_go_on(one_process, tmp_path):
    # A signal to one process stops both after the same step.
    often = ["--checkpoint-every", "4"]
    first, second = start_two(tmp_path, *often)
    wait_for_step(first, 3)
    second.send_signal(signal.SIGTERM)
    _, error = first.communicate(timeout=60)
    second.communicate(timeout=60)
    assert (first.returncode, second.returncode) == (143, 143)
    assert "continue with: jaxcifar train --workdir" in error

    # A process that is killed ends the other.
    first, second = start_two(tmp_path, "--resume", *often)
    wait_for_step(first, 6)
    second.kill()
    assert_ends(first)
    second.communicate()

    # One process with one device takes over.
    finish(start(tmp_path, 1, "--resume"))
    assert_close(tmp_path, one_process)


def test_the_first_process_gone_ends_the_others(tmp_path):
    first, second = start_two(tmp_path)
    wait_for_step(first, 3)
    first.kill()
    assert_ends(second)
    first.communicate()
