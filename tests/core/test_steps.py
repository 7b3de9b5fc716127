"""The pure step and the order of the images."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcifar import data
from jaxcifar.core import steps
from jaxcifar.core.models import create_model
from jaxcifar.core.state import create_state, epoch_order, make_optimizer, make_schedule
from jaxcifar.layers import BatchNorm, Conv, Dropout, Flatten, Linear, Sequential
from tests.conftest import assert_same

KEY, ORDER_KEY = jax.random.key(1), jax.random.key(2)


def digits(count):
    return jax.tree.map(lambda array: jnp.asarray(array[:count]), data.load("digits").train)


@pytest.fixture(scope="module")
def initial():
    layers = partial(Conv, 8, 1, 4), BatchNorm, Flatten, partial(Dropout, 0.5), partial(Linear, 10)
    # The rate is small, so that rounding cannot grow.
    return create_state(jax.random.key(0), Sequential(layers), make_optimizer(1e-5))


@pytest.mark.parametrize("warmup", [0, 5])
def test_the_rate_is_a_staircase_that_a_warmup_rises_to(warmup):
    schedule = make_schedule(1e-3, decay_rate=0.5, decay_steps=4, warmup_steps=warmup)
    steps = np.arange(20)
    expected = 1e-3 * 0.5 ** (steps // 4) * np.minimum(1, (steps + 1) / max(warmup, 1))
    np.testing.assert_allclose(jax.vmap(schedule)(steps), expected, rtol=1e-6)


def test_epoch_order_is_a_permutation_of_key_and_epoch():
    draw = partial(epoch_order, examples=103, batch_size=10)
    order = draw(ORDER_KEY, 0)
    assert order.shape == (10, 10)
    assert len(set(order.ravel().tolist()) & set(range(103))) == 100
    np.testing.assert_array_equal(order, draw(ORDER_KEY, 0))
    assert not np.array_equal(order, draw(ORDER_KEY, 1))
    assert not np.array_equal(order, draw(KEY, 0))


def train(initial, examples, *, count=1):
    state, totals = jax.tree.map(jnp.copy, initial), steps.Metrics.zeros()
    for epoch in range(2):
        order = epoch_order(ORDER_KEY, epoch, examples=24, batch_size=8)
        for _ in range(0, 3, count):
            old, old_totals = state, totals
            state, totals = steps.train_steps_at(
                state, totals, examples, order, KEY, augment="crop-flip", count=count
            )
            assert all(leaf.is_deleted() for leaf in jax.tree.leaves(old.params))
            assert not old_totals.loss_sum.is_deleted()
    assert int(state.step) == 6
    assert int(totals.count) == 6 * 8
    return state.params, state.batch_stats, totals


def test_steps_are_pure_and_traced_once(initial, monkeypatch):
    traces = []

    def traced(*args, augment, real=steps.train_step, **options):
        traces.append(augment)
        return real(*args, augment=augment, **options)

    monkeypatch.setattr(steps, "train_step", traced)
    examples = digits(24)
    assert_same(train(initial, examples), train(initial, examples))
    assert traces == ["crop-flip"]


def test_a_scan_of_steps_is_the_same_steps(initial):
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: jnp.float64(x) if x.dtype == "float32" else x, initial)
        ends = [train(wide, digits(24), count=count) for count in (1, 3)]
    for ours, theirs in zip(*map(jax.tree.leaves, ends), strict=True):
        assert np.abs(ours - theirs).max() <= 1e-9 * np.abs(theirs).max()  # as against torch


@pytest.mark.parametrize(
    ("image_shape", "image_dtype", "label_shape", "label_dtype", "message"),
    [
        ((4, 32, 32, 3), "f4", (4,), "i4", r"expected uint8 .*, got float32 \(4, 32, 32, 3\) and"),
        ((4, 3, 32, 32), "u1", (4,), "i4", r"\(N, H, W, 3\), .*, got uint8 \(4, 3, 32, 32\)"),
        ((4, 32, 32, 3), "u1", (3,), "i4", r"got uint8 \(4, 32, 32, 3\) and int32 \(3,\)"),
        ((4, 32, 32, 3), "u1", (4,), "f4", r"and int32 \(N,\), got .* and float32 \(4,\)"),
    ],
)
def test_a_batch_of_other_arrays_is_refused_when_traced(
    image_shape, image_dtype, label_shape, label_dtype, message, initial
):
    batch = steps.Examples(jnp.zeros(image_shape, image_dtype), jnp.zeros(label_shape, label_dtype))
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(steps.train_step, initial, batch, KEY)


def test_dropout_differs_by_step(initial):
    step, batch = jax.jit(steps.train_step), digits(8)
    losses = [step(initial.replace(step=jnp.int32(i)), batch, KEY)[1].loss_sum for i in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]


def test_equal_settings_share_their_compiled_programs():
    # jit finds a program by the state's structure, which holds the model and optimizer.
    def structure(rate=1e-3, classes=10):
        model = create_model("vgg16", num_classes=classes)
        optimizer = make_optimizer(make_schedule(rate, decay_rate=0.5, decay_steps=2))
        create = partial(create_state, model=model, optimizer=optimizer)
        return jax.tree.structure(jax.eval_shape(create, KEY))

    assert structure() == structure()
    assert structure() not in (structure(rate=1e-4), structure(classes=7))
