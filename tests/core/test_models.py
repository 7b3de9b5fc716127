"""Initializers, the dtype of parameters, and dropout; the rest is compared with torch."""

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from scipy.stats import kstest, norm, uniform

from jaxcifar.core.models import create_model
from jaxcifar.core.state import create_state, host_key, make_optimizer

UNIFORM = uniform(-1, 2)  # from -1 to 1


def assert_drawn(distribution, values, scale):
    values = np.ravel(values)[:100_000] / scale
    assert kstest(values, distribution.cdf).pvalue > 1e-6  # as rare as five deviations


@pytest.mark.parametrize("name", ["vgg16_bn", "resnet50_layer4"])
def test_initializers(name):
    model = create_model(name, dtype="bfloat16")  # of the computation, not of the parameters
    state = create_state(host_key(0), model, make_optimizer(1e-3))
    params = flatten_dict(state.params, sep="/")
    for path, leaf in params.items():
        layer, _, leaf_name = path.rpartition("/")
        assert leaf.dtype == np.float32
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


def test_the_hosts_numbers_are_those_of_the_key():
    keys = (key := host_key(0)), *jax.random.split(key), jax.random.fold_in(key, 1), host_key(1)
    draws = np.stack([jax.random.normal(key, (3,)) for key in keys])
    assert len({*draws.ravel().tolist()}) == draws.size
    draw = jax.jit(jax.vmap(lambda key: jax.random.normal(key, (3,))))
    np.testing.assert_array_equal(draw(jax.numpy.stack(keys)), draws)
