"""Checkpoints that are corrupt, cut off or cannot be written."""

import contextlib
import json
import shutil
import subprocess
import threading
import time
from functools import partial
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcifar import TrainState, UserError
from jaxcifar.core import sharding
from jaxcifar.core.steps import Metrics
from jaxcifar.files import checkpoints, weights
from jaxcifar.files.checkpoints import DIGEST, Checkpoints
from jaxcifar.files.run import RunDirectory
from tests.data.cifar_files import flip_a_bit, truncate


def on_devices(tree):
    return sharding.put(tree, sharding.replicated(sharding.make_mesh()))


def state_at(step):
    """A small state whose every value tells the step."""
    params = {"kernel": jnp.full((64, 64), step, jnp.float32)}
    state = TrainState.create(
        apply_fn=nn.Module.apply, params=params, batch_stats={}, tx=optax.adam(1e-3)
    )
    return on_devices(state.replace(step=jnp.int32(step)))


def totals():
    return on_devices(Metrics.zeros())


def save(path, *steps, keep=5, metadata=None, accuracies=None):
    with Checkpoints(path / "checkpoints", metadata or {}, keep=keep) as writer:
        for step in steps:
            accuracy = (accuracies or {}).get(step)
            writer.save(state_at(step), totals(), accuracy)


def restore(path):
    return checkpoints.restore(path / "checkpoints", state_at(0), totals())[0]


def kept(path):
    return {int(child.name) for child in (path / "checkpoints").iterdir()}


def largest(path):
    """The file that holds the values."""
    return max((p for p in path.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


DAMAGE = {
    "truncated": lambda path: truncate(largest(path)),
    "flipped bit": lambda path: flip_a_bit(largest(path)),
    "missing file": lambda path: largest(path).unlink(),
    "empty metadata": lambda path: (path / "_CHECKPOINT_METADATA").write_text("{}"),
    "deep metadata": lambda path: (path / "_CHECKPOINT_METADATA").write_text("[" * 100_000),
    "device": lambda path: (
        largest(path).unlink(),
        (path / "state/d").rename(path / "d"),
        (path / "state/d").symlink_to("/dev/zero"),
    ),
}
each_damage = pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)


@each_damage
def test_training_resumes_from_before_a_corrupt_checkpoint(damage, tmp_path, caplog):
    save(tmp_path, 1, 2, 3)
    damage(tmp_path / "checkpoints" / "3")
    state = restore(tmp_path)
    assert state.step == 2
    np.testing.assert_array_equal(state.params["kernel"], 2)
    assert f"{tmp_path}/checkpoints/3 is corrupt" in caplog.text
    assert "resuming from step 2" in caplog.text
    assert (tmp_path / "damaged-3").is_dir()
    save(tmp_path, 3)  # the run gets there again
    assert restore(tmp_path).step == 3


def test_without_an_intact_checkpoint_the_error_names_all(tmp_path):
    save(tmp_path, 1, 2)
    DAMAGE["truncated"](tmp_path / "checkpoints" / "1")
    DAMAGE["flipped bit"](tmp_path / "checkpoints" / "2")
    with pytest.raises(UserError, match=r"no checkpoint in .* can be read \(2: .*; 1: .*\)"):
        restore(tmp_path)
    assert kept(tmp_path) == {1, 2}  # nothing is lost


def test_weights_of_a_corrupt_checkpoint_are_refused(tmp_path):
    save(tmp_path, 1, metadata={"model": "vgg16", "class_names": ["a", "b"]})
    path = tmp_path / "checkpoints" / "1" / "_CHECKPOINT_METADATA"
    metadata = json.loads(path.read_text())
    metadata["custom_metadata"][DIGEST] = "0" * 64
    path.write_text(json.dumps(metadata))
    with pytest.raises(UserError, match="values do not have the digest"):
        weights.load(tmp_path)


def test_the_best_checkpoint_outlives_the_last_ones(tmp_path):
    save(tmp_path, 1, 2, 3, 4, 5, keep=2, accuracies={1: 0.2, 2: 0.9, 3: 0.5, 5: 0.1})
    assert kept(tmp_path) == {2, 4, 5}


def test_a_save_is_not_disturbed_by_the_next_step(tmp_path):
    """What is saved are copies: the state's memory is donated while they are written."""

    def next_state(state):
        params = jax.tree.map(lambda p: p + 1, state.params)
        return state.replace(step=state.step + 1, params=params)

    step = jax.jit(next_state, donate_argnums=0)
    state = state_at(1)
    threads = threading.active_count()
    with Checkpoints(tmp_path / "checkpoints", {}, keep=50) as writer:
        for _ in range(10):
            writer.save(state, totals())
            state = step(state)
        writer.finish()
        assert threading.active_count() < threads + 10  # a save leaves no thread behind
    for number in range(10, 0, -1):
        np.testing.assert_array_equal(restore(tmp_path).params["kernel"], number)
        shutil.rmtree(tmp_path / "checkpoints" / str(number))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MB, where the user may mount one."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    yield tmp_path
    subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def test_a_directory_that_cannot_be_written_to_is_reported(small_disk):
    save(small_disk, 1)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    file = small_disk.parent / "file"
    file.write_text("")
    for path in (small_disk, small_disk / "new", file, Path("/proc/run")):
        run = RunDirectory(path)
        with pytest.raises(UserError, match=r"cannot be written to \(.*\): free"), run.locked():
            pass
    assert kept(small_disk) == {1}


def test_the_last_checkpoint_is_that_of_the_step_and_not_of_the_clock(tmp_path, monkeypatch):
    for step in range(1, 5):
        with monkeypatch.context() as patch:
            seconds = 2_000_000_000 - 100_000_000 * step
            patch.setattr(time, "time", partial(float, seconds))
            patch.setattr(time, "time_ns", partial(int, seconds * 10**9))
            save(tmp_path, step, keep=2)
    assert kept(tmp_path) == {3, 4}
    assert restore(tmp_path).step == 4


# The threads of Orbax that fail leave futures behind that nobody asks.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_full_disk_loses_no_checkpoint(small_disk):
    save(small_disk, 1)
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1000))
    with pytest.raises(UserError, match=r"cannot be written to.* checkpoints are intact; free"):
        save(small_disk, 2)
    filler.unlink()
    assert restore(small_disk).step == 1
    save(small_disk, 2)
    assert restore(small_disk).step == 2
