"""VGG16 and ResNet50_layer4 as the original program builds them, by name."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.nn.initializers import variance_scaling, xavier_uniform, zeros
from jax.typing import DTypeLike

from jaxcifar.core.layers import BatchNorm, Conv, Dropout, Layer, Linear, MaxPool, ReLU, Sequential

INPUT_SHAPE = (32, 32, 3)
POOL = 0
VGG16_FEATURES = (64, 64, POOL, 128, 128, POOL, 256, 256, 256, POOL, *(512, 512, 512, POOL) * 2)
RESNET_BLOCKS = {  # (mid, out, stride)
    "layer2": ((64, 256, 1), (64, 256, 1), (64, 256, 2)),
    "layer3": ((128, 512, 1), (128, 512, 1), (128, 512, 1), (128, 512, 2)),
    "layer4": ((256, 1024, 1),) * 6,
}


class VGG16(nn.Module):
    """Simonyan and Zisserman, 2014; ``batch_norm`` adds one to each convolution."""

    num_classes: int = 10
    dropout_rate: float = 0.5
    batch_norm: bool = False
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        normal = variance_scaling(2.0, "fan_out", "normal")  # N(0, sqrt(2 / (kh kw out)))
        conv = partial(Conv, kernel_size=3, padding=1, kernel_init=normal, bias_init=zeros)
        pool, after = partial(MaxPool, 2, 2), [BatchNorm, ReLU] if self.batch_norm else [ReLU]
        features: list[Layer] = []
        for channels in VGG16_FEATURES:
            features += [pool] if channels == POOL else [partial(conv, channels), *after]
        dropout, logits = partial(Dropout, self.dropout_rate), partial(Linear, self.num_classes)
        classifier = (dropout, partial(Linear, 512), BatchNorm, ReLU, dropout, logits)
        x = Sequential(features, name="features")(images.astype(self.dtype), train=train)
        x = x.reshape(x.shape[0], -1)  # 1x1 pixels, so NHWC and torch's NCHW have the same order
        return Sequential(classifier, name="classifier")(x, train=train)


class ResNet50Layer4(nn.Module):
    """He et al., 2015, cut after layer 4.

    Unlike the paper's, every convolution has a bias, batch norm and ReLU, also the shortcut, which
    each block has, and the last of a block; no ReLU follows the addition.
    """

    num_classes: int = 10
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        stem = _unit(64, 7, partial(MaxPool, 3, 2, padding=1), stride=2, padding=3)
        x = stem(name="layer1")(images.astype(self.dtype), train=train)
        for name, blocks in RESNET_BLOCKS.items():
            x = Sequential([partial(Block, *block) for block in blocks], name=name)(x, train=train)
        x = jnp.mean(x, axis=(1, 2))
        return Linear(self.num_classes, kernel_init=xavier_uniform(), name="fc")(x, train=train)


class Block(nn.Module):
    """A bottleneck: 1x1 to ``mid`` channels, 3x3, 1x1 to ``out``, plus the shortcut."""

    mid: int
    out: int
    stride: int  # of the first 1x1, not of the 3x3

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        first, second = _unit(self.mid, 1, stride=self.stride), _unit(self.mid, 3, padding=1)
        y = Sequential((first, second, _unit(self.out, 1)), name="layer")(x, train=train)
        shortcut = "downsize" if self.stride > 1 else "make_equal_channel"
        return y + _unit(self.out, 1, stride=self.stride)(name=shortcut)(x, train=train)


def _unit(features: int, size: int, *after: Layer, stride: int = 1, padding: int = 0) -> Layer:
    conv = partial(Conv, features, size, stride, padding, kernel_init=xavier_uniform())
    return partial(Sequential, (conv, BatchNorm, ReLU, *after))


MODELS: dict[str, Callable[..., nn.Module]] = {
    "vgg16": VGG16,
    "vgg16_bn": partial(VGG16, batch_norm=True),
    "resnet50_layer4": ResNet50Layer4,
}


@cache  # jit finds a compiled program only by the identical model
def create_model(
    name: str, *, num_classes: int = 10, dropout_rate: float = 0.5, dtype: DTypeLike = jnp.float32
) -> nn.Module:
    """Create a network of ``MODELS`` that computes in float32, bfloat16, or float64 under x64."""
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}: use one of {', '.join(MODELS)}")
    options = {} if name == "resnet50_layer4" else {"dropout_rate": dropout_rate}
    return MODELS[name](num_classes=num_classes, dtype=jnp.dtype(dtype), **options)


def init(key: jax.Array, model: nn.Module, input_shape: tuple[int, ...] = INPUT_SHAPE) -> Any:
    """Draw ``{"params": ..., "batch_stats": ...}``; jit it to leave the forward pass out."""
    with jax.default_matmul_precision("highest"):  # plain convolutions are traced faster
        return model.init(key, jnp.zeros((1, *input_shape)), train=False)


def abstract_variables(
    model: nn.Module, input_shape: tuple[int, ...] = INPUT_SHAPE
) -> dict[str, dict[str, jax.ShapeDtypeStruct]]:
    """Return shapes and dtypes of the variables, in the order of torch's state dict."""
    leaves = {}

    def record(key: jax.Array) -> None:
        for path, leaf in flatten_dict(init(key, model, input_shape)).items():
            leaves[path] = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)

    jax.eval_shape(record, jax.random.key(0))  # whose result would have sorted keys
    return unflatten_dict(leaves)


def head(model: nn.Module) -> tuple[str, ...]:
    """Return the path of the last layer, such as ``("classifier", "5")``."""
    return list(flatten_dict(abstract_variables(model)["params"]))[-1][:-1]
