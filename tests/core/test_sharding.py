"""Several devices compute what one does."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxcifar.core import inference, sharding, state, steps
from tests.tiny import Tiny

STEPS, BATCH = 20, 16


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "learning_rate", "bound", "devices"),
    [
        # Adam divides by |g| + 1e-8: in float32 the rounding of a gradient that is zero, as of a
        # bias before a batch norm, becomes a step as long as the learning rate. A ReLU or maximum
        # that rounding decides otherwise also changes gradients.
        ("float32", "1e-6", "1e-5", "8"),
        ("float64", "1e-3", "1e-10", "2 4 8"),
    ],
)
def test_devices_agree(dtype, learning_rate, bound, devices):
    subprocess.run(
        [sys.executable, "-m", __name__, dtype, learning_rate, bound, *devices.split()],
        env={**os.environ, "JAX_NUM_CPU_DEVICES": "8"},
        cwd=Path(__file__).parents[2],
        check=True,
    )


def train(model, optimizer, devices):
    """Return logits before training, losses and the last parameters, each as one vector."""
    mesh = jax.sharding.Mesh(jax.devices()[:devices], (sharding.AXIS,))
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (4 * BATCH, 32, 32, 3), np.uint8)
    examples = steps.Examples(images, rng.integers(0, 10, len(images)).astype(np.int32))
    tree = state.create_state(jax.random.key(0), model, optimizer), examples, steps.Metrics.zeros()
    train_state, examples, zeros = sharding.put(tree, sharding.replicated(mesh))
    logits = inference.logits(train_state, images[:50], batch_size=7, mesh=mesh)
    assert logits.shape == (50, 10)
    key = jax.device_put(jax.random.key(2), sharding.replicated(mesh))
    order = np.arange(len(images), dtype=np.int32).reshape(-1, BATCH)
    order = sharding.put(order, sharding.split(mesh, axis=1))
    losses = []
    for _ in range(STEPS):
        train_state, totals = steps.train_steps_at(
            train_state, zeros, examples, order, key, augment="crop-flip"
        )
        losses.append(float(totals.loss_sum))
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(train_state))
    params = [np.ravel(leaf) for leaf in jax.tree.leaves(train_state.params)]
    return {"logits": logits.ravel(), "losses": np.array(losses), "params": np.concatenate(params)}


def main(dtype, learning_rate, bound, *devices):
    jax.config.update("jax_enable_x64", dtype == "float64")
    optimizer = state.make_optimizer(float(learning_rate))
    one, *others = (train(Tiny(dtype=dtype), optimizer, int(n)) for n in (1, *devices))
    for other, (name, vector) in itertools.product(others, one.items()):
        difference = np.linalg.norm(other[name] - vector) / np.linalg.norm(vector)
        assert difference <= float(bound), (name, difference)


if __name__ == "__main__":
    main(*sys.argv[1:])
