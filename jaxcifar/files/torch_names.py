"""Torch's state dicts as variables, and back: only the last names and the axes of leaves change."""

import math
import reprlib
from collections.abc import Mapping
from functools import cache
from typing import Any

import flax.linen as nn
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxcifar.core.models import INPUT_SHAPE, MODELS, abstract_variables
from jaxcifar.errors import UserError, did_you_mean, first_few, log
from jaxcifar.files import networks, torch_files
from jaxcifar.files.torch_match import Leaf, Leaves, Match, PortError, Shape, Tensors, check, match

TORCH_NAMES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
TORCH_AXES = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,), 0: ()}  # by rank: our axes in torch's order
ADAM: dict[str, list[Any]] = {"betas": [(0.9, 0.999), [0.9, 0.999]], "eps": [1e-8]}
ADAM |= {"weight_decay": [0], "amsgrad": [False], "maximize": [False]}  # of make_optimizer


@cache
def leaves(model: nn.Module, input_shape: Shape = INPUT_SHAPE) -> Leaves:
    """Return the model's leaves by their torch keys, in the order of torch's state dict."""
    modules: dict[tuple[str, ...], dict[str, Leaf]] = {}
    try:
        variables = flatten_dict(abstract_variables(model, input_shape))
    except Exception as error:  # the user's code may raise anything
        network, reason = type(model).__name__, f"{type(error).__name__}: {error}"
        raise UserError(f"{network} fails on images of {input_shape}: {reason:.300}") from error
    for path, leaf in variables.items():
        shape = tuple(leaf.shape[axis] for axis in TORCH_AXES[leaf.ndim])
        modules.setdefault(path[1:-1], {})[_key(path)] = Leaf(path, shape, leaf.dtype)
    return {key: leaf for module in modules.values() for key, leaf in module.items()}


def identify(
    tensors: Tensors, source: object, model: str | None, shape: Shape, ema: bool, prefix: str | None
) -> tuple[str, Match]:
    """Return the name of the model that the tensors are of, and where they are, as ``match``."""
    errors = []
    for name in [model, *MODELS] if model in MODELS else [model] if model else MODELS:
        problem = f"is not {name}" if model else f"is no known model; the nearest is {name}"

        def network(num_classes: int, name: str = name) -> Leaves:
            return leaves(networks.create(name, num_classes=num_classes), shape)

        try:
            found = match(tensors, network, source, problem, ema, prefix)
        except PortError as error:
            errors.append(error)
            continue
        if model not in (None, name):
            raise UserError(f"{source} is {name}, not {model}: use --model {name}")
        return name, found
    if not model:
        raise min(errors, key=lambda error: sum(map(len, error.problems.values())))
    ours, theirs = ([*errors[0].problems[kind]][:500] for kind in ("missing", "unexpected"))
    for side, keys, others in (("network", ours, theirs), ("file", theirs, ours)):
        for key in keys:
            log.info("only the %s has %s%s", side, key, did_you_mean(key, others))
    raise errors[0]


def to_flax(
    tensors: Mapping[str, Any], model: nn.Module, *, input_shape: Shape = INPUT_SHAPE
) -> dict[str, Any]:
    """Map a state dict, of numpy arrays or CPU tensors, to ``{"params": ..., "batch_stats": ...}``.

    Returns new arrays in the model's dtypes. Raises ``PortError`` if keys or shapes do not fit.
    """
    if not isinstance(tensors, Mapping):
        raise UserError(f"a {type(tensors).__name__} is no state dict: pass model.state_dict()")
    flat, _ = torch_files.flatten(tensors)
    expected, source = leaves(model, input_shape), "the state dict"
    found = match(flat, lambda _: expected, source, "is not the model's", False, None)
    return to_tree(found.tensors, expected, source)[0]


