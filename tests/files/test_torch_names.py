"""The map between torch's state dict and the variables: exact, strict, in both directions."""

from itertools import pairwise

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxcifar.core.models import MODELS, abstract_variables, create_model
from jaxcifar.errors import UserError
from jaxcifar.files import torch_names
from jaxcifar.files.torch_names import PortError, to_flax, to_torch
from tests.conftest import assert_same, loaded_by, random_variables


def draw(name, **options):
    """A random state dict of a model, without torch."""
    return to_torch(random_variables(name, **options), create_model(name, **options))


@pytest.mark.parametrize("name", MODELS)
def test_keys_and_leaves_are_a_bijection(name):
    leaves = torch_names.leaves(create_model(name))
    paths = set(flatten_dict(abstract_variables(create_model(name))))
    assert {leaf.path for leaf in leaves.values()} == paths
    assert len(leaves) == len(paths)


@pytest.mark.parametrize("name", MODELS)
def test_the_map_is_torchs_in_both_directions(name):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    from jaxcifar.porting.torch_models import create_torch_model
    from tests.porting import torch_reference

    module, model = torch_reference.randomize(create_torch_model(name)), create_model(name)
    variables = to_flax(module.state_dict(), model)
    params, batch_stats = torch_reference.to_flax(module.state_dict(), module)
    assert_same(variables, {"params": params, "batch_stats": batch_stats})
    assert all(leaf.flags.c_contiguous for leaf in jax.tree.leaves(variables))

    back = to_torch(variables, model)
    assert list(back) == list(module.state_dict())
    for key, tensor in module.state_dict().items():
        assert back[key].dtype == tensor.numpy().dtype
        assert back[key].tobytes() == tensor.numpy().tobytes()
    tensors = {key: torch.from_numpy(array) for key, array in back.items()}
    create_torch_model(name).load_state_dict(tensors, strict=True)


@pytest.mark.parametrize("name", MODELS)
def test_every_swap_of_two_tensors_changes_the_logits(name, rng):
    """A test of the parity tests: neighbours of one shape in the tree, and random pairs."""
    variables = flatten_dict(random_variables(name))
    images = rng.standard_normal((2, 32, 32, 3), np.float32)
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
    pairs = [pair for paths in by_shape.values() for pair in pairwise(paths)]
    shared = [paths for paths in by_shape.values() if len(paths) > 1]
    pairs += [
        [paths[index] for index in rng.permutation(len(paths))[:2]]
        for paths in shared
        for _ in range(5)
    ]
    for first, second in pairs:
        swapped = {**variables, first: variables[second], second: variables[first]}
        difference = np.abs(apply(unflatten_dict(swapped)) - right)
        largest = np.nan_to_num(difference, nan=np.inf).max()  # a variance below 0 gives NaN
        assert largest > 2e-5 * np.abs(right).max(), (first, second)


def test_all_that_does_not_fit_is_in_one_error():
    state_dict = draw("vgg16")
    del state_dict["features.0.bias"], state_dict["classifier.2.running_var"]
    state_dict["head.weight"] = np.zeros((3, 4), np.float32)
    state_dict["features.2.weight"] = np.zeros((64, 64, 5, 5), np.float32)
    with pytest.raises(PortError) as caught:
        to_flax(state_dict, create_model("vgg16"))
    error = caught.value
    assert error.missing == {"features.0.bias": (64,), "classifier.2.running_var": (512,)}
    assert error.unexpected == {"head.weight": (3, 4)}
    assert error.misshaped == {"features.2.weight": ((64, 64, 5, 5), (64, 64, 3, 3))}
    assert str(error) == (
        "not the model's state dict: 2 missing: features.0.bias (64,),"
        " classifier.2.running_var (512,); 1 unexpected: head.weight (3, 4);"
        " 1 of another shape: features.2.weight (64, 64, 5, 5), expected (64, 64, 3, 3)"
    )


def test_variables_that_do_not_fit_are_refused():
    variables = to_flax(draw("vgg16"), create_model("vgg16"))
    del variables["params"]["features"]["0"]["kernel"]
    variables["params"]["features"]["2"]["kernel"] = np.zeros((3, 3, 64, 32), np.float32)
    with pytest.raises(PortError) as caught:
        to_torch(variables, create_model("vgg16"))
    assert caught.value.missing == {"features.0.weight": (64, 3, 3, 3)}
    assert caught.value.misshaped == {"features.2.weight": ((32, 64, 3, 3), (64, 64, 3, 3))}


@pytest.mark.parametrize("name", MODELS)
def test_the_model_is_identified_by_its_keys(name):
    assert torch_names.identify(draw(name), None, "x") == (name, 10)
    assert torch_names.identify(draw(name, num_classes=7), None, "x") == (name, 7)
    assert torch_names.identify(draw(name), name, "x") == (name, 10)


def test_another_model_is_told_apart():
    with pytest.raises(UserError, match=r"x\.ckpt is vgg16_bn, not vgg16: use --model vgg16_bn"):
        torch_names.identify(draw("vgg16_bn"), "vgg16", "x.ckpt")
    state_dict = draw("vgg16")
    state_dict["features.30.weight"] = state_dict.pop("features.28.weight")
    with pytest.raises(PortError, match="is no known model; the nearest is vgg16: 1 missing"):
        torch_names.identify(state_dict, None, "x.ckpt")
    with pytest.raises(PortError, match="is not resnet50_layer4: 373 missing"):
        torch_names.identify(state_dict, "resnet50_layer4", "x.ckpt")


def test_values_and_strides_survive():
    wide = np.zeros((64, 4), np.float16)
    wide[:, 1] = np.linspace(-2, 2, 64)
    model, state_dict = create_model("vgg16"), draw("vgg16")
    state_dict["features.0.bias"] = wide[:, 1]
    state_dict["features.2.bias"] = np.array([0.5, np.nan, np.inf, -0.0] * 16)
    state_dict["features.5.weight"] = state_dict["features.5.weight"][:, ::-1]
    back = to_torch(to_flax(state_dict, model), model, dtypes={"features.0.bias": "float16"})
    assert_same(back, state_dict)
    assert back["features.0.bias"].tobytes() == wide[:, 1].tobytes()
    for array in (np.full(64, 1 / 3), np.full(64, 1e300), np.ones(64, np.int8)):
        with pytest.raises(UserError, match=rf"features.0.bias is {array.dtype} and not exact"):
            to_flax(state_dict | {"features.0.bias": array}, model)


def test_the_map_and_the_port_load_no_torch():
    assert loaded_by("jaxcifar.port, jaxcifar.files.weights", ("torch",)) == []
