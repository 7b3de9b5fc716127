"""Layers with torch's semantics, on NHWC images, called as ``layer(x, train=...)``."""

from jaxcifar.core.activations import (
    GELU,
    Hardsigmoid,
    Hardswish,
    LeakyReLU,
    PReLU,
    ReLU,
    ReLU6,
    Sigmoid,
    SiLU,
    Tanh,
)
from jaxcifar.core.layers import (
    Conv,
    ConvTranspose,
    Dropout,
    Flatten,
    Identity,
    Linear,
    Sequential,
)
from jaxcifar.core.norms import BatchNorm, GroupNorm, LayerNorm
from jaxcifar.core.pooling import AdaptiveAvgPool, AvgPool, MaxPool, Upsample

__all__ = [
    "GELU",
    "AdaptiveAvgPool",
    "AvgPool",
    "BatchNorm",
    "Conv",
    "ConvTranspose",
    "Dropout",
    "Flatten",
    "GroupNorm",
    "Hardsigmoid",
    "Hardswish",
    "Identity",
    "LayerNorm",
    "LeakyReLU",
    "Linear",
    "MaxPool",
    "PReLU",
    "ReLU",
    "ReLU6",
    "Sequential",
    "SiLU",
    "Sigmoid",
    "Tanh",
    "Upsample",
]
