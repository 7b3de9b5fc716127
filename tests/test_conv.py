"""Every algorithm of the convolution path against XLA's own and against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxcifar.ops import conv


def by_hand(x, kernel, stride, padding):
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    size = kernel.shape[0]
    height, width = ((n - size) // stride + 1 for n in x.shape[1:3])
    out = np.zeros((x.shape[0], height, width, kernel.shape[3]))
    for i in range(height):
        for j in range(width):
            window = x[:, i * stride : i * stride + size, j * stride : j * stride + size]
            out[:, i, j] = np.tensordot(window, kernel, axes=3)
    return out


@settings(deadline=None, max_examples=25)
@given(
    size=st.integers(1, 6),
    kernel_size=st.sampled_from([1, 2, 3, 7]),
    stride=st.integers(1, 3),
    padding=st.integers(0, 3),
    channels=st.integers(1, 4),
)
def test_algorithms_agree(size, kernel_size, stride, padding, channels):
    if size + 2 * padding < kernel_size:
        return
    rng = np.random.default_rng(size)
    x = rng.standard_normal((2, size, size, channels), np.float32)
    kernel = rng.standard_normal((kernel_size, kernel_size, channels, 3), np.float32)
    expected = by_hand(x, kernel, stride, padding)
    for name, algorithm in conv.ALGORITHMS.items():
        if name == "matmul" and (kernel_size > 1 or padding > 0):
            continue
        np.testing.assert_allclose(
            algorithm(x, kernel, stride, padding), expected, rtol=1e-5, atol=1e-5, err_msg=name
        )


@pytest.mark.parametrize(
    ("size", "kernel_size", "stride", "padding", "expected"),
    [(2, 3, 1, 1, "patches"), (4, 1, 2, 0, "matmul"), (4, 3, 1, 1, "xla"), (32, 7, 2, 3, "xla")],
)
def test_choice_and_its_gradients(rng, size, kernel_size, stride, padding, expected):
    x = rng.standard_normal((3, size, size, 4), np.float32)
    kernel = rng.standard_normal((kernel_size, kernel_size, 4, 5), np.float32)
    assert conv.choose(x.shape, kernel.shape, padding=padding, backend="cpu") == expected
    assert conv.choose(x.shape, kernel.shape, padding=padding, backend="gpu") == "xla"

    def loss(function):
        return lambda x, k: jnp.sum(jnp.sin(function(x, k)))

    ours = jax.grad(
        loss(lambda x, k: conv.conv2d(x, k, stride=stride, padding=padding)), argnums=(0, 1)
    )
    plain = jax.grad(
        loss(lambda x, k: conv.ALGORITHMS["xla"](x, k, stride, padding)), argnums=(0, 1)
    )
    for got, want in zip(ours(x, kernel), plain(x, kernel), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
