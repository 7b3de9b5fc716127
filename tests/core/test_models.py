"""Layers, parameter counts, names, initializers and dtypes of the models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from jaxcifar.core.layers import BatchNorm, Dropout, MaxPool
from jaxcifar.core.models import MODELS, abstract_variables, create_model
from jaxcifar.core.state import create_state, make_optimizer


@pytest.mark.parametrize(
    ("name", "parameters", "statistics", "entries"),
    [
        ("vgg16", 14_983_498, 3, 35),
        ("vgg16_bn", 14_991_946, 42, 100),
        ("resnet50_layer4", 14_750_730, 159, 373),
    ],
)
def test_counts_equal_the_state_dicts(name, parameters, statistics, entries):
    params, stats = map(jax.tree.leaves, abstract_variables(create_model(name)).values())
    assert sum(leaf.size for leaf in params) == parameters
    assert len(stats) == statistics
    assert len(params) + len(stats) == entries


BLOCKS = [f"layer{i}/{block}" for i, count in ((2, 3), (3, 4), (4, 6)) for block in range(count)]
SHORTCUTS = {"layer2/2": "downsize", "layer3/3": "downsize"}
UNITS = ["layer1"]
for block in BLOCKS:
    shortcut = SHORTCUTS.get(block, "make_equal_channel")
    UNITS += [f"{block}/{unit}" for unit in ("layer/0", "layer/1", "layer/2", shortcut)]
RESNET_LAYERS = [*(f"{unit}/{index}" for unit in UNITS for index in range(2)), "fc"]
VGG_FEATURES = [f"features/{i}" for i in (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)]
VGG_LAYERS = [*VGG_FEATURES, "classifier/1", "classifier/2", "classifier/5"]


@pytest.mark.parametrize(
    ("name", "layers"), [("vgg16", VGG_LAYERS), ("resnet50_layer4", RESNET_LAYERS)]
)
def test_the_tree_has_the_names_and_the_order_of_the_state_dict(name, layers):
    params = flatten_dict(abstract_variables(create_model(name, num_classes=7))["params"])
    assert list(dict.fromkeys("/".join(path[:-1]) for path in params)) == layers
    assert {path[-1] for path in params} == {"kernel", "scale", "bias"}
    assert list(params.values())[-1].shape == (7,)


def assert_normal(values, std):
    values = np.asarray(values, np.float64).ravel()
    assert abs(values.mean()) < 5 * std / np.sqrt(values.size)
    assert values.std() == pytest.approx(std, rel=5 / np.sqrt(2 * values.size))
    # A normal distribution, not truncated and not uniform: kurtosis 3, tails beyond 2 sigma.
    assert np.mean((values / std) ** 4) == pytest.approx(3, abs=5 * np.sqrt(96 / values.size))
    assert np.abs(values).max() > 3 * std or values.size < 2000


def assert_uniform(values, bound):
    values = np.asarray(values, np.float64).ravel() / bound
    assert np.abs(values).max() <= 1 + 1e-6
    assert abs(values.mean()) < 5 / np.sqrt(3 * values.size)
    assert np.mean(values**2) == pytest.approx(1 / 3, abs=5 * np.sqrt(4 / 45 / values.size))


@pytest.mark.parametrize("name", MODELS)
def test_initializers(name):
    state = create_state(jax.random.key(0), create_model(name), make_optimizer(1e-3))
    params = flatten_dict(state.params, sep="/")
    for path, leaf in params.items():
        layer, _, leaf_name = path.rpartition("/")
        kernel = params.get(f"{layer}/kernel")
        if kernel is None:  # of a batch norm
            np.testing.assert_array_equal(leaf, leaf_name == "scale")
        elif leaf.ndim == 4 and name != "resnet50_layer4":
            assert_normal(leaf, np.sqrt(2 / (3 * 3 * leaf.shape[-1])))
        elif kernel.ndim == 4 and name != "resnet50_layer4":
            np.testing.assert_array_equal(leaf, 0)
        elif leaf_name == "kernel" and name == "resnet50_layer4":
            receptive = np.prod(leaf.shape[:-2])
            assert_uniform(leaf, np.sqrt(6 / (receptive * sum(leaf.shape[-2:]))))
        else:
            assert_uniform(leaf, 1 / np.sqrt(np.prod(kernel.shape[:-1])))


def test_create_model_takes_the_dropout_rate_and_refuses_an_unknown_name():
    assert create_model("vgg16", dropout_rate=0.25).dropout_rate == 0.25
    with pytest.raises(ValueError, match="unknown model 'vgg17': use one of vgg16, "):
        create_model("vgg17")


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("dtype", "kept"), [("bfloat16", "float32"), ("float64", "float64")])
def test_parameters_are_float32_or_wider_and_logits_have_the_compute_dtype(name, dtype, kept):
    with jax.enable_x64(dtype == "float64"):
        model = create_model(name, dtype=dtype)
        variables = abstract_variables(model)
        # int32 is the number of batches.
        assert {leaf.dtype.name for leaf in jax.tree.leaves(variables)} == {kept, "int32"}
        images = jax.ShapeDtypeStruct((4, 32, 32, 3), jnp.float32)
        logits = jax.eval_shape(lambda v, x: model.apply(v, x, train=False), variables, images)
        assert (logits.dtype, logits.shape) == (dtype, (4, 10))


def test_batch_norm_keeps_torch_statistics(rng):
    x = rng.standard_normal((8, 4, 4, 5), np.float32) * 3 + 2
    layer = BatchNorm()
    variables = layer.init(jax.random.key(0), x, train=False)
    y, updates = layer.apply(variables, x, train=True, mutable=["batch_stats"])
    mean, biased = x.mean((0, 1, 2)), x.var((0, 1, 2))
    np.testing.assert_allclose(y, (x - mean) / np.sqrt(biased + 1e-5), atol=1e-5)
    stats = jax.tree.map(np.asarray, updates["batch_stats"])
    np.testing.assert_allclose(stats["mean"], 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * biased * 128 / 127, rtol=1e-6)
    assert stats["num_batches_tracked"] == 1
    y = layer.apply({**variables, "batch_stats": stats}, x, train=False)
    np.testing.assert_allclose(y, (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-5), atol=1e-5)
    with pytest.raises(ValueError, match="one value per channel"):
        layer.apply(variables, jnp.ones((1, 5)), train=True, mutable=["batch_stats"])


@pytest.mark.parametrize(("window", "padding"), [(2, 0), (3, 1)])
def test_max_pool_equals_numpy(rng, window, padding):
    x = rng.standard_normal((2, 6, 6, 3), np.float32)
    pooled = MaxPool(window, 2, padding).apply({}, x, train=False)
    assert pooled.shape == (2, 3, 3, 3)
    sides = (padding, padding)
    padded = np.pad(x, ((0, 0), sides, sides, (0, 0)), constant_values=-np.inf)
    for i, j in np.ndindex(3, 3):
        pixels = padded[:, 2 * i : 2 * i + window, 2 * j : 2 * j + window]
        np.testing.assert_array_equal(pooled[:, i, j], pixels.max((1, 2)))


def test_dropout_scales_what_it_keeps():
    x = jnp.ones((100, 100))
    y = Dropout(0.25).apply({}, x, train=True, rngs={"dropout": jax.random.key(0)})
    assert set(np.unique(y)) == {0.0, np.float32(1 / 0.75)}
    assert np.mean(np.asarray(y) == 0) == pytest.approx(0.25, abs=0.02)
    np.testing.assert_array_equal(Dropout(0.25).apply({}, x, train=False), x)
