"""Networks of torchvision in Flax, with torch's names, so that their checkpoints port as they are.

To convert one and compare every layer:
``jaxcifar port resnet18.pth out --model examples/torchvision_models.py:ResNet18
--against torchvision.models:resnet18 --input 3x224x224``. ResNet18 takes timm's checkpoints, too.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcifar.layers import (
    AdaptiveAvgPool,
    AvgPool,
    BatchNorm,
    Conv,
    Dropout,
    Flatten,
    Linear,
    MaxPool,
    ReLU,
    ReLU6,
    Sequential,
)

conv = partial(Conv, use_bias=False)


class Network(nn.Module):
    """What the networks have in common: classes, and a dtype for the activations."""

    num_classes: int = 1000
    dtype: Any = jnp.float32


class BasicBlock(nn.Module):
    """ResNet18's: two 3x3 convolutions."""

    width: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        y = conv(self.width, 3, self.stride, 1, name="conv1")(x, train=train)
        y = nn.relu(BatchNorm(name="bn1")(y, train=train))
        y = conv(self.width, 3, 1, 1, name="conv2")(y, train=train)
        y = BatchNorm(name="bn2")(y, train=train)
        return nn.relu(y + shortcut(x, self.width, self.stride)(x, train=train))


class Bottleneck(nn.Module):
    """ResNet50's, with the stride on the 3x3 convolution."""

    width: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        y = conv(self.width, 1, name="conv1")(x, train=train)
        y = nn.relu(BatchNorm(name="bn1")(y, train=train))
        y = conv(self.width, 3, self.stride, 1, name="conv2")(y, train=train)
        y = nn.relu(BatchNorm(name="bn2")(y, train=train))
        y = conv(4 * self.width, 1, name="conv3")(y, train=train)
        y = BatchNorm(name="bn3")(y, train=train)
        return nn.relu(y + shortcut(x, 4 * self.width, self.stride)(x, train=train))


def shortcut(x: jax.Array, features: int, stride: int) -> Any:
    """Return the layer beside a block; one without weights where the shapes agree."""
    if stride == 1 and x.shape[-1] == features:
        return lambda x, train: x
    return Sequential((partial(conv, features, 1, stride), BatchNorm), name="downsample")


class ResNet(Network):
    """He et al., "Deep residual learning for image recognition", 2015."""

    block: Any = BasicBlock
    counts: tuple[int, ...] = (2, 2, 2, 2)

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = conv(64, 7, 2, 3, name="conv1")(x.astype(self.dtype), train=train)
        x = nn.relu(BatchNorm(name="bn1")(x, train=train))
        x = MaxPool(3, 2, 1)(x, train=train)
        for index, count in enumerate(self.counts):
            width, strides = 64 * 2**index, [1 if index == 0 else 2, *[1] * (count - 1)]
            blocks = [partial(self.block, width, stride) for stride in strides]
            x = Sequential(blocks, name=f"layer{index + 1}")(x, train=train)
        return Linear(self.num_classes, name="fc")(x.mean((1, 2)), train=train)


ResNet18 = ResNet
ResNet50 = partial(ResNet, block=Bottleneck, counts=(3, 4, 6, 3))


class VGG11_bn(Network):  # noqa: N801 - torchvision's name
    """Simonyan and Zisserman, 2014, with batch norm; the head takes 7x7 pixels."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        layers: list[Any] = []
        for widths in ((64,), (128,), (256, 256), (512, 512), (512, 512)):
            for width in widths:
                layers += [partial(Conv, width, 3, 1, 1), BatchNorm, ReLU]
            layers.append(partial(MaxPool, 2))
        x = Sequential(layers, name="features")(x.astype(self.dtype), train=train)
        x = AdaptiveAvgPool(7)(x, train=train)
        dense, dropout = partial(Linear, 4096), partial(Dropout, 0.5)
        head = (dense, ReLU, dropout, dense, ReLU, dropout, partial(Linear, self.num_classes))
        return Sequential(head, name="classifier")(Flatten()(x, train=train), train=train)


INVERTED_RESIDUALS = (  # expansion, features, repeats, stride
    *((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2)),
    *((6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)),
)


def unit(features: int, size: int = 1, stride: int = 1, groups: int = 1) -> Any:
    """Return torchvision's Conv2dNormActivation: convolution, batch norm, ReLU6."""
    convolution = partial(conv, features, size, stride, size // 2, groups=groups)
    return partial(Sequential, (convolution, BatchNorm, ReLU6))


class InvertedResidual(nn.Module):
    """Expand with 1x1, convolve each channel, project with 1x1; a shortcut where shapes agree."""

    expansion: int
    features: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        hidden = self.expansion * x.shape[-1]
        layers = [unit(hidden)] if self.expansion > 1 else []
        layers += [unit(hidden, 3, self.stride, groups=hidden)]
        layers += [partial(conv, self.features, 1), BatchNorm]
        y = Sequential(layers, name="conv")(x, train=train)
        return x + y if x.shape == y.shape else y


class MobileNetV2(Network):
    """Sandler et al., 2018."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        layers: list[Any] = [unit(32, 3, 2)]
        for expansion, features, repeats, stride in INVERTED_RESIDUALS:
            for step in (stride, *[1] * (repeats - 1)):
                layers.append(partial(InvertedResidual, expansion, features, step))
        layers.append(unit(1280))
        x = Sequential(layers, name="features")(x.astype(self.dtype), train=train)
        head = (partial(Dropout, 0.2), partial(Linear, self.num_classes))
        return Sequential(head, name="classifier")(x.mean((1, 2)), train=train)


class DenseLayer(nn.Module):
    """Compute 32 channels from all before them."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        y = nn.relu(BatchNorm(name="norm1")(x, train=train))
        y = conv(128, 1, name="conv1")(y, train=train)
        y = nn.relu(BatchNorm(name="norm2")(y, train=train))
        return conv(32, 3, 1, 1, name="conv2")(y, train=train)


class DenseBlock(nn.Module):
    """Append the channels of each layer to those before it."""

    count: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        for index in range(self.count):
            y = DenseLayer(name=f"denselayer{index + 1}")(x, train=train)
            x = jnp.concatenate([x, y], axis=-1)
        return x


class Named(nn.Module):
    """Apply layers in order, each by its name."""

    layers: tuple[tuple[str, Any], ...]

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        for name, layer in self.layers:
            x = layer(name=name)(x, train=train)
        return x


class DenseNet121(Network):
    """Huang et al., 2016."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        layers: list[tuple[str, Any]] = [("conv0", partial(conv, 64, 7, 2, 3))]
        layers += [("norm0", BatchNorm), ("relu0", ReLU), ("pool0", partial(MaxPool, 3, 2, 1))]
        channels = 64
        for block, count in enumerate((6, 12, 24, 16), start=1):
            layers.append((f"denseblock{block}", partial(DenseBlock, count)))
            channels = (channels + 32 * count) // 2
            steps = (("norm", BatchNorm), ("relu", ReLU), ("conv", partial(conv, channels, 1)))
            transition = partial(Named, (*steps, ("pool", partial(AvgPool, 2))))
            layers.append((f"transition{block}", transition))
        layers[-1] = ("norm5", BatchNorm)
        x = Named(tuple(layers), name="features")(x.astype(self.dtype), train=train)
        return Linear(self.num_classes, name="classifier")(nn.relu(x).mean((1, 2)), train=train)
