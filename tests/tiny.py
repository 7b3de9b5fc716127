"""A tiny network for whole runs, ``--model tests.tiny:Tiny``."""

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
        x = nn.Dropout(0.5)(x.reshape(len(x), -1), deterministic=not train)
        return Linear(self.num_classes)(x, train=train)
