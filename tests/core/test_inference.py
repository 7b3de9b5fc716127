"""The batched forward pass covers every image once; ``test_sharding`` compares several devices."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcifar.core import inference
from jaxcifar.core.augment import normalize
from jaxcifar.core.inference import forward, logits
from jaxcifar.core.state import create_state, make_optimizer
from tests.tiny import Tiny

IMAGES = np.random.default_rng(0).integers(0, 256, (50, 32, 32, 3), np.uint8)


@pytest.fixture(scope="module")
def state():
    return create_state(jax.random.key(0), Tiny(), make_optimizer(1e-3))


@pytest.mark.parametrize(
    ("count", "batch_size", "size"),
    [(0, 30, 30), (1, 30, 30), (5, 10**6, 32), (50, 30, 30), (50, 10**6, 50)],
)
def test_every_image_is_covered_once_in_batches_of_one_size(
    state, monkeypatch, count, batch_size, size
):
    images, sizes, counts = IMAGES[:count], set(), []
    monkeypatch.setattr(inference, "MIN_BATCH", 32)
    monkeypatch.setattr(
        inference, "forward", lambda state, batch: sizes.add(len(batch)) or forward(state, batch)
    )
    ours = logits(state, images, batch_size=batch_size, on_batch=counts.append)
    assert sizes == {size}  # no larger than the images need
    assert counts == [min(size, count - start) for start in range(0, max(count, 1), size)]
    np.testing.assert_array_equal(ours, logits(state, images, batch_size=batch_size))
    assert (ours.shape, ours.dtype) == ((count, 10), np.float32)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    apply = jax.jit(partial(state.apply_fn, train=False))
    expected = apply(variables, normalize(jnp.asarray(IMAGES)))
    np.testing.assert_allclose(ours, expected[:count], atol=1e-5 * np.abs(expected).max())


def test_images_of_another_shape_or_dtype_are_refused():
    for wrong in (IMAGES[0], IMAGES[:, :28], IMAGES / np.float32(255)):
        with pytest.raises(ValueError, match=r"expected uint8 images \(N, 32, 32, 3\), got "):
            logits(None, wrong, batch_size=8)
