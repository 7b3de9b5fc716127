"""Augmentation and normalization, on the device."""

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
    if augmentation not in get_args(Augmentation):
        raise ValueError(f"augmentation must be one of {get_args(Augmentation)}: {augmentation!r}")
    crop_key, flip_key = jax.random.split(key)
    if augmentation != "none":
        images = random_crop(crop_key, images)
    return random_flip(flip_key, images) if augmentation == "crop-flip" else images


def random_crop(key: jax.Array, images: jax.Array) -> jax.Array:
    """Crop each image at a corner drawn uniformly from ``[0, 2 * CROP_PADDING]``."""
    corners = jax.random.randint(key, (images.shape[0], 2), 0, 2 * CROP_PADDING + 1)
    return crop(images, corners)


def crop(images: jax.Array, corners: jax.Array) -> jax.Array:
    """Pad with zeros, then cut image ``i`` to its old size at ``corners[i] = (top, left)``."""
    sides = (CROP_PADDING, CROP_PADDING)
    padded = jnp.pad(images, ((0, 0), sides, sides, (0, 0)))

    def cut(image: jax.Array, corner: jax.Array) -> jax.Array:
        return lax.dynamic_slice(image, (corner[0], corner[1], 0), images.shape[1:])

    return jax.vmap(cut)(padded, corners)


def random_flip(key: jax.Array, images: jax.Array) -> jax.Array:
    """Mirror each image left to right with probability 1/2."""
    return flip(images, jax.random.bernoulli(key, shape=images.shape[:1]))


def flip(images: jax.Array, mirrored: jax.Array) -> jax.Array:
    """Mirror image ``i`` where ``mirrored[i]``."""
    return jnp.where(mirrored[:, None, None, None], images[:, :, ::-1], images)


def normalize(images: jax.Array, dtype: DTypeLike = np.float32) -> jax.Array:
    """Return ``(pixel / 255 - MEAN) / STD`` of uint8 images ``(N, H, W, 3)``.

    The 256 values of each channel are computed in numpy and looked up. That is bit-equal to
    torch's ``ToTensor`` and ``Normalize``; XLA would turn the divisions into products.
    """
    pixels = np.arange(256, dtype=dtype)[:, None] / np.asarray(255, dtype)
    table = (pixels - np.asarray(MEAN, dtype)) / np.asarray(STD, dtype)
    return jnp.asarray(table)[images, jnp.arange(3)]
