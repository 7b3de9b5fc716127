"""VGG16 for 32x32 images (Simonyan and Zisserman, 2014), as the original program builds it."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import variance_scaling, zeros

from jaxcifar.core.activations import ReLU
from jaxcifar.core.layers import Conv, Dropout, Layer, Linear, Sequential
from jaxcifar.core.norms import BatchNorm
from jaxcifar.core.pooling import MaxPool

POOL = 0
CONFIGURATION = (64, 64, POOL, 128, 128, POOL, 256, 256, 256, POOL, *(512, 512, 512, POOL) * 2)
KERNEL_INIT = variance_scaling(2.0, "fan_out", "normal")  # N(0, sqrt(2 / (kh kw out)))


class VGG16(nn.Module):
    """VGG16 whose two-layer head has a batch norm; ``batch_norm`` adds one to each convolution."""

    num_classes: int = 10
    dropout_rate: float = 0.5
    batch_norm: bool = False
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        conv = partial(Conv, kernel_size=3, padding=1, kernel_init=KERNEL_INIT, bias_init=zeros)
        pool, after = partial(MaxPool, 2, 2), [BatchNorm, ReLU] if self.batch_norm else [ReLU]
        features: list[Layer] = []
        for channels in CONFIGURATION:
            features += [pool] if channels == POOL else [partial(conv, channels), *after]
        dropout, logits = partial(Dropout, self.dropout_rate), partial(Linear, self.num_classes)
        classifier = (dropout, partial(Linear, 512), BatchNorm, ReLU, dropout, logits)
        x = Sequential(features, name="features")(images.astype(self.dtype), train=train)
        x = x.reshape(x.shape[0], -1)  # 1x1 pixels, so NHWC and torch's NCHW have the same order
        return Sequential(classifier, name="classifier")(x, train=train)
