"""Losses and gradients that are not finite: counted, skipped, or the end of the run."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcifar import Examples, UserError, train_and_evaluate
from jaxcifar.core import state, steps
from jaxcifar.files.run import RunDirectory
from tests.conftest import assert_same, run_config
from tests.tiny import Small

step = jax.jit(steps.train_step, static_argnames=("augment", "skip_nonfinite"))


@pytest.fixture(scope="module")
def start():
    return state.create_state(jax.random.key(0), Small(), optax.adam(1e-3))


@pytest.fixture
def batch(rng):
    images = rng.integers(0, 256, (8, 32, 32, 3), np.uint8)
    return Examples(jnp.asarray(images), jnp.arange(8, dtype=jnp.int32))


def replace_leaf(start, module, name, function):
    """The state with one parameter changed."""
    params = jax.tree.map(jnp.array, start.params)
    params[module][name] = function(params[module][name])
    return start.replace(params=params)


def test_a_nonfinite_loss_is_counted_and_its_step_can_be_skipped(start, batch):
    bad = replace_leaf(start, "conv", "kernel", lambda kernel: kernel.at[0, 0, 0, 0].set(jnp.nan))
    _, metrics = step(bad, batch, jax.random.key(1))
    assert metrics.nonfinite == 1
    assert not np.isfinite(metrics.loss_sum)

    after, metrics = step(bad, batch, jax.random.key(1), skip_nonfinite=True)
    assert after.step == bad.step + 1
    assert_same(after.replace(step=bad.step), bad)
    assert (metrics.nonfinite, metrics.count, metrics.loss_sum) == (1, 0, 0)
    assert np.isnan(metrics.means()).all()


def test_a_step_whose_gradients_alone_are_nonfinite_is_skipped(start, batch):
    """The logits stay finite, the gradient of the batch norm before them overflows."""
    huge = replace_leaf(start, "norm", "scale", lambda scale: scale * 1e-4)
    huge = replace_leaf(huge, "linear", "kernel", lambda kernel: kernel.at[:, 0].set(3e38))
    _, metrics = step(huge, batch, jax.random.key(1))
    assert metrics.nonfinite == 0
    assert np.isfinite(metrics.loss_sum)
    after, metrics = step(huge, batch, jax.random.key(1), skip_nonfinite=True)
    assert metrics.nonfinite == 1
    assert_same(after.params, huge.params)


@pytest.mark.usefixtures("few_digits", "small_network")
def test_a_run_stops_at_the_step_and_resumes_from_before_it(tmp_path, capsys):
    path = tmp_path / "run"
    rate = 1e38  # the first update makes weights of which the second loss is not finite
    with pytest.raises(UserError) as end:
        train_and_evaluate(run_config(path, learning_rate=rate, checkpoint_every=1))
    assert "the loss is not finite at step 2 of 5, learning rate 1e+38" in str(end.value)
    assert "continue from the checkpoint of step 1 with: " in str(end.value)
    command = f"-m jaxcifar train --workdir {path} --resume --on-nonfinite skip"
    assert str(end.value).endswith(command)

    options = {"learning_rate": rate, "checkpoint_every": 1, "resume": True}
    # Such weights are finite, and their logits on the test images are not.
    with pytest.raises(UserError, match="not finite for 20 of 20 images"):
        train_and_evaluate(run_config(path, **options, on_nonfinite="skip"))
    assert "(4 updates skipped)" in capsys.readouterr().out
    assert RunDirectory(path).read_metrics()[-1]["skipped"] == 4

    with pytest.raises(UserError, match="there is no checkpoint yet; start again with a lower"):
        train_and_evaluate(run_config(tmp_path / "other", learning_rate=rate))
