"""Compares twenty steps and a forward pass on 2, 4 and 8 virtual devices with one; prints JSON.

JAX_NUM_CPU_DEVICES=8 python -m tests.core.train_on_devices float32 1e-6
"""

import json
import sys

import jax
import numpy as np
from jax.sharding import AxisType

from jaxcifar.core import inference, sharding, state, steps
from tests.tiny import Tiny

STEPS, BATCH = 20, 16


def train(model, optimizer, devices):
    """Return logits before training, losses and the last parameters, each as one vector."""
    mesh = jax.make_mesh(
        (devices,), (sharding.AXIS,), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices]
    )
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (4 * BATCH, 32, 32, 3), np.uint8)
    examples = steps.Examples(images, rng.integers(0, 10, len(images)).astype(np.int32))
    tree = state.create_state(jax.random.key(0), model, optimizer), examples, steps.Metrics.zeros()
    replicated = sharding.replicated(mesh)
    train_state, examples, zeros = sharding.put(tree, replicated)
    logits = inference.logits(train_state, images[:50], batch_size=7, mesh=mesh)
    assert logits.shape == (50, 10)
    key = jax.device_put(jax.random.key(2), replicated)
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


def main():
    dtype, learning_rate = sys.argv[1:3]
    jax.config.update("jax_enable_x64", dtype == "float64")
    optimizer = state.make_optimizer(float(learning_rate))
    one, *others = (train(Tiny(dtype=dtype), optimizer, devices) for devices in (1, 2, 4, 8))
    norm = np.linalg.norm
    differences = [{k: norm(v[k] - one[k]) / norm(one[k]) for k in one} for v in others]
    print(json.dumps(differences, default=float))


if __name__ == "__main__":
    main()
