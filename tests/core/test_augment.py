"""Augmentation against numpy by hand, alone, under jit and under vmap."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageOps

from jaxcifar.core import augment


@pytest.fixture
def images(rng):
    return rng.integers(0, 256, (16, 32, 32, 3), np.uint8)


def test_crop_and_flip_equal_numpy(images, rng):
    corners = rng.integers(0, 9, (16, 2))
    mirrored = rng.random(16) < 0.5
    expected = []
    for image, (top, left), mirror in zip(images, corners, mirrored, strict=True):
        padded = np.zeros((40, 40, 3), np.uint8)
        padded[4:36, 4:36] = image
        cut = padded[top : top + 32, left : left + 32]
        expected.append(cut[:, ::-1] if mirror else cut)
    got = augment.flip(augment.crop(jnp.asarray(images), jnp.asarray(corners)), mirrored)
    np.testing.assert_array_equal(got, expected)
    assert got.dtype == np.uint8


def test_normalize_is_bit_equal_to_the_formula(images):
    mean, std = (np.float32(numbers) for numbers in (augment.MEAN, augment.STD))
    expected = (images.astype(np.float32) / np.float32(255) - mean) / std
    for normalize in (augment.normalize, jax.jit(augment.normalize)):
        np.testing.assert_array_equal(normalize(jnp.asarray(images)), expected)


def test_the_whole_path_of_an_image_equals_pil(images, rng):
    """uint8 to normalised: RandomCrop, RandomHorizontalFlip, ToTensor, Normalize, by PIL."""
    corners = rng.integers(0, 9, (16, 2))
    mirrored = rng.random(16) < 0.5
    mean, std = (np.float32(numbers) for numbers in (augment.MEAN, augment.STD))
    expected = []
    for pixels, (top, left), mirror in zip(images, corners, mirrored, strict=True):
        image = ImageOps.expand(Image.fromarray(pixels), border=4, fill=0)
        image = image.crop((left, top, left + 32, top + 32))
        image = ImageOps.mirror(image) if mirror else image
        expected.append((np.asarray(image, np.float32) / np.float32(255) - mean) / std)

    @jax.jit
    def ours(images, corners, mirrored):
        return augment.normalize(augment.flip(augment.crop(images, corners), mirrored))

    np.testing.assert_array_equal(ours(images, corners, mirrored), expected)


def test_the_border_is_padded_before_normalizing():
    white = jnp.full((1, 32, 32, 3), 255, jnp.uint8)
    corner = jnp.zeros((1, 2), jnp.int32)
    border = augment.normalize(augment.crop(white, corner))[0, 0, 0]
    np.testing.assert_allclose(border, -np.array(augment.MEAN) / augment.STD, rtol=1e-6)


@pytest.mark.parametrize("op", [augment.random_crop, augment.random_flip, augment.augment])
def test_ops_under_jit_and_vmap(op, images):
    key = jax.random.key(3)
    alone = op(key, jnp.asarray(images))
    assert alone.shape == images.shape
    assert alone.dtype == np.uint8
    np.testing.assert_array_equal(jax.jit(op)(key, images), alone)
    keys = jax.random.split(key, 2)
    stacked = jax.vmap(op)(keys, jnp.stack([images, images[::-1]]))
    np.testing.assert_array_equal(stacked[0], op(keys[0], jnp.asarray(images)))
    np.testing.assert_array_equal(stacked[1], op(keys[1], jnp.asarray(images[::-1])))
    assert next(iter(inspect.signature(op).parameters)) == "key"


def test_each_image_is_drawn_for_itself_and_uniformly():
    # The brightest pixel of a single dot tells the corner that was drawn.
    count = 4096
    dots = jnp.zeros((count, 32, 32, 3), jnp.uint8).at[:, 16, 16].set(255)
    cropped = np.asarray(augment.random_crop(jax.random.key(0), dots))[..., 0]
    rows, columns = np.divmod(cropped.reshape(count, -1).argmax(1), 32)
    for position in (rows, columns):
        counts = np.bincount(position - 12, minlength=9)
        assert counts.shape == (9,)
        assert np.abs(counts - count / 9).max() < 5 * np.sqrt(count / 9)
    assert abs(np.corrcoef(rows, columns)[0, 1]) < 5 / np.sqrt(count)
    half = jnp.zeros((count, 32, 32, 3), jnp.uint8).at[:, :, :16].set(1)
    flipped = np.asarray(augment.random_flip(jax.random.key(1), half))[:, 0, 31, 0]
    assert abs(flipped.mean() - 0.5) < 5 * 0.5 / np.sqrt(count)


def test_without_the_flip_it_is_a_crop(images):
    key = jax.random.key(3)
    crop_key, _ = jax.random.split(key)
    cropped = augment.random_crop(crop_key, jnp.asarray(images))
    np.testing.assert_array_equal(augment.augment(key, images, flip=False), cropped)
    assert np.any(augment.augment(key, images) != cropped)
