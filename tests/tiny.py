"""Tiny networks for whole runs, ``--model tests.tiny:Small``."""

import flax.linen as nn

from jaxcifar.layers import BatchNorm, Conv, Linear, MaxPool, ReLU


class Tiny(nn.Module):
    """A layer for each algorithm of the convolution path, batch norm and dropout."""

    num_classes: int = 10
    dtype: str = "float32"

    @nn.compact
    def __call__(self, images, *, train):
        x = images.astype(self.dtype)
        for index, (features, kernel_size) in enumerate([(16, 3), (16, 3), (24, 1), (24, 3)]):
            conv = Conv(features, kernel_size, padding=kernel_size // 2, name=f"conv{index}")
            x = BatchNorm(name=f"norm{index}")(conv(x, train=train), train=train)
            x = MaxPool(2, 2)(ReLU()(x, train=train), train=train)
        x = nn.Dropout(0.5)(x.reshape(x.shape[0], -1), deterministic=not train)
        return Linear(self.num_classes)(x, train=train)


class Small(nn.Module):
    """Batch norm and dropout, thus all that a training state can hold, and little to compile."""

    num_classes: int = 10
    dtype: str = "float32"

    @nn.compact
    def __call__(self, images, *, train):
        x = MaxPool(4, 4)(images.astype(self.dtype), train=train)
        x = BatchNorm(name="norm")(Conv(8, 1, name="conv")(x, train=train), train=train)
        x = nn.Dropout(0.5)(x.reshape(x.shape[0], -1), deterministic=not train)
        return Linear(self.num_classes, name="linear")(x, train=train)
