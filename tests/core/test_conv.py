"""Every convolution algorithm against XLA's own; the tests of parity compare that with torch's."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from jaxcifar.core import conv
from jaxcifar.core.conv import Window, choose, conv2d, dense, onednn, patches, winograd, xla
from jaxcifar.core.conv.onednn import serves
from jaxcifar.layers import Conv, ReLU, Sequential

WINOGRAD_BOUNDS = {"float32": 1e-4, "bfloat16": 2**-8, "float64": 1e-13}  # the last is exact
AMX = serves(jnp.zeros((1, 9, 9, 16), "bfloat16"), Window.of(3, 1, 1))
needs_amx = pytest.mark.skipif(not AMX, reason="needs a processor with AMX, and one device")


def draw(seed, *shapes, dtype="float32"):
    rng = np.random.default_rng(seed)
    return tuple(jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes)


@partial(jax.jit, static_argnums=0)
def result_and_gradients(function, *arguments):
    y, vjp = jax.vjp(function, *arguments)
    dy = np.random.default_rng(3).standard_normal(y.shape)
    return (y, *vjp(jnp.asarray(dy, "bfloat16").astype(y.dtype)))


def run(algorithm, x, kernel, stride, padding):
    window = Window.of(kernel.shape[:2], stride, padding)
    return result_and_gradients(partial(algorithm, window=window), x, kernel)


def assert_close(ours, expected, bound):
    for pair in zip(ours, expected, strict=True):
        got, want = (np.asarray(array, np.float64) for array in pair)
        assert np.abs(got - want).max() <= bound * np.abs(want).max()


@settings(deadline=None, max_examples=10)
@given(
    sides=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    kernel_size=st.sampled_from([1, 2, 3, 7]),
    stride=st.integers(1, 3),
    # The compiler of jax 0.12 aborts where a weight sees nothing but padding.
    padding=st.integers(0, 3 if jax.__version_info__ < (0, 12) else 0),
    channels=st.sampled_from([1, 2, 4, 16]),
)
def test_plain_algorithms_equal_xlas(sides, kernel_size, stride, padding, channels):
    assume(min(sides) + 2 * padding >= kernel_size)
    assume((min(sides), kernel_size, stride) != (1, 2, 2))  # that of jax 0.10 aborts here
    x, kernel = draw(sides[0], (2, *sides, channels), (kernel_size, kernel_size, channels, 3))
    plain = run(xla, x, kernel, stride, padding)
    for algorithm in (dense, patches):
        equal = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4, err_msg=str(algorithm))
        jax.tree.map(equal, run(algorithm, x, kernel, stride, padding), plain)
    narrow = x.astype("bfloat16"), kernel.astype("bfloat16")
    wide = run(xla, *map(jnp.float32, narrow), stride, padding)
    bounds = {patches: 2**-8} if kernel_size == 1 else {}
    if serves(narrow[0], Window.of(kernel_size, stride, padding)):
        bounds[onednn] = 2**-7
    for algorithm, bound in bounds.items():
        assert_close(run(algorithm, *narrow, stride, padding), wide, bound)


@settings(deadline=None, max_examples=4)
@given(
    rows=st.integers(1, 3),
    columns=st.integers(1, 3),
    padding=st.integers(0, 2),
    channels=st.integers(1, 40),
    features=st.integers(1, 8),
)
@pytest.mark.parametrize("dtype", WINOGRAD_BOUNDS)
def test_winograd_is_within_its_bound(rows, columns, padding, channels, features, dtype):
    height, width = 4 * rows + 2 - 2 * padding, 4 * columns + 2 - 2 * padding
    shapes = (2, height, width, channels), (3, 3, channels, features)
    with jax.enable_x64(dtype == "float64"):
        x, kernel = draw(channels, *shapes, dtype=dtype)
        ours = run(winograd, x, kernel, 1, padding)
        wide = (a.astype(jnp.promote_types(dtype, "float32")) for a in (x, kernel))
        assert ours[0].dtype == dtype
        assert_close(ours, run(xla, *wide, 1, padding), WINOGRAD_BOUNDS[dtype])


@needs_amx
@pytest.mark.parametrize(("width", "kernel_size"), [(9, 3), (3, 3), (9, 1)])
def test_onednn_adds_the_bias_and_applies_relu(width, kernel_size):
    x, kernel = draw(width, (2, 5, width, 16), (kernel_size, kernel_size, 16, 4), dtype="bfloat16")
    window, (bias,) = Window.of(kernel_size, 1, kernel_size // 2), draw(kernel_size, (4,))
    layer = Sequential([partial(Conv, 4, kernel_size, padding=kernel_size // 2), ReLU])

    plain = lambda x, kernel, bias: xla(x, kernel, window) + bias.reshape(1, 1, 1, 4)  # noqa: E731

    def ours(x, kernel, bias):
        return layer.apply({"params": {"0": {"kernel": kernel, "bias": bias}}}, x, train=False)

    y, *gradients = result_and_gradients(ours, x, kernel, bias)
    wide = x.astype("float32"), kernel.astype("float32"), bias
    assert_close([y], [jnp.maximum(plain(*wide), 0)], 2**-7)
    masked = result_and_gradients(lambda *a: jnp.where(y > 0, plain(*a), 0), *wide)
    assert_close(gradients, masked[1:], 2**-7)


@pytest.mark.parametrize("algorithm", [patches, pytest.param(onednn, marks=needs_amx)])
def test_bfloat16_can_be_mapped_and_differentiated_twice(algorithm):
    x, kernel = draw(1, (3, 2, 5, 5, 16), (3, 3, 16, 4), dtype="bfloat16")

    def penalty(kernel, x, algorithm):
        y = lambda x: algorithm(x, kernel, Window.of(3, 1, 1)).astype("float32")  # noqa: E731
        return jnp.square(jax.grad(lambda x: jnp.square(y(x)).sum())(x).astype("float32")).sum()

    second = jax.vmap(jax.grad(penalty), (None, 0, None))
    assert_close([second(kernel, x, algorithm)], [second(kernel, x, xla)], 2**-6)


def test_backend_and_precision_count_also_of_a_function_that_was_traced_before(monkeypatch):
    x, kernel = draw(1, (3, 8, 8, 16), (3, 3, 16, 5))
    window, many = Window.of(3, 1, 1), jnp.zeros((3, 3, 16, 1024), "bfloat16")
    convolve = jax.jit(partial(conv2d, window=window, relu=False, train=True))
    plain, narrow = jax.jit(partial(xla, window=window)), x.astype("bfloat16")
    assert not np.array_equal(convolve(x, kernel), plain(x, kernel))
    assert choose(narrow, kernel, window, train=True) is winograd
    for train, weights in (True, many), (False, kernel):
        assert choose(narrow, weights, window, train=train) is (onednn if AMX else winograd)
    with jax.default_matmul_precision("highest"):
        np.testing.assert_array_equal(convolve(x, kernel), plain(x, kernel))
        assert choose(narrow, many, window, train=True) is xla
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert choose(x, kernel, window, train=True) is xla


@pytest.mark.parametrize(
    ("size", "channels", "kernel_size", "options", "expected"),
    [
        ((8, 8), 16, 3, {"padding": "same"}, "winograd"),
        ((8, 4), 16, 3, {"padding": (1, 3)}, "winograd"),
        ((8, 8), 32, 3, {"padding": 1, "groups": 2}, "winograd"),
        ((5, 5), 4, 1, {"stride": (2, 1)}, "patches"),
        ((2, 3), 4, (3, 2), {"padding": "same", "dilation": (1, 2)}, "patches"),
        ((1, 1), 4, (9, 7), {"padding": (4, 3)}, "dense"),  # as of many images
        ((8, 7), 4, (3, 2), {"stride": (1, 2), "dilation": 2, "padding": 1}, "xla"),
        ((8, 8), 3, 3, {"padding": 1}, "xla"),
        ((6, 6), 16, 3, {"padding": 1}, "xla"),
        ((8, 6), 4, 3, {"padding": 1, "groups": 4, "stride": (2, 1)}, "depthwise"),
    ],
)
def test_a_layer_takes_the_fastest(size, channels, kernel_size, options, expected, monkeypatch):
    chosen = []
    record = lambda *a, **b: chosen.append(choose(*a, **b)) or chosen[-1]  # noqa: E731
    monkeypatch.setattr(conv, "choose", record)
    layer = Conv(channels, kernel_size, use_bias=False, **options)
    (x,) = draw(1, (3, *size, channels))
    kernel = layer.init(jax.random.key(0), x, train=False)["params"]["kernel"]
    ours = result_and_gradients(
        lambda x, k: layer.apply({"params": {"kernel": k}}, x, train=True), x, kernel
    )
    assert {algorithm.__name__ for algorithm in chosen} == {expected}
    options = {"stride": 1, "padding": 0} | options
    plain = partial(xla, window=Window.of(kernel_size, **options))
    assert_close(ours, result_and_gradients(plain, x, kernel), 1e-4)
