"""Layers with torch's semantics, on NHWC images, called as ``layer(x, train=...)``."""

from jaxcifar.core.activations import (
    GELU,
    Function,
    Hardsigmoid,
    Hardswish,
    LeakyReLU,
    ReLU,
    ReLU6,
    Sigmoid,
    SiLU,
    Tanh,
)
from jaxcifar.core.layers import Conv, Dropout, Flatten, Identity, Linear, Sequential
from jaxcifar.core.norms import BatchNorm, GroupNorm, LayerNorm
from jaxcifar.core.pooling import AdaptiveAvgPool, AvgPool, MaxPool, Upsample

__all__ = [
    "GELU",
    "AdaptiveAvgPool",
    "AvgPool",
    "BatchNorm",
    "Conv",
    "Dropout",
    "Flatten",
    "Function",
    "GroupNorm",
    "Hardsigmoid",
    "Hardswish",
    "Identity",
    "LayerNorm",
    "LeakyReLU",
    "Linear",
    "MaxPool",
    "ReLU",
    "ReLU6",
    "Sequential",
    "SiLU",
    "Sigmoid",
    "Tanh",
    "Upsample",
]
