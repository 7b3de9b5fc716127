"""The pure step, the schedule, the order of the images, and evaluation."""

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
from jaxcifar.core.models import create_model
from jaxcifar.core.state import create_state, epoch_order, make_optimizer, make_schedule
from jaxcifar.evaluate import evaluate


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


@pytest.fixture(scope="module")
def resnet_state():
    model = create_model("resnet50_layer4")
    return create_state(jax.random.key(0), model, make_optimizer(1e-3))


def copy(tree):
    return jax.tree.map(jnp.copy, tree)


@settings(deadline=None, max_examples=20)
@given(
    rate=st.floats(0.05, 1),
    every=st.integers(1, 50),
    at=st.integers(0, 500),
)
def test_schedule_is_a_staircase(rate, every, at):
    schedule = jax.jit(make_schedule(1e-3, decay_rate=rate, decay_steps=every))
    expected = np.float32(1e-3 * rate ** (at // every))
    assert np.isclose(schedule(at), expected, rtol=1e-4, atol=1e-30)


def test_optimizer_is_torchs_adam(rng):
    param = rng.standard_normal(5)
    grads = rng.standard_normal((4, 5))
    optimizer = make_optimizer(make_schedule(0.1, decay_rate=0.5, decay_steps=2))
    with jax.enable_x64(True):
        ours, opt_state = jnp.asarray(param), optimizer.init(jnp.asarray(param))
        mu = nu = np.zeros(5)
        for t, grad in enumerate(grads, 1):
            updates, opt_state = optimizer.update(jnp.asarray(grad), opt_state)
            ours = optax.apply_updates(ours, updates)
            mu, nu = 0.9 * mu + 0.1 * grad, 0.999 * nu + 0.001 * grad**2
            rate = 0.1 if t <= 2 else 0.05
            step = rate / (1 - 0.9**t)
            param = param - step * mu / (np.sqrt(nu) / np.sqrt(1 - 0.999**t) + 1e-8)
            np.testing.assert_allclose(ours, param, rtol=1e-7)


def test_epoch_order_is_a_permutation_of_key_and_epoch():
    key = jax.random.key(0)
    order = epoch_order(key, 0, examples=103, batch_size=10)
    assert order.shape == (10, 10)
    assert len(np.unique(order)) == 100
    assert 0 <= order.min() <= order.max() <= 102
    np.testing.assert_array_equal(order, epoch_order(key, 0, examples=103, batch_size=10))
    assert not np.array_equal(order, epoch_order(key, 1, examples=103, batch_size=10))
    other = jax.random.key(1)
    assert not np.array_equal(order, epoch_order(other, 0, examples=103, batch_size=10))


def test_step_is_pure_traced_once_and_donates(digits, resnet_state, monkeypatch):
    traces = []
    real = steps.train_step

    def counting(*args, **kwargs):
        traces.append(1)
        return real(*args, **kwargs)

    monkeypatch.setattr(steps, "train_step", counting)
    examples = jax.device_put(data.Examples(*(a[:48] for a in digits.train)))
    key, order_key = jax.random.split(jax.random.key(1))

    def run():
        state, totals = copy(resnet_state), steps.Metrics.zeros()
        for epoch in range(2):
            order = epoch_order(order_key, epoch, examples=48, batch_size=16)
            for _ in range(3):
                old, (state, totals) = (
                    state,
                    steps.train_steps_at(state, totals, examples, order, key, augment=True),
                )
                assert all(leaf.is_deleted() for leaf in jax.tree.leaves(old.params))
                assert not totals.loss_sum.is_deleted()
        return state, totals

    first, totals = run()
    second, _ = run()
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
        examples = jax.device_put(data.Examples(*(a[:24] for a in digits.train)))
        key, order_key = jax.random.split(jax.random.key(1))
        order = epoch_order(order_key, 0, examples=24, batch_size=8)
        ends = []
        for count in (1, 3):
            state = create_state(jax.random.key(0), model, make_optimizer(1e-5))
            totals = steps.Metrics.zeros()
            for _ in range(3 // count):
                state, totals = steps.train_steps_at(
                    state, totals, examples, order, key, augment=True, count=count
                )
            ends.append((state.params, state.batch_stats, totals))
    for ours, theirs in zip(*map(jax.tree.leaves, ends), strict=True):
        assert np.abs(ours - theirs).max() <= 1e-9 * np.abs(theirs).max()  # as against torch
    assert int(ends[0][2].count) == 24


@pytest.mark.parametrize("flip", [True, False])
def test_the_flip_is_the_one_asked_for(flip, monkeypatch):
    seen = []

    def augment_images(key, images, *, flip):
        seen.append(flip)
        return images

    monkeypatch.setattr(steps, "augment_images", augment_images)
    model = create_model("vgg16")
    state = jax.eval_shape(
        lambda key: create_state(key, model, make_optimizer(0.0)), jax.random.key(0)
    )
    examples = data.Examples(jnp.zeros((4, 32, 32, 3), jnp.uint8), jnp.zeros(4, jnp.int32))
    run = partial(steps.train_steps_at.__wrapped__, augment=True, flip=flip)
    order = jnp.zeros((2, 2), jnp.int32)
    jax.eval_shape(run, state, steps.Metrics.zeros(), examples, order, jax.random.key(1))
    assert seen == [flip]


def test_dropout_differs_by_step_and_is_off_in_evaluation(digits):
    model = create_model("vgg16", dropout_rate=0.5)
    state = create_state(jax.random.key(0), model, make_optimizer(0.0))
    batch = data.Examples(*(jnp.asarray(a[:8]) for a in digits.train))
    step = jax.jit(steps.train_step)
    _, first = step(state, batch, jax.random.key(5))
    _, again = step(state, batch, jax.random.key(5))
    _, later = step(state.replace(step=state.step + 1), batch, jax.random.key(5))
    assert first.loss_sum == again.loss_sum
    assert first.loss_sum != later.loss_sum
    mask = jnp.ones(8, bool)
    assert steps.eval_step(state, batch, mask) == steps.eval_step(state, batch, mask)


def test_equal_settings_share_their_compiled_programs():
    """A program is found again by the state's structure, which holds the model and optimizer."""

    def structure(rate, classes):
        model = create_model("resnet50_layer4", num_classes=classes)
        optimizer = make_optimizer(make_schedule(rate, decay_rate=0.5, decay_steps=2))
        create = partial(create_state, model=model, optimizer=optimizer)
        return jax.tree.structure(jax.eval_shape(create, jax.random.key(0)))

    assert structure(1e-3, 10) == structure(1e-3, 10)
    assert structure(1e-3, 10) != structure(1e-4, 10)
    assert structure(1e-3, 10) != structure(1e-3, 7)


@pytest.mark.parametrize("batch_size", [7, 50, 64])
def test_evaluation_covers_every_image_once(digits, resnet_state, batch_size):
    examples = jax.device_put(data.Examples(*(a[:50] for a in digits.test)))
    programs = steps.eval_step_at._cache_size()
    metrics = evaluate(resnet_state, examples, batch_size=batch_size)
    assert steps.eval_step_at._cache_size() <= programs + 1
    logits = resnet_state.apply_fn(
        {"params": resnet_state.params, "batch_stats": resnet_state.batch_stats},
        steps.normalize(examples.images),
        train=False,
    )
    logits = np.asarray(logits, np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(50), examples.labels]
    assert int(metrics.count) == 50
    assert int(metrics.correct) == np.sum(logits.argmax(1) == np.asarray(examples.labels))
    np.testing.assert_allclose(metrics.loss_sum, losses.sum(), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "updates"), [("vgg16", 80), ("resnet50_layer4", 25)])
def test_one_batch_is_overfitted(digits, name, updates):
    model = create_model(name, dropout_rate=0.0)
    state = create_state(jax.random.key(0), model, make_optimizer(1e-3))
    batch = data.Examples(*(jnp.asarray(a[:20]) for a in digits.train))
    step = jax.jit(steps.train_step, donate_argnums=0)
    losses = []
    for _ in range(updates):
        state, metrics = step(state, batch, jax.random.key(0))
        losses.append(metrics.means()[0])
    assert losses[0] > 1.5
    assert losses[-1] < 0.02
    assert metrics.means()[1] == 1.0
