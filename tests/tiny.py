"""A tiny network for whole runs: a layer for each algorithm of the convolution path.

``python -m tests.tiny`` is the command ``jaxcifar`` in which it replaces every network.
"""

import functools
from typing import Any

import flax.linen as nn

from jaxcifar import cli
from jaxcifar.core.layers import BatchNorm, Conv, Linear, MaxPool, ReLU
from jaxcifar.runtime import setup


class Tiny(nn.Module):
    """Four convolutions with batch norm, and dropout."""

    num_classes: int = 10
    dtype: str = "float32"

    @nn.compact
    def __call__(self, images, *, train):
        x = images.astype(self.dtype)
        for index, (features, kernel_size) in enumerate([(16, 3), (16, 3), (24, 1), (24, 3)]):
            conv = Conv(features, kernel_size, padding=kernel_size // 2, name=f"conv{index}")
            x = BatchNorm(name=f"norm{index}")(conv(x, train=train), train=train)
            x = MaxPool(2, 2)(ReLU()(x, train=train), train=train)
        x = nn.Dropout(0.5)(x.reshape(len(x), -1), deterministic=not train)
        return Linear(self.num_classes)(x, train=train)


@functools.cache  # as jaxcifar's own
def create_model(name: str, *, num_classes: int, dtype: str, **options: Any) -> Tiny:
    """Take the place of ``setup.create_model``."""
    return Tiny(num_classes, dtype)


if __name__ == "__main__":
    setup.create_model = create_model
    cli.main()
