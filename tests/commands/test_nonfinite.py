"""Losses and gradients that are not finite: counted, skipped, or the end of the run."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcifar.config import TrainConfig
from jaxcifar.core import state, steps
from jaxcifar.data import Examples
from jaxcifar.errors import UserError
from jaxcifar.files import weights
from jaxcifar.files.metrics import read_metrics
from jaxcifar.train import train_and_evaluate
from tests.core.train_on_devices import Tiny


@pytest.fixture(scope="module")
def start():
    return state.create_state(jax.random.key(0), Tiny(), optax.adam(1e-3))


@pytest.fixture(scope="module")
def step():
    return jax.jit(steps.train_step, static_argnames=("augment", "skip_nonfinite"))


def batch():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (8, 32, 32, 3), np.uint8)
    return Examples(jnp.asarray(images), jnp.arange(8, dtype=jnp.int32))


def spoilt(start):
    params = jax.tree.map(jnp.array, start.params)
    params["conv3"]["kernel"] = params["conv3"]["kernel"].at[0, 0, 0, 0].set(jnp.nan)
    return start.replace(params=params)


def test_a_finite_step_is_the_same_with_and_without_skipping(start, step):
    key = jax.random.key(1)
    plain = step(start, batch(), key)
    skipping = step(start, batch(), key, skip_nonfinite=True)
    assert plain[1].nonfinite == skipping[1].nonfinite == 0
    for ours, theirs in zip(jax.tree.leaves(plain), jax.tree.leaves(skipping), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7)


def test_a_loss_that_is_not_finite_is_counted(start, step):
    _, metrics = step(spoilt(start), batch(), jax.random.key(1))
    assert metrics.nonfinite == 1
    assert not np.isfinite(metrics.loss_sum)


def test_a_skipped_step_changes_nothing_but_the_count(start, step):
    bad = spoilt(start)
    after, metrics = step(bad, batch(), jax.random.key(1), skip_nonfinite=True)
    assert after.step == bad.step + 1
    jax.tree.map(np.testing.assert_array_equal, after.replace(step=bad.step), bad)
    assert (metrics.nonfinite, metrics.count, metrics.loss_sum) == (1, 0, 0)
    assert np.isnan(metrics.means()).all()


def test_gradients_alone_that_are_not_finite_are_skipped(start, step):
    """The logits stay finite, the gradient of the kernel before them overflows."""
    params = jax.tree.map(jnp.array, start.params)
    params["norm3"]["scale"] = params["norm3"]["scale"] * 1e38
    params["Linear_0"]["kernel"] = params["Linear_0"]["kernel"] * 0
    huge = start.replace(params=params)
    grads = jax.grad(steps.loss_fn, has_aux=True)(
        huge.params,
        huge,
        batch().images.astype(jnp.float32),
        batch().labels,
        jax.random.key(0),
    )[0]
    assert not steps.all_finite(grads)
    after, metrics = step(huge, batch(), jax.random.key(1), skip_nonfinite=True)
    assert metrics.nonfinite == 1
    jax.tree.map(np.testing.assert_array_equal, after.params, huge.params)


def run(workdir, **changes):
    options = {
        "model": "resnet50_layer4",
        "dataset": "digits",
        "batch_size": 8,
        "report": False,
        "log_every": 2,
    }
    return TrainConfig(workdir=str(workdir), **{**options, **changes})


@pytest.mark.slow
@pytest.mark.usefixtures("few_digits")
def test_a_run_stops_at_the_step_and_resumes_from_before_it(tmp_path, capsys):
    folder = tmp_path / "run"
    rate = 1e38  # the first update makes weights of which the second loss is not finite
    with pytest.raises(UserError) as end:
        train_and_evaluate(run(folder, learning_rate=rate, checkpoint_every=1))
    assert "the loss is not finite at step 2 of 5, learning rate 1e+38" in str(end.value)
    resume = f"from the checkpoint of step 1 with: python -m jaxcifar.train --workdir {folder}"
    assert f"{resume} --resume --on-nonfinite skip" in str(end.value)

    options = {"learning_rate": rate, "checkpoint_every": 1, "resume": True}
    # Such weights are finite, and what they say of the test images is not.
    with pytest.raises(UserError, match="outputs are not finite on 20 of 20 images"):
        train_and_evaluate(run(folder, **options, on_nonfinite="skip"))
    assert "(4 updates skipped)" in capsys.readouterr().out
    assert read_metrics(folder / "metrics.jsonl")[-1]["skipped"] == 4
    assert steps.all_finite(jax.tree.map(jnp.asarray, weights.load(folder).variables["params"]))

    with pytest.raises(UserError, match="there is no checkpoint yet; start again with a lower"):
        train_and_evaluate(run(tmp_path / "other", learning_rate=rate))
