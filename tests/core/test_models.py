"""Layers, parameter counts, names, initialisers and dtypes of the models."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcifar.core.layers import BatchNorm, Dropout, MaxPool
from jaxcifar.core.models import MODELS, abstract_variables, create_model
from jaxcifar.core.vgg import CONFIGURATION
from tests.conftest import loaded_by

SEPARATOR = "/"


def flat(tree):
    return {
        SEPARATOR.join(str(key.key) for key in path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


@pytest.fixture(scope="module")
def drawn():
    """Freshly initialised parameters of each model."""
    images = jnp.zeros((1, 32, 32, 3))
    return {
        name: flat(
            jax.jit(partial(create_model(name).init, train=False))(jax.random.key(0), images)[
                "params"
            ]
        )
        for name in MODELS
    }


@pytest.mark.parametrize(
    ("name", "parameters", "statistics", "entries"),
    [
        ("vgg16", 14_983_498, 3, 35),
        ("vgg16_bn", 14_991_946, 42, 100),
        ("resnet50_layer4", 14_750_730, 159, 373),
    ],
)
def test_counts(name, parameters, statistics, entries):
    variables = abstract_variables(create_model(name))
    params, stats = flat(variables["params"]), flat(variables["batch_stats"])
    assert sum(leaf.size for leaf in params.values()) == parameters
    assert len(stats) == statistics
    assert len(params) + len(stats) == entries  # of torch's state dict


def vgg16_names():
    names = {f"classifier/{i}/{p}" for i in (1, 5) for p in ("kernel", "bias")}
    names |= {"classifier/2/scale", "classifier/2/bias"}
    convs = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
    return names | {f"features/{i}/{p}" for i in convs for p in ("kernel", "bias")}


def resnet_names():
    units = ["layer1"]
    for layer, blocks, down in (("layer2", 3, 2), ("layer3", 4, 3), ("layer4", 6, None)):
        for block in range(blocks):
            shortcut = "downsize" if block == down else "make_equal_channel"
            units += [f"{layer}/{block}/layer/{unit}" for unit in range(3)]
            units.append(f"{layer}/{block}/{shortcut}")
    leaves = ("0/kernel", "0/bias", "1/scale", "1/bias")
    return {f"{u}/{leaf}" for u in units for leaf in leaves} | {"fc/kernel", "fc/bias"}


@pytest.mark.parametrize(
    ("name", "expected"), [("vgg16", vgg16_names()), ("resnet50_layer4", resnet_names())]
)
def test_the_tree_carries_the_state_dict_names(name, expected):
    assert set(flat(abstract_variables(create_model(name))["params"])) == expected


def test_vgg_configuration():
    letters = " ".join(str(features or "M") for features in CONFIGURATION)
    assert letters == ("64 64 M 128 128 M 256 256 256 M 512 512 512 M 512 512 512 M")


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


@pytest.mark.parametrize("name", ["vgg16", "vgg16_bn"])
def test_vgg_initialisers(drawn, name):
    for path, leaf in drawn[name].items():
        if leaf.ndim == 4:
            assert_normal(leaf, np.sqrt(2 / (3 * 3 * leaf.shape[-1])))
        elif path.startswith(("classifier/1/", "classifier/5/")):
            assert_uniform(leaf, 1 / np.sqrt(512))
        else:
            np.testing.assert_array_equal(leaf, 1 if path.endswith("scale") else 0)


def test_resnet_initialisers(drawn):
    params = drawn["resnet50_layer4"]
    for path, leaf in params.items():
        if path.endswith("kernel"):
            receptive, (fan_in, fan_out) = np.prod(leaf.shape[:-2]), leaf.shape[-2:]
            assert_uniform(leaf, np.sqrt(6 / (receptive * (fan_in + fan_out))))
        elif path.endswith(("0/bias", "fc/bias")):
            kernel = params[path.replace("bias", "kernel")]
            assert_uniform(leaf, 1 / np.sqrt(np.prod(kernel.shape[:-1])))
        else:
            np.testing.assert_array_equal(leaf, 1 if path.endswith("scale") else 0)


def test_num_classes_and_dropout_are_arguments():
    variables = abstract_variables(create_model("vgg16", num_classes=7))
    assert variables["params"]["classifier"]["5"]["kernel"].shape == (512, 7)
    variables = abstract_variables(create_model("resnet50_layer4", num_classes=7))
    assert variables["params"]["fc"]["kernel"].shape == (1024, 7)
    assert create_model("vgg16", dropout_rate=0.25).dropout_rate == 0.25
    with pytest.raises(ValueError, match="unknown model 'vgg17': choose one of vgg16, "):
        create_model("vgg17")


def dtypes(variables):
    """Of parameters and statistics; the count of batches is an integer."""
    return {leaf.dtype.name for leaf in jax.tree.leaves(variables)}


@pytest.mark.parametrize("name", MODELS)
def test_bfloat16_computes_in_bfloat16_and_keeps_float32(name):
    model = create_model(name, dtype=jnp.bfloat16)
    variables = abstract_variables(model)
    assert dtypes(variables) == {"float32", "int32"}
    images = jax.ShapeDtypeStruct((4, 32, 32, 3), jnp.float32)
    logits = jax.eval_shape(lambda v, x: model.apply(v, x, train=False), variables, images)
    assert logits.dtype == jnp.bfloat16
    assert logits.shape == (4, 10)


def test_float64_is_float64_throughout():
    with jax.enable_x64(True):
        for name in MODELS:
            model = create_model(name, dtype=jnp.float64)
            variables = abstract_variables(model)
            assert dtypes(variables) == {"float64", "int32"}
            logits = jax.eval_shape(
                lambda v, m=model: m.apply(v, jnp.zeros((2, 32, 32, 3)), train=False), variables
            )
            assert logits.dtype == jnp.float64


def test_batch_norm_keeps_torch_statistics(rng):
    x = rng.standard_normal((8, 4, 4, 5), np.float32) * 3 + 2
    layer = BatchNorm()
    variables = layer.init(jax.random.key(0), x, train=False)
    y, updates = layer.apply(variables, x, train=True, mutable=["batch_stats"])
    mean, biased = x.mean((0, 1, 2)), x.var((0, 1, 2))
    np.testing.assert_allclose(y, (x - mean) / np.sqrt(biased + 1e-5), atol=1e-5)
    stats = updates["batch_stats"]
    np.testing.assert_allclose(stats["mean"], 0.1 * mean, rtol=1e-5)
    unbiased = biased * 128 / 127
    np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * unbiased, rtol=1e-6)
    assert stats["num_batches_tracked"] == 1
    y = layer.apply({**variables, "batch_stats": stats}, x, train=False)
    np.testing.assert_allclose(
        y, (x - np.asarray(stats["mean"])) / np.sqrt(np.asarray(stats["var"]) + 1e-5), atol=1e-5
    )


def test_batch_norm_refuses_a_single_value():
    layer, x = BatchNorm(), jnp.ones((1, 5))
    variables = layer.init(jax.random.key(0), x, train=False)
    with pytest.raises(ValueError, match="one value per channel"):
        layer.apply(variables, x, train=True, mutable=["batch_stats"])


def test_max_pool_equals_numpy(rng):
    x = rng.standard_normal((2, 6, 6, 3), np.float32)
    pooled = MaxPool(2, 2).apply({}, x, train=False)
    np.testing.assert_array_equal(pooled, x.reshape(2, 3, 2, 3, 2, 3).max((2, 4)))
    pooled = MaxPool(3, 2, 1).apply({}, x, train=False)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    for i in range(3):
        for j in range(3):
            window = padded[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
            np.testing.assert_array_equal(pooled[:, i, j], window.max((1, 2)))


def test_dropout_scales_what_it_keeps():
    x = jnp.ones((100, 100))
    y = Dropout(0.25).apply({}, x, train=True, rngs={"dropout": jax.random.key(0)})
    assert set(np.unique(y)) == {0.0, np.float32(1 / 0.75)}
    assert np.mean(np.asarray(y) == 0) == pytest.approx(0.25, abs=0.02)
    np.testing.assert_array_equal(Dropout(0.25).apply({}, x, train=False), x)


def test_import_is_light():
    heavy = ("jax", "torch", "tensorflow", "sklearn")
    assert loaded_by("jaxcifar, jaxcifar.train", heavy) == []
