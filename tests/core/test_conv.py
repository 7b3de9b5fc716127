"""Every algorithm of the convolution path against XLA's own and against numpy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from jaxcifar.core import conv
from jaxcifar.core.conv.matmul import matmul
from jaxcifar.core.conv.winograd import winograd

choose = partial(conv.choose, backend="cpu", dtype="float32")


def by_hand(x, kernel, stride, padding):
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    rows, columns = kernel.shape[:2]
    height = (x.shape[1] - rows) // stride + 1
    width = (x.shape[2] - columns) // stride + 1
    out = np.zeros((x.shape[0], height, width, kernel.shape[3]))
    for i in range(height):
        for j in range(width):
            window = x[:, i * stride : i * stride + rows, j * stride : j * stride + columns]
            out[:, i, j] = np.tensordot(window, kernel, axes=3)
    return out


def draw(seed, image_shape, kernel_shape, dtype="float32"):
    rng = np.random.default_rng(seed)
    shapes = image_shape, kernel_shape
    return tuple(jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes)


def all_of(function, x, kernel):
    """The result, and both gradients for a cotangent that is the same for every function."""

    @jax.jit
    def run(x, kernel):
        y, vjp = jax.vjp(function, x, kernel)
        dy = np.random.default_rng(3).standard_normal(y.shape)
        return (y, *vjp(jnp.asarray(dy, "bfloat16").astype(y.dtype)))

    return run(x, kernel)


def off_by(ours, theirs):
    """The largest difference over the largest value."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    return np.abs(ours - theirs).max() / np.abs(theirs).max()


@settings(deadline=None, max_examples=25)
@given(
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    kernel_size=st.sampled_from([1, 2, 3, 7]),
    stride=st.integers(1, 3),
    padding=st.integers(0, 3),
    channels=st.integers(1, 4),
)
def test_plain_algorithms_equal_numpy(height, width, kernel_size, stride, padding, channels):
    assume(min(height, width) + 2 * padding >= kernel_size)
    x, kernel = draw(height, (2, height, width, channels), (kernel_size, kernel_size, channels, 3))
    expected = by_hand(x, kernel, stride, padding)
    plain = all_of(lambda x, k: conv.ALGORITHMS["xla"](x, k, stride, padding), x, kernel)
    np.testing.assert_allclose(plain[0], expected, rtol=1e-5, atol=1e-5)
    for name in ("dense", "matmul") if kernel_size == 1 and padding == 0 else ("dense",):
        ours = all_of(lambda x, k, n=name: conv.ALGORITHMS[n](x, k, stride, padding), x, kernel)
        for got, want in zip(ours, plain, strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4, err_msg=name)


@settings(deadline=None, max_examples=10)
@given(
    rows=st.integers(1, 3),
    columns=st.integers(1, 3),
    padding=st.integers(0, 2),
    channels=st.integers(1, 40),
    features=st.integers(1, 8),
    dtype=st.sampled_from(["float32", "bfloat16"]),
)
def test_winograd_is_within_its_bound(rows, columns, padding, channels, features, dtype):
    """1e-4 of the largest value in float32, gradients included; in bfloat16 its own rounding."""
    height, width = 4 * rows + 2 - 2 * padding, 4 * columns + 2 - 2 * padding
    x, kernel = draw(channels, (2, height, width, channels), (3, 3, channels, features), dtype)
    ours = all_of(lambda x, k: winograd(x, k, padding), x, kernel)
    wide = (a.astype("float32") for a in (x, kernel))
    plain = all_of(lambda x, k: conv.ALGORITHMS["xla"](x, k, 1, padding), *wide)
    assert ours[0].dtype == dtype
    for got, want in zip(ours, plain, strict=True):
        assert off_by(got, want) <= (1e-4 if dtype == "float32" else 2**-8)


def test_winograd_is_exact_up_to_rounding():
    """In float64 its error is float64's: the transforms are right, not nearly right."""
    with jax.enable_x64(True):
        x, kernel = draw(0, (3, 12, 8, 5), (3, 3, 5, 6), "float64")
        ours = all_of(lambda x, k: winograd(x, k, 1), x, kernel)
        plain = all_of(lambda x, k: conv.ALGORITHMS["xla"](x, k, 1, 1), x, kernel)
        for got, want in zip(ours, plain, strict=True):
            assert off_by(got, want) <= 1e-13


@settings(deadline=None, max_examples=10)
@given(
    rows=st.integers(1, 70),  # even and odd ones take different ways
    inner=st.integers(1, 130),
    columns=st.integers(1, 130),
)
def test_bfloat16_product_and_its_gradients(rows, inner, columns):
    a, b = draw(rows, (rows, inner), (inner, columns), "bfloat16")
    ours = all_of(matmul, a, b)
    exact = (np.asarray(m, np.float64) for m in (a, b))
    for got, want in zip(ours, all_of(jnp.matmul, *map(jnp.float32, exact)), strict=True):
        assert got.dtype == jnp.bfloat16
        assert off_by(got, want) <= 2**-8


@pytest.mark.parametrize(
    ("size", "channels", "kernel_size", "stride", "padding", "expected"),
    [
        (2, 4, 3, 1, 1, "dense"),
        (4, 4, 1, 2, 0, "matmul"),
        (8, 16, 3, 1, 1, "winograd"),
        (8, 3, 3, 1, 1, "xla"),
        (8, 16, 3, 2, 1, "xla"),
        (6, 16, 3, 1, 1, "xla"),
        (32, 3, 7, 2, 3, "xla"),
    ],
)
def test_choice_and_its_gradients(size, channels, kernel_size, stride, padding, expected):
    shapes = (3, size, size, channels), (kernel_size, kernel_size, channels, 5)
    options = {"stride": stride, "padding": padding}
    assert choose(*shapes, **options) == expected
    exact = choose(*shapes, **options, exact=True)
    assert exact == ("xla" if expected == "winograd" else expected)
    assert choose(*shapes, **{**options, "dtype": "float64"}) == exact
    for backend in ("gpu", "tpu"):
        assert choose(*shapes, **{**options, "backend": backend}) == "xla"

    x, kernel = draw(1, *shapes)
    ours = all_of(partial(conv.conv2d, **options), x, kernel)
    plain = all_of(lambda x, k: conv.ALGORITHMS["xla"](x, k, stride, padding), x, kernel)
    for got, want in zip(ours, plain, strict=True):
        assert off_by(got, want) <= (1e-4 if expected == "winograd" else 1e-5)


def test_highest_precision_takes_the_plain_sum():
    x, kernel = draw(2, (2, 8, 8, 16), (3, 3, 16, 4))
    convolve = jax.jit(partial(conv.conv2d, padding=1))
    plain = jax.jit(lambda x, k: conv.ALGORITHMS["xla"](x, k, 1, 1))(x, kernel)
    fast = convolve(x, kernel)
    with jax.default_matmul_precision("highest"):  # the same jitted function
        np.testing.assert_array_equal(convolve(x, kernel), plain)
    assert 0 < off_by(fast, plain) <= 1e-4
