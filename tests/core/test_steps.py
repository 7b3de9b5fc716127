"""The pure step, the schedule, the optimizer and the order of the images."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxcifar import data
from jaxcifar.core import steps
from jaxcifar.core.inference import forward
from jaxcifar.core.models import create_model
from jaxcifar.core.state import create_state, epoch_order, make_optimizer, make_schedule
from tests.tiny import Tiny

KEY, ORDER_KEY = jax.random.key(1), jax.random.key(2)


@pytest.fixture(scope="module")
def digits():
    return data.load("digits").train


def take(examples, count):
    return jax.tree.map(lambda array: jnp.asarray(array[:count]), examples)


def start(model, learning_rate=1e-3):
    return create_state(jax.random.key(0), model, make_optimizer(learning_rate))


@settings(deadline=None, max_examples=20)
@given(rate=st.floats(0.05, 1), every=st.integers(1, 50), at=st.integers(0, 500))
def test_schedule_is_a_staircase(rate, every, at):
    schedule = jax.jit(make_schedule(1e-3, decay_rate=rate, decay_steps=every))
    expected = np.float32(1e-3 * rate ** (at // every))
    assert np.isclose(schedule(at), expected, rtol=1e-4, atol=1e-30)


def test_optimizer_is_torchs_adam(rng):
    param = rng.standard_normal(5)
    optimizer = make_optimizer(make_schedule(0.1, decay_rate=0.5, decay_steps=2))
    with jax.enable_x64(True):
        ours, opt_state = jnp.asarray(param), optimizer.init(jnp.asarray(param))
        mu = nu = np.zeros(5)
        for t, grad in enumerate(rng.standard_normal((4, 5)), 1):
            updates, opt_state = optimizer.update(jnp.asarray(grad), opt_state)
            ours = optax.apply_updates(ours, updates)
            mu, nu = 0.9 * mu + 0.1 * grad, 0.999 * nu + 0.001 * grad**2
            step = (0.1 if t <= 2 else 0.05) / (1 - 0.9**t)
            param = param - step * mu / (np.sqrt(nu) / np.sqrt(1 - 0.999**t) + 1e-8)
            np.testing.assert_allclose(ours, param, rtol=1e-7)


def test_epoch_order_is_a_permutation_of_key_and_epoch():
    draw = partial(epoch_order, examples=103, batch_size=10)
    order = draw(ORDER_KEY, 0)
    assert order.shape == (10, 10)
    assert len(np.unique(order)) == 100
    assert 0 <= order.min() <= order.max() <= 102
    np.testing.assert_array_equal(order, draw(ORDER_KEY, 0))
    assert not np.array_equal(order, draw(ORDER_KEY, 1))
    assert not np.array_equal(order, draw(KEY, 0))


def test_step_is_pure_traced_once_and_donates(digits, monkeypatch):
    traces = []
    real = steps.train_step
    monkeypatch.setattr(steps, "train_step", lambda *a, **k: traces.append(1) or real(*a, **k))
    examples, initial = take(digits, 48), start(create_model("resnet50_layer4"))

    def run():
        state, totals = jax.tree.map(jnp.copy, initial), steps.Metrics.zeros()
        for epoch in range(2):
            order = epoch_order(ORDER_KEY, epoch, examples=48, batch_size=16)
            for _ in range(3):
                old = state
                state, totals = steps.train_steps_at(
                    state, totals, examples, order, KEY, augment="crop-flip"
                )
                assert all(leaf.is_deleted() for leaf in jax.tree.leaves(old.params))
                assert not totals.loss_sum.is_deleted()
        return state, totals

    (first, totals), (second, _) = run(), run()
    assert len(traces) == 1
    assert int(first.step) == 6
    assert int(totals.count) == 6 * 16
    jax.tree.map(np.testing.assert_array_equal, first.params, second.params)
    jax.tree.map(np.testing.assert_array_equal, first.batch_stats, second.batch_stats)


@pytest.mark.slow
def test_a_scan_of_steps_is_the_same_steps(digits):
    """In float64 and with a small rate, where rounding cannot grow."""
    with jax.enable_x64(True):
        model = create_model("resnet50_layer4", dtype="float64")
        order = epoch_order(ORDER_KEY, 0, examples=24, batch_size=8)
        ends = []
        for count in (1, 3):
            state, totals = start(model, 1e-5), steps.Metrics.zeros()
            for _ in range(3 // count):
                state, totals = steps.train_steps_at(
                    *(state, totals, take(digits, 24), order, KEY), augment="crop-flip", count=count
                )
            ends.append((state.params, state.batch_stats, totals))
    for ours, theirs in zip(*map(jax.tree.leaves, ends), strict=True):
        assert np.abs(ours - theirs).max() <= 1e-9 * np.abs(theirs).max()  # as against torch
    assert int(ends[0][2].count) == 24


@pytest.mark.parametrize("augmentation", ["none", "crop", "crop-flip"])
def test_the_augmentation_is_the_one_asked_for(augmentation, monkeypatch):
    seen = []
    monkeypatch.setattr(steps, "augment_images", lambda key, x, each: seen.append(each) or x)
    examples = steps.Examples(jnp.zeros((4, 32, 32, 3), jnp.uint8), jnp.zeros(4, jnp.int32))
    run = partial(steps.train_steps_at.__wrapped__, augment=augmentation)
    arguments = steps.Metrics.zeros(), examples, jnp.zeros((2, 2), jnp.int32), KEY
    jax.eval_shape(lambda: run(start(Tiny()), *arguments))
    assert seen == [augmentation]


def test_dropout_differs_by_step_and_is_off_in_evaluation(digits):
    state, batch = start(create_model("vgg16", dropout_rate=0.5), 0.0), take(digits, 8)
    step = jax.jit(steps.train_step)
    losses = [step(state.replace(step=state.step + i), batch, KEY)[1].loss_sum for i in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]
    np.testing.assert_array_equal(*(forward(state, batch.images) for _ in range(2)))


def test_equal_settings_share_their_compiled_programs():
    """jit finds a program by the state's structure, which holds the model and optimizer."""

    def structure(rate, classes):
        model = create_model("resnet50_layer4", num_classes=classes)
        optimizer = make_optimizer(make_schedule(rate, decay_rate=0.5, decay_steps=2))
        create = partial(create_state, model=model, optimizer=optimizer)
        return jax.tree.structure(jax.eval_shape(create, KEY))

    assert structure(1e-3, 10) == structure(1e-3, 10)
    assert structure(1e-3, 10) != structure(1e-4, 10)
    assert structure(1e-3, 10) != structure(1e-3, 7)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "updates"), [("vgg16", 80), ("resnet50_layer4", 25)])
def test_one_batch_is_overfitted(digits, name, updates):
    state, batch = start(create_model(name, dropout_rate=0.0)), take(digits, 20)
    step = jax.jit(steps.train_step, donate_argnums=0)
    means = []
    for _ in range(updates):
        state, metrics = step(state, batch, jax.random.key(0))
        means.append(metrics.means())
    assert means[0][0] > 1.5
    assert means[-1][0] < 0.02
    assert means[-1][1] == 1.0
