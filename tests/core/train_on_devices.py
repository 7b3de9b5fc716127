"""Twenty steps on 1, 2, 4 and 8 virtual devices: prints how far they are apart, as JSON.

JAX_NUM_CPU_DEVICES=8 python tests/train_on_devices.py tiny float32 1e-6
"""

import json
import sys

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import AxisType

from jaxcifar.core import sharding, state, steps
from jaxcifar.core.layers import BatchNorm, Conv, Linear, MaxPool, ReLU
from jaxcifar.core.models import create_model
from jaxcifar.data import Examples

STEPS, BATCH = 20, 16


class Tiny(nn.Module):
    """A layer for each algorithm of the convolution path, with batch norm and dropout."""

    dtype: str = "float32"

    @nn.compact
    def __call__(self, images, *, train):
        x = images.astype(self.dtype)
        for index, (features, kernel_size) in enumerate([(16, 3), (16, 3), (24, 1), (24, 3)]):
            conv = Conv(features, kernel_size, padding=kernel_size // 2, name=f"conv{index}")
            x = BatchNorm(name=f"norm{index}")(conv(x, train=train), train=train)
            x = MaxPool(2, 2)(ReLU()(x, train=train), train=train)
        x = nn.Dropout(0.5)(x.reshape(len(x), -1), deterministic=not train)
        return Linear(10)(x, train=train)


def train(model, optimizer, devices):
    """The losses and the parameters after the last step, as numpy arrays."""
    mesh = jax.make_mesh(
        (devices,), (sharding.AXIS,), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices]
    )
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (4 * BATCH, 32, 32, 3), np.uint8)
    examples = Examples(images, rng.integers(0, 10, len(images)).astype(np.int32))
    everywhere = sharding.replicated(mesh)
    train_state = state.create_state(jax.random.key(0), model, optimizer)
    train_state, examples, zeros = sharding.put(
        (train_state, examples, steps.Metrics.zeros()), everywhere
    )
    key = jax.device_put(jax.random.key(2), everywhere)
    order = np.arange(len(images), dtype=np.int32).reshape(-1, BATCH)
    order = sharding.put(order, sharding.split(mesh, axis=1))
    losses = []
    for _ in range(STEPS):
        train_state, totals = steps.train_steps_at(
            train_state, zeros, examples, order, key, augment=True
        )
        losses.append(float(totals.loss_sum))
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(train_state))
    return np.array(losses), jax.tree.map(np.asarray, train_state.params)


def apart(ours, theirs):
    """The length of the difference over that of the values, both as one vector."""

    def vector(tree):
        return np.concatenate([np.ravel(leaf).astype(np.float64) for leaf in jax.tree.leaves(tree)])

    return float(np.linalg.norm(vector(ours) - vector(theirs)) / np.linalg.norm(vector(theirs)))


def main():
    name, dtype, learning_rate = sys.argv[1:4]
    jax.config.update("jax_enable_x64", dtype == "float64")
    model = Tiny(dtype=dtype) if name == "tiny" else create_model(name, dtype=dtype)
    optimizer = state.make_optimizer(float(learning_rate))
    losses, params = train(model, optimizer, 1)
    found = {}
    for devices in (2, 4, 8):
        other_losses, other_params = train(model, optimizer, devices)
        found[devices] = {
            "losses": apart(other_losses, losses),
            "params": apart(other_params, params),
        }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