def to_tree(
    tensors: Tensors, expected: Leaves, source: object
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return tensors of fitting shapes as variables; counts that are missing are 0.

    Beside them the arrays that they were; what is not exact in the model's dtypes is cast in both.
    """
    tree, arrays, rounded = {}, {}, list[str]()
    for key, leaf in expected.items():
        array = torch_files.to_numpy(f"{source}: {key}", tensors.get(key, np.zeros((), leaf.dtype)))
        array = array[0, ...] if array.ndim and not leaf.shape else array
        ours = array.transpose(np.argsort(TORCH_AXES[len(leaf.shape)]))
        tree[leaf.path], exact = convert(ours, leaf.dtype)
        if not exact:
            rounded.append(f"{key} ({array.dtype})")
            array = tree[leaf.path].transpose(TORCH_AXES[array.ndim])
        arrays[key] = array
    if rounded:
        log.info("%s: rounded to the model's dtypes, as in torch: %s", source, first_few(rounded))
    return unflatten_dict(tree), {key: arrays[key] for key in tensors}


def to_torch(
    variables: Mapping[str, Any],
    model: nn.Module,
    *,
    input_shape: Shape = INPUT_SHAPE,
    dtypes: Mapping[str, str] | None = None,
) -> dict[str, np.ndarray]:
    """Map ``{"params": ..., "batch_stats": ...}`` to a state dict, in torch's order of keys.

    Returns C-contiguous arrays in torch's usual dtypes, or ``dtypes``; an empty one drops a key.
    """
    expected, arrays = leaves(model, input_shape), torch_view(variables)
    check("not the model's variables", expected, arrays)
    names = {k: "int64" if leaf.dtype.kind == "i" else leaf.dtype for k, leaf in expected.items()}
    names |= dtypes or {}
    state_dict = {}
    for key, dtype in names.items():
        if dtype:
            state_dict[key], exact = convert(arrays[key], np.dtype(dtype))
            if not exact:
                raise UserError(f"{key} is not exact in {dtype}: convert it with torch")
    return state_dict


def torch_view(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return views of the variables under torch's keys and in its axes, unchecked."""
    arrays = {_key(path): np.asarray(leaf) for path, leaf in flatten_dict(variables).items()}
    return {key: a.transpose(TORCH_AXES.get(a.ndim, range(a.ndim))) for key, a in arrays.items()}


def _key(path: tuple[str, ...]) -> str:
    _, *module, name = path
    return ".".join([*module, TORCH_NAMES.get(name, name)])


def adam_to_flax(optimizers: list[Any], model: Leaves) -> tuple[optax.ScaleByAdamState, float]:
    """Map the state dict of a ``torch.optim.Adam``; also return its next update's learning rate.

    Parameters are matched by ``param_names`` if torch has saved them, else by their order.
    """
    [optimizer] = optimizers
    groups, states = optimizer["param_groups"], optimizer["state"]
    for name, usual in ADAM.items():
        for value in (group.get(name, usual[0]) for group in groups):
            if value not in usual:
                raise UserError(f"it has {name} {reprlib.repr(value)}, training has {usual[0]}")
    expected = {key: leaf for key, leaf in model.items() if leaf.path[0] == "params"}
    indices = [index for group in groups for index in group["params"]]
    if len(indices) != len(expected) or set(states) != set(indices):
        problem = f"it has a state for {len(states)} of {len(indices)} parameters"
        raise UserError(f"{problem}, the model has {len(expected)}")
    names = [name for group in groups for name in group.get("param_names", ())]
    names = names if set(names) == set(expected) else [*expected]
    steps = sorted({float(np.asarray(state["step"])) for state in states.values()})
    rates = sorted({float(np.asarray(group["lr"])) for group in groups})
    if len(steps) > 1 or len(rates) > 1 or not (0 <= steps[0] < 2**31 and 0 <= rates[0] < math.inf):
        raise UserError(f"it has steps {steps} and rates {rates}: expected one of each")
    moments = []
    for which in ("exp_avg", "exp_avg_sq"):
        tensors = {name: states[index][which] for name, index in zip(names, indices, strict=True)}
        check(f"its {which} is not the model's", expected, tensors)
        moments.append(to_tree(tensors, expected, which)[0]["params"])
    count: Any = np.asarray(steps[0], np.int32)
    return optax.ScaleByAdamState(count, *moments), rates[0]


def convert(array: np.ndarray, dtype: np.dtype) -> tuple[np.ndarray, bool]:
    """Return an array in another dtype, C-contiguous, and whether all values are the same."""
    with np.errstate(all="ignore"):  # what overflows is not exact
        if (array.dtype.name, dtype.name) == ("float32", "bfloat16"):
            bits = array.view("u4") >> 16  # astype would lose a NaN's payload
            result = bits.astype("u2", order="C").view(dtype)
        else:
            result = array.real.astype(dtype, order="C")
        return result, np.array_equal(result.real.astype(array.dtype), array, equal_nan=True)
