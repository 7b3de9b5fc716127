"""ResNet50 cut after layer 4 (after He et al., 2015), with the original program's own turns.

Every convolution has a bias, batch norm **and ReLU**, the last of a block and the
shortcut included; nothing follows the addition; and a block that does not downsample
always runs ``make_equal_channel``, also where the shapes agree already.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcifar.core.layers import BatchNorm, Conv, Layer, Linear, MaxPool, ReLU, Sequential

xavier_uniform = nn.initializers.xavier_uniform()

# (mid, out, downsample) of each block.
LAYERS = {
    "layer2": ((64, 256, False), (64, 256, False), (64, 256, True)),
    "layer3": ((128, 512, False), (128, 512, False), (128, 512, False), (128, 512, True)),
    "layer4": ((256, 1024, False),) * 6,
}


class Block(nn.Module):
    """A bottleneck: 1x1 to ``mid``, 3x3, 1x1 to ``out``, plus the shortcut.

    Attributes:
      mid: channels inside.
      out: channels of the result.
      downsample: halve height and width, by a stride of 2 on the first 1x1.
    """

    mid: int
    out: int
    downsample: bool

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        stride = 2 if self.downsample else 1
        shortcut = "downsize" if self.downsample else "make_equal_channel"
        layers = (
            _unit(self.mid, 1, stride=stride),
            _unit(self.mid, 3, padding=1),
            _unit(self.out, 1),
        )
        y = Sequential(layers, name="layer")(x, train=train)
        return y + _unit(self.out, 1, stride=stride)(name=shortcut)(x, train=train)


class ResNet50Layer4(nn.Module):
    """``ResNet50_layer4``: a 7x7 stem, eleven bottlenecks, a 2x2 mean and one linear layer.

    All conv and linear weights start xavier-uniform, biases at torch's default.

    Attributes:
      num_classes: length of the logits.
      dtype: what is computed in; parameters are float32 or wider.
    """

    num_classes: int = 10
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Maps normalised images ``(N, 32, 32, 3)`` to logits ``(N, num_classes)``."""
        x = images.astype(self.dtype)
        stem = (*_unit_layers(64, 7, stride=2, padding=3), partial(MaxPool, 3, 2, 1))
        x = Sequential(stem, name="layer1")(x, train=train)
        for name, blocks in LAYERS.items():
            x = Sequential([partial(Block, *block) for block in blocks], name=name)(x, train=train)
        x = jnp.mean(x, axis=(1, 2))
        return Linear(self.num_classes, kernel_init=xavier_uniform, name="fc")(x, train=train)


def _unit_layers(
    features: int, kernel_size: int, *, stride: int = 1, padding: int = 0
) -> tuple[Layer, ...]:
    conv = partial(Conv, features, kernel_size, stride, padding, kernel_init=xavier_uniform)
    return (conv, BatchNorm, ReLU)


def _unit(features: int, kernel_size: int, *, stride: int = 1, padding: int = 0) -> Layer:
    layers = _unit_layers(features, kernel_size, stride=stride, padding=padding)
    return partial(Sequential, layers)
