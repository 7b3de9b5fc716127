"""Layers with torch's semantics, on NHWC images, called as ``layer(x, train=...)``."""

from jaxcifar.core.activations import GELU as GELU
from jaxcifar.core.activations import Function as Function
from jaxcifar.core.activations import Hardsigmoid as Hardsigmoid
from jaxcifar.core.activations import Hardswish as Hardswish
from jaxcifar.core.activations import LeakyReLU as LeakyReLU
from jaxcifar.core.activations import ReLU as ReLU
from jaxcifar.core.activations import ReLU6 as ReLU6
from jaxcifar.core.activations import Sigmoid as Sigmoid
from jaxcifar.core.activations import SiLU as SiLU
from jaxcifar.core.activations import Tanh as Tanh
from jaxcifar.core.layers import Conv as Conv
from jaxcifar.core.layers import Dropout as Dropout
from jaxcifar.core.layers import Flatten as Flatten
from jaxcifar.core.layers import Identity as Identity
from jaxcifar.core.layers import Linear as Linear
from jaxcifar.core.layers import Sequential as Sequential
from jaxcifar.core.norms import BatchNorm as BatchNorm
from jaxcifar.core.norms import GroupNorm as GroupNorm
from jaxcifar.core.norms import LayerNorm as LayerNorm
from jaxcifar.core.pooling import AdaptiveAvgPool as AdaptiveAvgPool
from jaxcifar.core.pooling import AvgPool as AvgPool
from jaxcifar.core.pooling import MaxPool as MaxPool
from jaxcifar.core.pooling import Upsample as Upsample
