"""The map between torch's state dict and the variables: exact, strict, in both directions."""

import re
from itertools import pairwise

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxcifar.core.models import MODELS, create_model
from jaxcifar.files import torch_names
from jaxcifar.files.torch_names import PortError, to_flax, to_torch
from tests.conftest import assert_same, random_variables


@pytest.mark.parametrize("name", MODELS)
def test_the_map_is_torchs_in_both_directions(name):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    from tests.porting import files, torch_reference

    module, model = torch_reference.random_module(name), create_model(name)
    found = torch_names.identify(module.state_dict(), "x", None, (32, 32, 3), False, None)
    assert (found[0], found[1].num_classes) == (name, 10)
    variables = to_flax(module.state_dict(), model)
    assert_same(variables, torch_reference.to_flax(module.state_dict(), module))
    assert all(leaf.flags.c_contiguous for leaf in jax.tree.leaves(variables))

    back = {key: torch.from_numpy(array) for key, array in to_torch(variables, model).items()}
    files.assert_equal(module.state_dict(), back)


@pytest.mark.parametrize("name", ["vgg16_bn", "resnet50_layer4"])
def test_every_swap_of_two_tensors_changes_the_logits(name, rng):
    """A test of the parity tests, with neighbours of one shape in the tree."""
    variables = flatten_dict(jax.device_put(random_variables(name)))
    images = rng.standard_normal((1, 32, 32, 3), np.float32)
    model = create_model(name)

    @jax.jit
    def apply(variables):
        return model.apply(variables, images, train=False)

    right = apply(unflatten_dict(variables))
    assert np.isfinite(right).all()
    by_shape = {}
    for path, leaf in variables.items():
        if leaf.ndim:  # a count of batches changes no output
            by_shape.setdefault(leaf.shape, []).append(path)
    for first, second in (pair for paths in by_shape.values() for pair in pairwise(paths)):
        swapped = {**variables, first: variables[second], second: variables[first]}
        difference = np.abs(apply(unflatten_dict(swapped)) - right)
        largest = np.nan_to_num(difference, nan=np.inf).max()  # a variance below 0 gives NaN
        assert largest > 2e-5 * np.abs(right).max(), (first, second)


def test_all_that_does_not_fit_is_in_one_error():
    model = create_model("vgg16")
    variables = random_variables("vgg16")
    del variables["params"]["features"]["0"]["bias"]
    variables["params"]["head"] = {"kernel": np.zeros((4, 3), np.float32)}
    variables["params"]["features"]["2"]["kernel"] = np.zeros((5, 5, 64, 64), np.float32)
    words = (
        "1 missing: features.0.bias (64,); 1 unexpected: head.weight (3, 4); "
        "1 of another shape: features.2.weight (64, 64, 5, 5), expected (64, 64, 3, 3)"
    )
    with pytest.raises(PortError, match=re.escape(words)):
        to_torch(variables, model)
    with pytest.raises(PortError, match=re.escape(words)):
        to_flax(torch_names.torch_view(variables), model)
