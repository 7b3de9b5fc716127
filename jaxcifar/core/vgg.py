"""VGG16 for 32x32 images (Simonyan and Zisserman, 2014), as the original program builds it."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcifar.core.layers import (
    BatchNorm,
    Conv,
    Dropout,
    Layer,
    Linear,
    MaxPool,
    ReLU,
    Sequential,
)

POOL = 0
CONFIGURATION = (64, 64, POOL, 128, 128, POOL, 256, 256, 256, POOL, *(512, 512, 512, POOL) * 2)


class VGG16(nn.Module):
    """Thirteen 3x3 convolutions, five pools and a two-layer head with dropout.

    The features have no batch norm unless ``batch_norm``; the head always has one.
    Conv kernels start at N(0, sqrt(2 / (kh kw out))), their biases at 0.

    Attributes:
      num_classes: length of the logits.
      dropout_rate: probability of zeroing, before both linear layers.
      batch_norm: normalise after each convolution (``vgg16_bn``).
      dtype: what is computed in; parameters are float32 or wider.
    """

    num_classes: int = 10
    dropout_rate: float = 0.5
    batch_norm: bool = False
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Maps normalised images ``(N, 32, 32, 3)`` to logits ``(N, num_classes)``."""
        x = images.astype(self.dtype)
        x = Sequential(_features(self.batch_norm), name="features")(x, train=train)
        x = x.reshape(x.shape[0], -1)  # 1x1 pixels: the same order in NHWC and torch's NCHW
        classifier = (
            partial(Dropout, self.dropout_rate),
            partial(Linear, 512),
            BatchNorm,
            ReLU,
            partial(Dropout, self.dropout_rate),
            partial(Linear, self.num_classes),
        )
        return Sequential(classifier, name="classifier")(x, train=train)


def _features(batch_norm: bool) -> tuple[Layer, ...]:
    conv = partial(
        Conv,
        kernel_size=3,
        padding=1,
        kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
        bias_init=nn.initializers.zeros,
    )
    layers: list[Layer] = []
    for features in CONFIGURATION:
        if features == POOL:
            layers.append(partial(MaxPool, 2, 2))
        else:
            layers.append(partial(conv, features))
            layers += [BatchNorm, ReLU] if batch_norm else [ReLU]
    return tuple(layers)
