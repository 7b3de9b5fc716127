"""Augmentation and normalisation: pure, on the device, drawn anew for each image."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike

# Per channel, of pixels in [0, 1]; the original program's numbers.
MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2023, 0.1994, 0.2010)
CROP_PADDING = 4


def random_crop(key: jax.Array, images: jax.Array, *, padding: int = CROP_PADDING) -> jax.Array:
    """Pads each image with zeros and cuts out the old size, as torchvision's ``RandomCrop``.

    Args:
      key: a PRNG key.
      images: ``(N, H, W, C)``, any dtype.
      padding: zeros on each side, in pixels; corners are uniform in ``[0, 2 padding]``.

    Returns:
      Images of the same shape and dtype.
    """
    corners = jax.random.randint(key, (images.shape[0], 2), 0, 2 * padding + 1)
    return crop(images, corners, padding=padding)


def crop(images: jax.Array, corners: jax.Array, *, padding: int = CROP_PADDING) -> jax.Array:
    """Cuts image ``i`` out of its zero-padded self at ``corners[i] = (top, left)``."""
    width = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    padded = jnp.pad(images, width)

    def cut(image: jax.Array, corner: jax.Array) -> jax.Array:
        return lax.dynamic_slice(image, (corner[0], corner[1], 0), images.shape[1:])

    return jax.vmap(cut)(padded, corners)


def random_flip(key: jax.Array, images: jax.Array) -> jax.Array:
    """Mirrors each image left to right with probability 1/2; shape and dtype stay."""
    return flip(images, jax.random.bernoulli(key, shape=images.shape[:1]))


def flip(images: jax.Array, mirrored: jax.Array) -> jax.Array:
    """Mirrors image ``i`` where ``mirrored[i]``; ``(N, H, W, C)`` and ``(N,)`` bool."""
    return jnp.where(mirrored[:, None, None, None], images[:, :, ::-1], images)


def augment(key: jax.Array, images: jax.Array, *, flip: bool = True) -> jax.Array:
    """Random crop, then random flip unless not ``flip``, of uint8 images ``(N, H, W, C)``."""
    crop_key, flip_key = jax.random.split(key)
    images = random_crop(crop_key, images)
    return random_flip(flip_key, images) if flip else images


def normalize(images: jax.Array, dtype: DTypeLike = np.float32) -> jax.Array:
    """``(pixel / 255 - MEAN) / STD`` by channel, as ``ToTensor`` and ``Normalize`` do.

    Each channel has 256 possible values, so they are computed once in numpy and looked
    up: bit-equal to torch's, where XLA would turn the divisions into products.

    Args:
      images: uint8 ``(N, H, W, 3)``.
      dtype: of the result; float32 or float64.
    """
    pixels = np.arange(256, dtype=dtype)[:, None] / np.asarray(255, dtype)
    table = (pixels - np.asarray(MEAN, dtype)) / np.asarray(STD, dtype)
    return jnp.asarray(table)[images, jnp.arange(3)]
