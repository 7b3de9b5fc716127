"""The batched forward pass covers every image once; ``test_sharding`` compares several devices."""

import operator
from functools import partial
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

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
    images, counts, spy = IMAGES[:count], [], Mock(wraps=forward)
    monkeypatch.setattr(inference, "MIN_BATCH", 32)
    monkeypatch.setattr(inference, "forward", spy)
    ours = logits(state, images, batch_size=batch_size, on_batch=counts.append)
    assert {len(call.args[1]) for call in spy.call_args_list} == {size}  # as the images need
    assert counts == [min(size, count - start) for start in range(0, max(count, 1), size)]
    np.testing.assert_array_equal(ours, logits(state, images, batch_size=batch_size))
    assert (ours.shape, ours.dtype) == ((count, 10), np.float32)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    apply = jax.jit(partial(state.apply_fn, train=False))
    expected = apply(variables, normalize(jnp.asarray(IMAGES)))
    np.testing.assert_allclose(ours, expected[:count], atol=1e-5 * np.abs(expected).max())


def test_only_kernels_are_rounded_and_hardly_change_the_logits(state):
    narrow = create_state(jax.random.key(0), Tiny(dtype="bfloat16"), make_optimizer(1e-3))
    ready = inference.rounded(narrow, IMAGES)
    dtypes = {path[-1]: leaf.dtype.name for path, leaf in flatten_dict(ready.params).items()}
    assert dtypes == {"kernel": "bfloat16", "scale": "float32", "bias": "float32"}
    expected = forward(narrow, IMAGES)
    np.testing.assert_allclose(forward(ready, IMAGES), expected, atol=2**-7 * abs(expected).max())
    assert jax.tree.all(jax.tree.map(operator.is_, state, inference.rounded(state, IMAGES)))


def test_images_of_another_shape_or_dtype_are_refused():
    for wrong in (IMAGES[0], IMAGES[:, :28], IMAGES / np.float32(255)):
        with pytest.raises(ValueError, match=r"expected uint8 images \(N, 32, 32, 3\), got "):
            logits(None, wrong, batch_size=8)
