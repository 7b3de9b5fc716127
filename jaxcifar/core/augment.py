"""Augmentation and normalization, on the device."""

from functools import partial
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike

Augmentation = Literal["none", "crop", "crop-flip"]
# Per channel, for pixels in [0, 1]; the original program's constants.
MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2023, 0.1994, 0.2010)
CROP_PADDING = 4


def augment(key: jax.Array, images: jax.Array, augmentation: Augmentation) -> jax.Array:
    """Crop and flip images ``(N, H, W, C)`` at random, as torchvision's transforms do."""
    if augmentation not in (known := get_args(Augmentation)):
        raise ValueError(f"unknown augmentation {augmentation!r}: use one of {', '.join(known)}")
    crop_key, flip_key = jax.random.split(key)
    if augmentation != "none":
        corners = jax.random.randint(crop_key, (len(images), 2), 0, 2 * CROP_PADDING + 1)
        images = crop(images, corners)
    if augmentation == "crop-flip":
        images = flip(images, jax.random.bernoulli(flip_key, shape=images.shape[:1]))
    return images


def crop(images: jax.Array, corners: jax.Array) -> jax.Array:
    """Pad with zeros, then cut image ``i`` to its old size at ``corners[i] = (top, left)``."""
    padded = jnp.pad(images, [(0, 0), *[(CROP_PADDING, CROP_PADDING)] * 2, (0, 0)])
    starts = jnp.pad(corners, ((0, 0), (0, 1)))  # the channels start at 0
    return jax.vmap(partial(lax.dynamic_slice, slice_sizes=images.shape[1:]))(padded, starts)


def flip(images: jax.Array, mirrored: jax.Array) -> jax.Array:
    """Mirror image ``i`` left to right where ``mirrored[i]``."""
    return jnp.where(mirrored[:, None, None, None], images[:, :, ::-1], images)


def normalize(images: jax.Array | np.ndarray, dtype: DTypeLike = np.float32) -> jax.Array:
    """Return ``(pixel / 255 - MEAN) / STD`` of uint8 ``(N, H, W, 3)``, bit-equal to torch's."""
    # The 256 values are computed in numpy, since XLA would turn the divisions into products.
    pixels = np.arange(256, dtype=dtype)[:, None] / np.asarray(255, dtype)
    table = (pixels - np.asarray(MEAN, dtype)) / np.asarray(STD, dtype)
    return jnp.asarray(table)[images, jnp.arange(3)]
