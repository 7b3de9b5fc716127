"""ResNet50 (He et al., 2015) cut after layer 4, as the original program builds it.

Unlike the paper's, every convolution has a bias, batch norm **and ReLU**, also the shortcut and
the last of a block; no ReLU follows the addition; and each block that does not downsample applies
``make_equal_channel``.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcifar.core.activations import ReLU
from jaxcifar.core.layers import Conv, Layer, Linear, Sequential
from jaxcifar.core.norms import BatchNorm
from jaxcifar.core.pooling import MaxPool

xavier_uniform = nn.initializers.xavier_uniform()  # of all kernels
LAYERS = {  # (mid, out, downsample) of each block
    "layer2": ((64, 256, False), (64, 256, False), (64, 256, True)),
    "layer3": ((128, 512, False), (128, 512, False), (128, 512, False), (128, 512, True)),
    "layer4": ((256, 1024, False),) * 6,
}


def _unit(features: int, size: int, *after: Layer, stride: int = 1, padding: int = 0) -> Layer:
    conv = partial(Conv, features, size, stride, padding, kernel_init=xavier_uniform)
    return partial(Sequential, (conv, BatchNorm, ReLU, *after))


class Block(nn.Module):
    """A bottleneck: 1x1 to ``mid`` channels, 3x3, 1x1 to ``out``, plus the shortcut."""

    mid: int
    out: int
    downsample: bool

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        stride = 2 if self.downsample else 1  # on the first 1x1, not on the 3x3
        shortcut = "downsize" if self.downsample else "make_equal_channel"
        layers = (
            _unit(self.mid, 1, stride=stride),
            _unit(self.mid, 3, padding=1),
            _unit(self.out, 1),
        )
        y = Sequential(layers, name="layer")(x, train=train)
        return y + _unit(self.out, 1, stride=stride)(name=shortcut)(x, train=train)


class ResNet50Layer4(nn.Module):
    """A 7x7 stem, thirteen bottlenecks, a 2x2 mean and one linear layer."""

    num_classes: int = 10
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        stem = _unit(64, 7, partial(MaxPool, 3, 2, padding=1), stride=2, padding=3)
        x = stem(name="layer1")(images.astype(self.dtype), train=train)
        for name, blocks in LAYERS.items():
            x = Sequential([partial(Block, *block) for block in blocks], name=name)(x, train=train)
        x = jnp.mean(x, axis=(1, 2))
        return Linear(self.num_classes, kernel_init=xavier_uniform, name="fc")(x, train=train)
