"""Checkpoints that are corrupt, cut off or cannot be written."""

import re
import shutil
import threading
import time
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcifar import TrainState, UserError
from jaxcifar.core import sharding
from jaxcifar.core.steps import Metrics
from jaxcifar.files import checkpoints
from jaxcifar.files.checkpoints import DIGEST, Checkpoints
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


def replace_digest(path):
    path /= "_CHECKPOINT_METADATA"
    path.write_text(re.sub(f'("{DIGEST}": *)"[0-9a-f]+"', r'\1"0"', path.read_text()))


DAMAGE = {
    "digest": replace_digest,
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


def test_the_last_checkpoint_is_that_of_the_step_and_not_of_the_clock(tmp_path, monkeypatch):
    for step in range(1, 5):
        with monkeypatch.context() as patch:
            seconds = 2_000_000_000 - 100_000_000 * step
            patch.setattr(time, "time", partial(float, seconds))
            patch.setattr(time, "time_ns", partial(int, seconds * 10**9))
            save(tmp_path, step, keep=2)
    assert kept(tmp_path) == {3, 4}
    assert restore(tmp_path).step == 4
