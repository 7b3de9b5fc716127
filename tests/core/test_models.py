"""Layers, parameter counts, names, initializers and dtypes of the models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from scipy.stats import kstest, norm, uniform

from jaxcifar.core import models
from jaxcifar.core.models import MODELS, abstract_variables, create_model
from jaxcifar.core.state import create_state, make_optimizer
from jaxcifar.layers import BatchNorm, Dropout

UNIFORM = uniform(-1, 2)  # from -1 to 1


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
    assert (len(stats), len(params) + len(stats)) == (statistics, entries)


def assert_drawn(distribution, values, scale):
    values = np.ravel(values)[:100_000] / scale
    assert kstest(values, distribution.cdf).pvalue > 1e-6  # as rare as five deviations


@pytest.mark.parametrize("name", ["vgg16_bn", "resnet50_layer4"])
def test_initializers(name, monkeypatch):
    # Layers of a kind have one initializer, and compiling those of all layers takes long.
    monkeypatch.setattr(models, "VGG16_FEATURES", (64, 512, *[models.POOL] * 5))
    monkeypatch.setattr(models, "RESNET_BLOCKS", {"layer2": ((64, 256, 2),)})
    state = create_state(jax.random.key(0), create_model(name), make_optimizer(1e-3))
    params = flatten_dict(state.params, sep="/")
    for path, leaf in params.items():
        layer, _, leaf_name = path.rpartition("/")
        kernel = params.get(f"{layer}/kernel")
        if kernel is None:  # of a batch norm
            np.testing.assert_array_equal(leaf, leaf_name == "scale")
        elif leaf.ndim == 4 and name != "resnet50_layer4":
            assert_drawn(norm, leaf, np.sqrt(2 / (3 * 3 * leaf.shape[-1])))
        elif kernel.ndim == 4 and name != "resnet50_layer4":
            np.testing.assert_array_equal(leaf, 0)
        elif leaf_name == "kernel" and name == "resnet50_layer4":
            receptive = np.prod(leaf.shape[:-2])
            assert_drawn(UNIFORM, leaf, np.sqrt(6 / (receptive * sum(leaf.shape[-2:]))))
        else:
            assert_drawn(UNIFORM, leaf, 1 / np.sqrt(np.prod(kernel.shape[:-1])))


def test_an_unknown_model_is_refused():
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


def test_batch_norm_refuses_to_train_on_one_value_per_channel():
    with pytest.raises(ValueError, match="one value per channel"):
        BatchNorm().init(jax.random.key(0), jnp.ones((1, 5)), train=True)


def test_dropout_scales_what_it_keeps():
    x = jnp.ones((100, 100))
    y = Dropout(0.25).apply({}, x, train=True, rngs={"dropout": jax.random.key(0)})
    assert set(np.unique(y)) == {0.0, np.float32(1 / 0.75)}
    assert np.mean(np.asarray(y) == 0) == pytest.approx(0.25, abs=0.02)
    np.testing.assert_array_equal(Dropout(0.25).apply({}, x, train=False), x)
