"""The map between torch's state dict and our variables: exact, strict, both ways."""

from itertools import pairwise

import jax
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxcifar.core.models import MODELS, abstract_variables, create_model
from jaxcifar.errors import UserError
from jaxcifar.files import torch_names as torch_port
from jaxcifar.files.torch_names import PortError
from tests.conftest import loaded_by


def draw(name, seed=0, **options):
    """A random state dict of a model, without torch."""
    rng = np.random.default_rng(seed)
    return {
        key: np.asarray(rng.integers(1, 10**6), np.int64)
        if leaf.dtype.kind == "i"
        else rng.uniform(0.1, 1, leaf.shape).astype(np.float32)
        for key, leaf in torch_port.leaves(create_model(name, **options)).items()
    }


@pytest.mark.parametrize("name", MODELS)
def test_keys_and_leaves_are_a_bijection(name):
    leaves = torch_port.leaves(create_model(name))
    paths = set(flatten_dict(abstract_variables(create_model(name))))
    assert {leaf.path for leaf in leaves.values()} == paths
    assert len(leaves) == len(paths)


@pytest.mark.parametrize("name", MODELS)
def test_the_port_is_the_map_of_torch_both_ways(name):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    from jaxcifar.porting.torch_models import create_torch_model
    from tests.porting import torch_reference

    module = torch_reference.randomize(create_torch_model(name))
    state_dict = {key: tensor.numpy() for key, tensor in module.state_dict().items()}
    model = create_model(name)
    variables = torch_port.to_flax(state_dict, model)
    params, batch_stats = torch_reference.to_flax(module.state_dict(), module)
    jax.tree.map(
        np.testing.assert_array_equal, variables, {"params": params, "batch_stats": batch_stats}
    )

    back = torch_port.to_torch(variables, model)
    assert list(back) == list(state_dict)
    for key, array in back.items():
        assert array.dtype == state_dict[key].dtype
        assert array.tobytes() == state_dict[key].tobytes()
    fresh = create_torch_model(name)
    tensors = {key: torch.from_numpy(array) for key, array in back.items()}
    assert str(fresh.load_state_dict(tensors, strict=True)) == "<All keys matched successfully>"


@pytest.mark.parametrize("name", MODELS)
def test_every_swap_of_two_tensors_changes_the_logits(name, rng):
    """A test of the parity tests: neighbours of one shape in the tree, and random pairs."""
    variables = flatten_dict(torch_port.to_flax(draw(name), create_model(name)))
    images = rng.standard_normal((2, 32, 32, 3), np.float32)
    model = create_model(name)

    @jax.jit
    def apply(variables):
        return model.apply(variables, images, train=False)

    for path, leaf in variables.items():
        if path[-1] == "kernel":  # all-positive ones would saturate every layer
            fan_in = np.prod(leaf.shape[:-1])
            variables[path] = rng.normal(0, np.sqrt(2 / fan_in), leaf.shape).astype(np.float32)
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
        wrong = apply(unflatten_dict(swapped))
        assert np.abs(wrong - right).max() > 2e-5 * np.abs(right).max(), (first, second)


def test_all_that_does_not_fit_is_in_one_error():
    state_dict = draw("vgg16")
    del state_dict["features.0.bias"], state_dict["classifier.2.running_var"]
    state_dict["head.weight"] = np.zeros((3, 4), np.float32)
    state_dict["features.2.weight"] = np.zeros((64, 64, 5, 5), np.float32)
    with pytest.raises(PortError) as caught:
        torch_port.to_flax(state_dict, create_model("vgg16"))
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
    variables = torch_port.to_flax(draw("vgg16"), create_model("vgg16"))
    del variables["params"]["features"]["0"]["kernel"]
    variables["params"]["features"]["2"]["kernel"] = np.zeros((3, 3, 64, 32), np.float32)
    with pytest.raises(PortError) as caught:
        torch_port.to_torch(variables, create_model("vgg16"))
    assert caught.value.missing == {"features.0.weight": (64, 3, 3, 3)}
    assert caught.value.misshaped == {"features.2.weight": ((32, 64, 3, 3), (64, 64, 3, 3))}


@pytest.mark.parametrize("name", MODELS)
def test_the_model_is_found_by_its_keys(name):
    assert torch_port.identify(draw(name)) == (name, 10)
    assert torch_port.identify(draw(name, num_classes=7)) == (name, 7)
    assert torch_port.identify(draw(name), name) == (name, 10)


def test_another_model_is_told_apart():
    with pytest.raises(
        UserError, match=r"x\.ckpt is vgg16_bn, not vgg16: ask for --model vgg16_bn"
    ):
        torch_port.identify(draw("vgg16_bn"), "vgg16", source="x.ckpt")
    state_dict = draw("vgg16")
    state_dict["features.30.weight"] = state_dict.pop("features.28.weight")
    with pytest.raises(PortError, match="is no known model; the nearest is vgg16: 1 missing"):
        torch_port.identify(state_dict)
    with pytest.raises(PortError, match="is not resnet50_layer4: 373 missing"):
        torch_port.identify(state_dict, "resnet50_layer4")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full(64, 1 / 3), "is float64 and cannot become float32 without a change"),
        (np.full(64, 1e300), "is float64 and cannot become float32 without a change"),
        (np.ones(64, np.int8), "is int8 and cannot become float32 without a change"),
    ],
)
def test_a_value_never_changes(array, message):
    state_dict = draw("vgg16") | {"features.0.bias": array}
    with pytest.raises(UserError, match=f"features.0.bias {message}"):
        torch_port.to_flax(state_dict, create_model("vgg16"))


