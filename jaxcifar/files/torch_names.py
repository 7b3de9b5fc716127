"""The map between a torch state dict and a model's variables, in both directions, without torch.

The path of a leaf is its key: only its last name (``TORCH_NAMES``) and the order of its axes
(``TORCH_AXES``) are translated. Keys and shapes are checked before anything is mapped.
"""

import logging
import math
import reprlib
from collections.abc import Mapping
from functools import cache
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxcifar.core.models import INPUT_SHAPE, MODELS, abstract_variables
from jaxcifar.errors import UserError, first_few
from jaxcifar.files import networks, torch_files
from jaxcifar.files.torch_match import BATCHES, Leaf, Leaves, Match, PortError, match

log = logging.getLogger(__name__)
TORCH_NAMES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
TORCH_AXES = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,), 0: ()}  # by rank: our axes in torch's order
MAX_CLASSES = 100_000  # a file of a few bytes can claim a tensor that fills the memory
ADAM: dict[str, Any] = {"betas": (0.9, 0.999), "eps": 1e-8}  # of core.state.make_optimizer
ADAM |= {"weight_decay": 0, "amsgrad": False, "maximize": False}


Shape = tuple[int, ...]


def leaves(model: nn.Module, input_shape: Shape = INPUT_SHAPE) -> Leaves:
    """Return the model's leaves by their torch keys, in the order of torch's state dict."""
    return _leaves(model, input_shape, jnp.result_type(float))


@cache
def _leaves(model: nn.Module, input_shape: Shape, widest: np.dtype) -> Leaves:  # float64 under x64
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
    tensors: Mapping[str, Any],
    source: object,
    model: str | None = None,
    *,
    input_shape: Shape = INPUT_SHAPE,
    ema: bool = False,
    prefix: str | None = None,
) -> tuple[str, int, Match]:
    """Return the name and number of classes of the model that the tensors are of, and where.

    ``model`` is the expected one; ``ema`` and ``prefix`` choose among several copies. Raises as
    ``match``.
    """

    def find(name: str) -> tuple[str, int, Match]:
        problem = f"is not {name}" if model else f"is no known model; the nearest is {name}"
        expected = leaves(networks.create(name), input_shape)
        found = match(tensors, expected, source, problem, ema=ema, prefix=prefix)
        *_, last = expected
        num_classes = next(iter(tensors[found.keys[last]].shape), 0) or 10
        if num_classes > MAX_CLASSES:
            raise UserError(f"{source} has {num_classes} classes, at most {MAX_CLASSES} can be")
        network = networks.create(name, num_classes=num_classes)
        copy = {key: tensors[name] for key, name in found.keys.items()}
        check(f"{source} {problem}", leaves(network, input_shape), copy)
        return name, num_classes, found

    errors = []
    for name in (model,) if model else MODELS:
        try:
            return find(name)
        except PortError as error:
            errors.append(error)
    for name in MODELS if model in MODELS else ():
        try:
            find(name)
        except UserError:
            continue
        raise UserError(f"{source} is {name}, not {model}: use --model {name}")
    raise min(errors, key=lambda e: len(e.missing) + len(e.unexpected) + len(e.misshaped))


def check(what: str, expected: Leaves, tensors: Mapping[str, Any]) -> None:
    """Raise ``PortError`` if the tensors do not have the expected keys and shapes."""
    error = PortError(what, expected, tensors)
    if error.missing or error.unexpected or error.misshaped:
        raise error


def to_flax(
    tensors: Mapping[str, Any],
    model: nn.Module,
    *,
    input_shape: Shape = INPUT_SHAPE,
    only: str | None = None,
) -> dict[str, Any]:
    """Map a state dict, of numpy arrays or CPU tensors, to ``{"params": ..., "batch_stats": ...}``.

    ``only`` is the one collection that it has. Returns new C-contiguous numpy arrays in the model's
    dtypes. Raises ``PortError`` if keys do not fit, ``UserError`` if a value would change.
    """
    expected = leaves(model, input_shape)
    expected = {k: leaf for k, leaf in expected.items() if only in (None, leaf.path[0])}
    if not isinstance(tensors, Mapping):
        raise UserError(f"a {type(tensors).__name__} is no state dict: pass model.state_dict()")
    flat, _ = torch_files.flatten(tensors, "the state dict")
    keys = match(flat, expected, "the state dict", "is not the model's").keys
    tensors = {key: flat[name] for key, name in keys.items()}
    check("the state dict is not the model's", expected, tensors)
    arrays, tree = to_arrays(tensors, expected, "the state dict"), {}
    for key, leaf in expected.items():
        array = arrays.get(key, np.zeros((), leaf.dtype))
        ours = array.transpose(np.argsort(TORCH_AXES[len(leaf.shape)]))
        tree[leaf.path] = cast(key, ours, leaf.dtype)
    return unflatten_dict(tree)


def to_arrays(tensors: Mapping[str, Any], expected: Leaves, source: object) -> dict[str, Any]:
    """Return tensors of fitting shapes as numpy arrays that are exact in the model's dtypes.

    Others are cast as ``load_state_dict`` does, or left out if they are counts; that is logged.
    """
    arrays, rounded, unknown = {}, list[str](), list[str]()
    for key, tensor in tensors.items():
        array, leaf = torch_files.to_numpy(key, tensor), expected[key]
        array = array[0, ...] if not leaf.shape and array.ndim == 1 and len(array) else array
        result, exact = _convert(array, leaf.dtype)
        if exact and array.shape == leaf.shape:
            arrays[key] = array
        elif key.endswith(BATCHES):
            unknown.append(key)
        else:
            arrays[key] = result
            rounded.append(f"{key} ({array.dtype})")
    if rounded:
        log.info("%s: rounded to the model's dtypes, as in torch: %s", source, first_few(rounded))
    if unknown:
        log.info("%s: no counts, taken as 0: %s", source, first_few(unknown))
    return arrays


