"""Checkpoints that are damaged, cut off or cannot be written, and folders that are taken."""

import contextlib
import json
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcifar import checkpoint, sharding, weights, workdir
from jaxcifar.config import TrainConfig
from jaxcifar.errors import UserError
from jaxcifar.state import TrainState
from jaxcifar.steps import Metrics

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


@pytest.fixture
def small_disk():
    """A file system of 1 MB, where the user may mount one."""
    folder = Path("/dev/shm/jaxcifar-small")
    folder.mkdir(exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


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