def test_exact_conversions_and_odd_strides():
    wide = np.zeros((64, 4), np.float16)
    wide[:, 1] = np.linspace(-2, 2, 64)
    state_dict = draw("vgg16") | {
        "features.0.bias": wide[:, 1],
        "features.2.bias": np.array([0.5, np.nan, np.inf, -0.0] * 16),
        "features.5.weight": draw("vgg16")["features.5.weight"][:, ::-1],
    }
    variables = torch_port.to_flax(state_dict, create_model("vgg16"))
    features = variables["params"]["features"]
    np.testing.assert_array_equal(features["0"]["bias"], wide[:, 1].astype(np.float32))
    np.testing.assert_array_equal(features["2"]["bias"], state_dict["features.2.bias"])
    assert all(leaf.flags.c_contiguous for leaf in jax.tree.leaves(variables))
    back = torch_port.to_torch(
        variables, create_model("vgg16"), dtypes={"features.0.bias": "float16"}
    )
    assert back["features.0.bias"].tobytes() == wide[:, 1].tobytes()
    np.testing.assert_array_equal(back["features.5.weight"], state_dict["features.5.weight"])


def optimizer_state(model, step=5, **group):
    """What ``torch.optim.Adam.state_dict`` gives, in numpy."""
    leaves = [leaf for leaf in torch_port.leaves(model).values() if leaf.path[0] == "params"]
    rng = np.random.default_rng(1)
    state = {
        index: {
            "step": np.float32(step),
            "exp_avg": rng.standard_normal(leaf.shape, np.float32),
            "exp_avg_sq": rng.random(leaf.shape, np.float32),
        }
        for index, leaf in enumerate(leaves)
    }
    defaults = {"lr": 1e-4, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0}
    return {"state": state, "param_groups": [defaults | group | {"params": list(state)}]}


@pytest.mark.parametrize("name", MODELS)
def test_adam_is_ported_by_the_rule_of_its_parameters(name):
    model = create_model(name)
    optimizer = optimizer_state(model)
    state, learning_rate = torch_port.adam_to_flax(optimizer, model)
    assert (state.count, learning_rate) == (5, 1e-4)
    moments = torch_port.torch_view({"params": state.mu})
    for index, key in enumerate(key for key in torch_port.leaves(model) if key in moments):
        np.testing.assert_array_equal(moments[key], optimizer["state"][index]["exp_avg"])
    params = abstract_variables(model)["params"]
    fresh = jax.eval_shape(optax.adam(1e-3).init, params)[0]
    assert jax.tree.map(np.shape, state) == jax.tree.map(np.shape, fresh)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight_decay": 0.1}, "weight_decay 0.1, training has 0"),
        ({"betas": (0.5, 0.999)}, "betas"),
        ({"amsgrad": True}, "amsgrad True"),
    ],
)
def test_another_adam_is_refused(change, message):
    model = create_model("vgg16")
    with pytest.raises(UserError, match=message):
        torch_port.adam_to_flax(optimizer_state(model, **change), model)


def test_parameters_in_another_order_are_told_by_their_names_or_refused():
    model = create_model("vgg16")
    right, _ = torch_port.adam_to_flax(optimizer_state(model), model)
    names = [key for key, leaf in torch_port.leaves(model).items() if leaf.path[0] == "params"]
    optimizer = optimizer_state(model)
    group = optimizer["param_groups"][0]
    group["params"] = group["params"][::-1]
    with pytest.raises(UserError, match="does not have its parameters in the model's order"):
        torch_port.adam_to_flax(optimizer, model)
    group["param_names"] = names[::-1]
    named, _ = torch_port.adam_to_flax(optimizer, model)
    jax.tree.map(np.testing.assert_array_equal, named, right)


def test_a_state_that_does_not_fit_is_refused():
    model = create_model("vgg16")
    missing, uneven, sgd = (optimizer_state(model) for _ in range(3))
    del missing["state"][3]
    uneven["state"][3]["step"] = np.float32(6)
    sgd["state"] = {index: {"momentum_buffer": None} for index in sgd["state"]}
    for optimizer, message in (
        (missing, "a state for 31 of 32 parameters"),
        (uneven, r"differ in steps \[5.0, 6.0\]"),
        (sgd, "is not Adam"),
        ({"state": {}}, "no param_groups"),
        (optimizer_state(create_model("vgg16_bn")), "the model has"),
    ):
        with pytest.raises(UserError, match=message):
            torch_port.adam_to_flax(optimizer, model)


def test_the_port_needs_no_torch():
    port = "jaxcifar.torch_port, jaxcifar.weights, jaxcifar.torch_files"
    assert loaded_by(port, ("torch",)) == []