def to_torch(
    variables: Mapping[str, Any],
    model: nn.Module,
    *,
    input_shape: Shape = INPUT_SHAPE,
    dtypes: Mapping[str, str] | None = None,
) -> dict[str, np.ndarray]:
    """Map ``{"params": ..., "batch_stats": ...}`` to a state dict, in torch's order of keys.

    Returns new C-contiguous arrays in torch's usual dtypes, or ``dtypes``, of which an empty one
    leaves a key out; raises as ``to_flax``.
    """
    expected, arrays = leaves(model, input_shape), torch_view(variables)
    check("not the model's variables", expected, arrays)
    names = {k: "int64" if leaf.dtype.kind == "i" else leaf.dtype for k, leaf in expected.items()}
    names |= dtypes or {}
    return {key: cast(key, arrays[key], np.dtype(names[key])) for key in expected if names[key]}


def torch_view(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return views of the variables under torch's keys and in its axes, unchecked."""
    arrays = {_key(path): np.asarray(leaf) for path, leaf in flatten_dict(variables).items()}
    return {key: a.transpose(TORCH_AXES.get(a.ndim, range(a.ndim))) for key, a in arrays.items()}


def _key(path: tuple[str, ...]) -> str:
    _, *module, name = path
    return ".".join([*module, TORCH_NAMES.get(name, name)])


def adam_to_flax(optimizer: Any, model: nn.Module) -> tuple[optax.ScaleByAdamState, float]:
    """Map the state dict of a ``torch.optim.Adam``; also return its next update's learning rate.

    Parameters are matched by ``param_names`` if torch has saved them, else by their order. Raises
    ``UserError`` if it is not Adam with the settings of training for this model.
    """
    if isinstance(optimizer, list) and len(optimizer) == 1:  # as Lightning keeps it
        [optimizer] = optimizer
    if not isinstance(optimizer, Mapping) or not optimizer.get("param_groups"):
        raise UserError("it is not the state dict of one optimizer: it has no param_groups")
    groups, states = optimizer["param_groups"], optimizer["state"]
    for name, expected in ADAM.items():
        for value in (group.get(name, expected) for group in groups):
            values = value if isinstance(value, list | tuple) else ()
            nested = any(isinstance(each, list | tuple) for each in values)  # may hold itself
            if nested or not np.array_equal(value, expected):
                found = f"{name} {reprlib.repr(value):.80}"
                raise UserError(f"the optimizer has {found}, training has {expected}")
    keys = [key for key, leaf in leaves(model).items() if leaf.path[0] == "params"]
    indices = [index for group in groups for index in group["params"]]
    if len(indices) != len(keys) or set(states) != set(indices):
        found = f"a state for {len(states)} of {len(indices)} parameters"
        raise UserError(f"the optimizer has {found}, the model has {len(keys)}")
    names = [name for group in groups for name in group.get("param_names", ())]
    if set(names) != set(keys):
        if indices != list(range(len(keys))):
            raise UserError("the optimizer does not have its parameters in the model's order")
        names = keys
    if not all({"step", "exp_avg", "exp_avg_sq"} <= set(state) for state in states.values()):
        raise UserError("the optimizer is not Adam: it keeps no step, exp_avg and exp_avg_sq")
    steps = sorted({float(state["step"]) for state in states.values()})
    rates = sorted({float(group["lr"]) for group in groups})
    if len(steps) > 1 or len(rates) > 1 or not (0 <= steps[0] < 2**31 and 0 <= rates[0] < math.inf):
        raise UserError(f"the optimizer has steps {steps} and rates {rates}: expected one of each")

    def moment(which: str) -> Any:
        moments = {name: states[index][which] for name, index in zip(names, indices, strict=True)}
        return to_flax(moments, model, only="params")["params"]

    count: Any = np.asarray(steps[0], np.int32)
    return optax.ScaleByAdamState(count, moment("exp_avg"), moment("exp_avg_sq")), rates[0]


def cast(key: str, array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Return the same values in another dtype, C-contiguous; raise ``UserError`` if one changes."""
    result, exact = _convert(array, dtype)
    if not exact:
        raise UserError(f"{key} is {array.dtype} and not exact in {dtype}: convert it with torch")
    return result


def _convert(array: np.ndarray, dtype: np.dtype) -> tuple[np.ndarray, bool]:
    """Return an array in another dtype, C-contiguous, and whether all values are the same."""
    real = array.real if array.dtype.kind == "c" else array
    with np.errstate(all="ignore"):  # what overflows is not exact
        if {array.dtype.name, dtype.name} == {"bfloat16", "float32"}:
            # These differ by 16 bits; astype would lose a NaN's payload.
            bits = array.view(f"u{array.itemsize}").astype("u4", order="C")
            bits = bits << 16 if dtype == np.float32 else bits >> 16
            result = bits.astype(f"u{dtype.itemsize}").view(dtype)
        else:
            result = real.astype(dtype, order="C")
        same = np.array_equal(result.astype(real.dtype), real, equal_nan=True)
    return result, same and real is array
