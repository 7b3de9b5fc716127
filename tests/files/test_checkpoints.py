"""Checkpoints that are damaged, cut off or cannot be written, and folders that are taken."""

import contextlib
import dataclasses
import json
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcifar.config import TrainConfig
from jaxcifar.core import sharding
from jaxcifar.core.state import TrainState
from jaxcifar.core.steps import Metrics
from jaxcifar.errors import UserError
from jaxcifar.files import checkpoints as checkpoint
from jaxcifar.files import run as workdir
from jaxcifar.files import weights

CONFIG = TrainConfig(dataset="digits")


def state_at(step):
    """A small state whose every value tells the step."""
    params = {"kernel": jnp.full((64, 64), step, jnp.float32)}
    state = TrainState.create(
        apply_fn=nn.Module.apply, params=params, batch_stats={}, tx=optax.adam(1e-3)
    )
    mesh = sharding.make_mesh()
    return sharding.put(state.replace(step=jnp.int32(step)), sharding.replicated(mesh))


def totals():
    return sharding.put(Metrics.zeros(), sharding.replicated(sharding.make_mesh()))


def save(folder, *steps):
    with checkpoint.open_checkpoints(folder, keep=5) as checkpoints:
        for step in steps:
            checkpoint.save(checkpoints, state_at(step), totals(), CONFIG)


def restore(folder):
    with checkpoint.open_checkpoints(folder, keep=5) as checkpoints:
        return checkpoint.restore(checkpoints, state_at(0), totals())[0]


def largest(folder):
    """The file that holds the values."""
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def truncate(folder):
    path = largest(folder)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(folder):
    path = largest(folder)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def remove_a_file(folder):
    largest(folder).unlink()


def empty_the_metadata(folder):
    (folder / "_CHECKPOINT_METADATA").write_text("{}")


DAMAGES = [truncate, flip_a_bit, remove_a_file, empty_the_metadata]


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_one_before_a_damaged_checkpoint_is_used(damage, tmp_path, capfd):
    save(tmp_path, 1, 2, 3)
    damage(tmp_path / "checkpoints" / "3")
    state = restore(tmp_path)
    assert state.step == 2
    np.testing.assert_array_equal(state.params["kernel"], 2)
    error = capfd.readouterr().err
    assert f"{tmp_path}/checkpoints/3 is damaged" in error
    assert "resuming from step 2" in error
    assert "Traceback" not in error
    assert (tmp_path / "damaged-3").is_dir()
    save(tmp_path, 3)  # the run gets there again
    assert restore(tmp_path).step == 3


def test_none_left_is_an_error_that_names_all(tmp_path, capfd):
    save(tmp_path, 1, 2)
    truncate(tmp_path / "checkpoints" / "1")
    flip_a_bit(tmp_path / "checkpoints" / "2")
    with pytest.raises(UserError, match=r"no checkpoint in .* can be read \(2: .*; 1: .*\)"):
        restore(tmp_path)
    assert {p.name for p in (tmp_path / "checkpoints").iterdir()} == {"1", "2"}  # nothing is lost


def test_weights_of_a_damaged_checkpoint_are_refused(tmp_path, capfd):
    save(tmp_path, 1)
    path = tmp_path / "checkpoints" / "1" / "_CHECKPOINT_METADATA"
    metadata = json.loads(path.read_text())
    metadata["custom_metadata"][checkpoint.DIGEST] = "0" * 64
    path.write_text(json.dumps(metadata))
    with pytest.raises(UserError, match="its values are not those that were saved"):
        weights.load(tmp_path)


def test_a_save_is_not_disturbed_by_the_next_step(tmp_path):
    """What is saved are copies: the state's memory is donated while they are written."""
    import jax

    @jax.jit
    def plain(state):
        return state.replace(
            step=state.step + 1, params=jax.tree.map(lambda p: p + 1, state.params)
        )

    step = jax.jit(plain.__wrapped__, donate_argnums=0)
    state = state_at(1)
    with checkpoint.open_checkpoints(tmp_path, keep=50) as checkpoints:
        for _ in range(10):
            checkpoint.save(checkpoints, state, totals(), CONFIG)
            state = step(state)
        checkpoint.finish(checkpoints)
        for found in checkpoints.checkpoints:
            tree = checkpoint._load(checkpoints, found.step, checkpoint._tree(state, totals()))
            np.testing.assert_array_equal(tree["params"]["kernel"], found.step)
    assert found.step == 10


def test_two_runs_do_not_share_a_folder(tmp_path):
    with workdir.locked(tmp_path):
        with pytest.raises(UserError, match="another run writes to"), workdir.locked(tmp_path):
            pass
        code = "from jaxcifar import workdir; from pathlib import Path\n"
        code += f"with workdir.locked(Path({str(tmp_path)!r})): pass"
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert "another run writes to" in other.stderr
    with workdir.locked(tmp_path):
        pass


def test_the_folder_of_another_run_is_left_alone(tmp_path):
    save(tmp_path, 1)
    started = TrainConfig(dataset="digits", workdir=str(tmp_path))
    workdir.write_config(tmp_path, started)
    with pytest.raises(UserError, match="holds a run already: continue it with --resume"):
        workdir.choose(started)
    for change in ({"model": "resnet50_layer4"}, {"dataset": "cifar10"}):
        other = dataclasses.replace(started, resume=True, **change)
        with pytest.raises(UserError, match=r"is not what .* was started with"):
            workdir.choose(other)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MB, where the user may mount one."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    yield tmp_path
    subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def test_a_folder_that_cannot_be_written_to(small_disk):
    save(small_disk, 1)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    folders = [small_disk, small_disk / "new"]
    (small_disk.parent / "file").write_text("")
    folders += [small_disk.parent / "file", Path("/proc/run")]
    for folder in folders:
        with (
            pytest.raises(UserError, match=r"cannot be written to \(.*\): choose another"),
            workdir.locked(folder),
        ):
            pass
    assert (small_disk / "checkpoints" / "1").is_dir()


def test_a_clock_that_jumps_back(tmp_path, monkeypatch):
    """Which checkpoint is the last is decided by the step, not by the time."""
    for step in range(1, 5):
        with monkeypatch.context() as patch:
            seconds = 2_000_000_000 - 100_000_000 * step
            patch.setattr(time, "time", partial(float, seconds))
            patch.setattr(time, "time_ns", partial(int, seconds * 10**9))
            with checkpoint.open_checkpoints(tmp_path, keep=2) as checkpoints:
                checkpoint.save(checkpoints, state_at(step), totals(), CONFIG)
    assert {p.name for p in (tmp_path / "checkpoints").iterdir()} == {"3", "4"}
    assert restore(tmp_path).step == 4


# The threads of Orbax that fail leave futures behind that nobody asks.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_full_disk_loses_no_checkpoint(small_disk, capfd):
    save(small_disk, 1)
    left = small_disk / "left"
    with left.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1000))
    with pytest.raises(UserError, match=r"could not be written.* those before it are whole"):
        save(small_disk, 2)
    left.unlink()
    assert restore(small_disk).step == 1
    save(small_disk, 2)
    assert restore(small_disk).step == 2
