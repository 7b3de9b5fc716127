"""timm's ``mobilenetv2_100`` in Flax, with timm's names; its ResNets have torchvision's."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcifar.layers import BatchNorm, Conv, Linear, Sequential

STAGES = (  # expansion, features, repeats, stride
    *((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2)),
    *((6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)),
)
conv = partial(Conv, use_bias=False)


class BatchNormAct(BatchNorm):
    """timm's ``BatchNormAct2d``: a batch norm and the activation after it."""

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        return nn.relu6(super().__call__(x, train=train))


class Block(nn.Module):
    """timm's ``InvertedResidual``, or ``DepthwiseSeparableConv`` if it does not expand."""

    expansion: int
    features: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        hidden, y = self.expansion * x.shape[-1], x
        names = ("conv_pw", "conv_dw", "conv_pwl") if self.expansion > 1 else ("conv_dw", "conv_pw")
        for index, name in enumerate(names, start=1):
            last, depthwise = index == len(names), name == "conv_dw"
            size, groups, stride = (3, hidden, self.stride) if depthwise else (1, 1, 1)
            width, norm = (self.features, BatchNorm) if last else (hidden, BatchNormAct)
            y = conv(width, size, stride, size // 2, groups=groups, name=name)(y, train=train)
            y = norm(name=f"bn{index}")(y, train=train)
        return x + y if x.shape == y.shape else y


class MobileNetV2(nn.Module):
    """Sandler et al., 2018."""

    num_classes: int = 1000
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = conv(32, 3, 2, 1, name="conv_stem")(x.astype(self.dtype), train=train)
        x = BatchNormAct(name="bn1")(x, train=train)
        stages = []
        for expansion, features, repeats, stride in STAGES:
            strides = (stride, *[1] * (repeats - 1))
            blocks = [partial(Block, expansion, features, step) for step in strides]
            stages.append(partial(Sequential, blocks))
        x = Sequential(stages, name="blocks")(x, train=train)
        x = conv(1280, 1, name="conv_head")(x, train=train)
        x = BatchNormAct(name="bn2")(x, train=train)
        return Linear(self.num_classes, name="classifier")(x.mean((1, 2)), train=train)
