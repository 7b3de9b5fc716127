"""The networks of a stock Flax port: flax.linen's own layers and XLA's convolutions."""

from functools import partial

import flax.linen as nn
import jax.numpy as jnp

from jaxcifar.core.models import POOL, RESNET_BLOCKS, VGG16_FEATURES


class StockVGG16(nn.Module):
    """VGG16, as in ``jaxcifar.core.models``."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x, *, train):
        """Map images ``(N, 32, 32, 3)`` to logits ``(N, 10)``."""
        norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9, dtype=self.dtype)
        x = x.astype(self.dtype)
        for features in VGG16_FEATURES:
            if features == POOL:
                x = nn.max_pool(x, (2, 2), strides=(2, 2))
            else:
                x = nn.relu(nn.Conv(features, (3, 3), dtype=self.dtype)(x))
        x = x.reshape(len(x), -1)
        x = nn.Dropout(0.5, deterministic=not train)(x)
        x = nn.relu(norm()(nn.Dense(512, dtype=self.dtype)(x)))
        x = nn.Dropout(0.5, deterministic=not train)(x)
        return nn.Dense(10, dtype=self.dtype)(x)


class StockResNet(nn.Module):
    """ResNet50_layer4, as in ``jaxcifar.core.models``."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x, *, train):
        """Map images ``(N, 32, 32, 3)`` to logits ``(N, 10)``."""
        norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9, dtype=self.dtype)

        def unit(x, features, kernel, stride=1, padding=0):
            padding = ((padding, padding),) * 2
            conv = nn.Conv(features, (kernel,) * 2, stride, padding, dtype=self.dtype)
            return nn.relu(norm()(conv(x)))

        x = unit(x.astype(self.dtype), 64, 7, 2, 3)
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for blocks in RESNET_BLOCKS.values():
            for mid, out, stride in blocks:
                y = unit(x, mid, 1, stride)
                y = unit(unit(y, mid, 3, 1, 1), out, 1)
                x = y + unit(x, out, 1, stride)
        return nn.Dense(10, dtype=self.dtype)(jnp.mean(x, axis=(1, 2)))


STOCK_MODELS = {"vgg16": StockVGG16, "resnet50_layer4": StockResNet}
