"""Augmentation and normalization against PIL and numpy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageOps

from jaxcifar.core import augment


@pytest.fixture
def images(rng):
    return rng.integers(0, 256, (16, 32, 32, 3), np.uint8)


def test_pixels_from_uint8_to_normalized_are_bit_equal_to_pil(images, rng):
    """RandomCrop, RandomHorizontalFlip, ToTensor, Normalize; the border is padded before."""
    corners = rng.integers(0, 9, (16, 2))
    mirrored = rng.random(16) < 0.5
    mean, std = (np.float32(numbers) for numbers in (augment.MEAN, augment.STD))
    uint8, expected = [], []
    for pixels, (top, left), mirror in zip(images, corners, mirrored, strict=True):
        image = ImageOps.expand(Image.fromarray(pixels), border=4, fill=0)
        image = image.crop((left, top, left + 32, top + 32))
        uint8.append(np.asarray(ImageOps.mirror(image) if mirror else image))
        expected.append((np.float32(uint8[-1]) / np.float32(255) - mean) / std)

    def augmented(images, corners, mirrored):
        return augment.flip(augment.crop(images, corners), mirrored)

    for transform in (lambda f: f, jax.jit):
        pixels = transform(augmented)(jnp.asarray(images), jnp.asarray(corners), mirrored)
        assert pixels.dtype == np.uint8
        np.testing.assert_array_equal(pixels, uint8)
        np.testing.assert_array_equal(transform(augment.normalize)(pixels), expected)


def test_each_image_has_its_own_corner_of_all_81():
    # The place of a single bright pixel tells the corner that was drawn.
    dots = jnp.zeros((1000, 32, 32, 3), jnp.uint8).at[:, 16, 16].set(255)
    cropped = np.asarray(augment.augment(jax.random.key(0), dots, "crop"))[..., 0]
    rows, columns = np.divmod(cropped.reshape(1000, -1).argmax(1), 32)
    assert set(zip(rows, columns, strict=True)) == set(itertools.product(range(12, 21), repeat=2))


def test_only_crop_flip_mirrors_and_none_changes_nothing(images):
    none, crop, both = (
        np.asarray(augment.augment(jax.random.key(3), jnp.asarray(images), each))
        for each in ("none", "crop", "crop-flip")
    )
    np.testing.assert_array_equal(none, images)
    assert np.any(crop != images)
    mirrored = np.any(both != crop, axis=(1, 2, 3))
    assert 0 < mirrored.sum() < len(images)
    np.testing.assert_array_equal(both[mirrored], crop[mirrored][:, :, ::-1])
