"""The map between a torch state dict and a model's variables, both ways; it needs no torch.

It is one rule, because the tree has torch's names. The path of a leaf is its key; only its
last name and the order of its axes are translated:

    ===========================  ==================  =======================
    leaf                         key ends in         torch's axes
    ===========================  ==================  =======================
    params/.../kernel (4 axes)   weight              (O, I, H, W) of (H, W, I, O)
    params/.../kernel (2 axes)   weight              (O, I) of (I, O)
    params/.../scale             weight              same
    params/.../bias              bias                same
    batch_stats/.../mean         running_mean        same
    batch_stats/.../var          running_var         same
    batch_stats/.../num_batches_tracked, the same    same
    ===========================  ==================  =======================

Keys and leaves are a bijection, checked against the model before anything is mapped.
"""

import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxcifar.core.models import MODELS, abstract_variables, create_model
from jaxcifar.errors import UserError

StateDict = Mapping[str, np.ndarray]
TORCH_NAMES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
TORCH_AXES = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,), 0: ()}  # by rank: where torch's axes are in ours

ADAM_SETTINGS = {  # of make_optimizer
    "betas": (0.9, 0.999),
    "eps": 1e-8,
    "weight_decay": 0,
    "amsgrad": False,
    "maximize": False,
}
MOST_CLASSES = 100_000  # a tensor of more may take no room in its file and all of it in memory


class Leaf(NamedTuple):
    """What a model has under a torch key.

    Attributes:
      path: in the variables, as ``("params", "features", "0", "kernel")``.
      shape: in torch's order of axes.
      dtype: ours.
    """

    path: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: np.dtype


class PortError(UserError):
    """State dict and model do not fit.

    Attributes:
      missing: keys that the model has and the state dict lacks, with the expected shape.
      unexpected: keys that only the state dict has, with their shape.
      misshaped: keys with another shape: the given and the expected one.
    """

    def __init__(
        self,
        what: str,
        missing: Mapping[str, tuple[int, ...]],
        unexpected: Mapping[str, tuple[int, ...]],
        misshaped: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]],
    ) -> None:
        self.missing, self.unexpected, self.misshaped = missing, unexpected, misshaped
        parts = [
            _list("missing", [f"{key} {shape}" for key, shape in missing.items()]),
            _list("unexpected", [f"{key} {shape}" for key, shape in unexpected.items()]),
            _list(
                "of another shape",
                [f"{key} {given}, expected {own}" for key, (given, own) in misshaped.items()],
            ),
        ]
        super().__init__(f"{what}: {'; '.join(filter(None, parts))}")


def leaves(model: nn.Module) -> Mapping[str, Leaf]:
    """The model's leaves by their torch keys, in the order of torch's state dict."""
    return _leaves(model, jnp.result_type(float))


@cache
def _leaves(model: nn.Module, widest: jnp.dtype) -> Mapping[str, Leaf]:
    del widest  # float64 only under x64
    modules: dict[tuple[str, ...], dict[str, Leaf]] = {}
    for path, leaf in flatten_dict(abstract_variables(model)).items():
        shape = tuple(leaf.shape[axis] for axis in TORCH_AXES[leaf.ndim])
        modules.setdefault(path[1:-1], {})[_key(path)] = Leaf(path, shape, leaf.dtype)
    return {key: leaf for module in modules.values() for key, leaf in module.items()}


def identify(
    state_dict: StateDict, name: str | None = None, *, source: object = "the state dict"
) -> tuple[str, int]:
    """Works the model's name and number of classes out from keys and shapes.

    Args:
      state_dict: arrays by torch key; only their shapes are looked at.
      name: the model it has to be; None takes the one whose keys are nearest.
      source: what to call it in an error.

    Raises:
      UserError: it is another model than ``name``.
      PortError: the keys or shapes are no model's.
    """
    keys = {n: leaves(create_model(n)).keys() for n in MODELS}
    nearest = min(MODELS, key=lambda n: len(keys[n] ^ state_dict.keys()))
    if name and name != nearest and keys[nearest] == state_dict.keys():
        raise UserError(f"{source} is {nearest}, not {name}: ask for --model {nearest}")
    what = f"is not {name}" if name else f"is no known model; the nearest is {nearest}"
    nearest = name or nearest
    *_, head_bias = keys[nearest]
    given = state_dict.get(head_bias)
    num_classes = given.shape[0] if given is not None and given.ndim == 1 and given.size else 10
    if num_classes > MOST_CLASSES:
        raise UserError(f"{source} has {num_classes} classes, at most {MOST_CLASSES} are possible")
    _check(f"{source} {what}", leaves(create_model(nearest, num_classes=num_classes)), state_dict)
    return nearest, num_classes


def to_flax(state_dict: StateDict, model: nn.Module, *, copy: bool = True) -> dict[str, Any]:
    """Maps a state dict to ``{"params": ..., "batch_stats": ...}``.

    Args:
      state_dict: arrays by torch key, any strides: numpy, or CPU tensors that numpy can view.
      model: what it has to fit, from ``create_model``.
      copy: False lets a result share its memory with an array that needs no change.

    Returns:
      C-contiguous numpy arrays in the model's dtypes.

    Raises:
      PortError: keys are missing, unexpected or of another shape; all of them in one error.
      UserError: a value is not exact in the model's dtype.
    """
    own = leaves(model)
    state_dict = {key: np.asarray(array) for key, array in state_dict.items()}
    _check("not the model's state dict", own, state_dict)
    return _tree(own, state_dict, copy=copy)


def to_torch(
    variables: Mapping[str, Any], model: nn.Module, *, dtypes: Mapping[str, str] | None = None
) -> dict[str, np.ndarray]:
    """Maps ``{"params": ..., "batch_stats": ...}`` to a state dict, in torch's order of keys.

    Args:
      variables: arrays of jax or numpy.
      model: what they have to fit.
      dtypes: of keys that torch keeps in another dtype than the model does.

    Returns:
      New C-contiguous numpy arrays; ``num_batches_tracked`` is int64, as torch has it.

    Raises:
      PortError: leaves are missing, unexpected or of another shape.
      UserError: a value is not exact in the wanted dtype.
    """
    own = leaves(model)
    given = torch_view(variables)
    _check("not the model's variables", own, given)
    wanted = {
        key: np.dtype(np.int64) if leaf.dtype.kind == "i" else leaf.dtype
        for key, leaf in own.items()
    }
    wanted |= {key: np.dtype(name) for key, name in (dtypes or {}).items()}
    return {key: cast(key, given[key], wanted[key]) for key in own}


def torch_view(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The variables under torch's keys and in its axes; nothing is checked or copied."""
    return {
        _key(path): _torch_axes(np.asarray(leaf)) for path, leaf in flatten_dict(variables).items()
    }


def adam_to_flax(
    optimizer: Mapping[str, Any], model: nn.Module
) -> tuple[optax.ScaleByAdamState, float]:
    """Maps the state dict of a ``torch.optim.Adam`` over all of the model's parameters.

    Args:
      optimizer: ``{"state": {0: {"step", "exp_avg", "exp_avg_sq"}, ...}, "param_groups": [...]}``
        with numpy arrays.
      model: whose parameters they are. They are told by ``param_names`` where torch has noted
        them, else by their place: the optimizer was given ``model.parameters()``.

    Returns:
      Moments and count, and the learning rate of the next update.

    Raises:
      UserError: it is not Adam with the settings that training uses, or does not fit.
    """
    own = {key: leaf for key, leaf in leaves(model).items() if leaf.path[0] == "params"}
    groups, states = optimizer.get("param_groups"), optimizer.get("state")
    if not isinstance(groups, Sequence) or not isinstance(states, Mapping) or not groups:
        raise UserError("the optimizer's state has no param_groups or no state")
    for name, ours in ADAM_SETTINGS.items():
        for group in groups:
            theirs = group.get(name, ours)
            if (tuple(theirs) if isinstance(theirs, Sequence) else theirs) != ours:
                raise UserError(f"the optimizer has {name} {theirs}, training has {ours}")
    indices = [index for group in groups for index in group["params"]]
    names = [name for group in groups for name in group.get("param_names", ())]
    if len(indices) != len(own) or set(states) != set(indices):
        raise UserError(
            f"the optimizer has a state for {len(states)} of {len(indices)} parameters, the"
            f" model has {len(own)}"
        )
    if set(names) != own.keys():
        names = list(own)
        if indices != list(range(len(own))):
            raise UserError("the optimizer does not have its parameters in the model's order")
    if not all({"step", "exp_avg", "exp_avg_sq"} <= set(state) for state in states.values()):
        raise UserError("the optimizer is not Adam: it keeps no step, exp_avg and exp_avg_sq")
    steps = {float(state["step"]) for state in states.values()}
    rates = {float(group["lr"]) for group in groups}
    if len(steps) > 1 or len(rates) > 1:
        raise UserError(
            f"the optimizer's parameters differ in steps {sorted(steps)} or learning rates"
            f" {sorted(rates)}; training has one of each"
        )
    step, rate = steps.pop(), rates.pop()
    if not (0 <= step < 2**31 and 0 <= rate < math.inf):
        raise UserError(
            f"the optimizer has {step} steps and the learning rate {rate}: out of range"
        )
    mu, nu = (
        _moment({name: states[i][which] for name, i in zip(names, indices, strict=True)}, own)
        for which in ("exp_avg", "exp_avg_sq")
    )
    return optax.ScaleByAdamState(np.asarray(step, np.int32), mu, nu), rate  # type: ignore[arg-type]


def _moment(arrays: StateDict, own: Mapping[str, Leaf]) -> Any:
    _check("not Adam's moments of the model", own, arrays)
    return _tree(own, arrays)["params"]


def _key(path: tuple[str, ...]) -> str:
    _, *module, name = path
    return ".".join([*module, TORCH_NAMES.get(name, name)])


def cast(key: str, array: np.ndarray, dtype: np.dtype, *, copy: bool = True) -> np.ndarray:
    """The same values in ``dtype``, C-contiguous.

    Raises:
      UserError: there are none; it names the ``key``.
    """
    floats = [jnp.issubdtype(kind, np.floating) for kind in (array.dtype, dtype)]
    with np.errstate(all="ignore"):  # what overflows is not exact
        if floats[0] != floats[1] or array.dtype.kind == "c":
            exact = False
        elif array.dtype == ml_dtypes.bfloat16 and dtype == np.float32:
            # By definition; astype would forget a NaN's payload, on the way back, too.
            wide = array.view(np.uint16).astype(np.uint32, order="C")
            return (wide << 16).view(np.float32)
        elif array.dtype == np.float32 and dtype == ml_dtypes.bfloat16:
            bits = array.view(np.uint32)
            result = (bits >> 16).astype(np.uint16, order="C").view(dtype)
            exact = not (bits & 0xFFFF).any()
        else:
            result = array.astype(dtype, order="C", copy=copy)
            exact = array.dtype == dtype or bool(np.all((result == array) | (result != result)))
    if not exact:
        raise UserError(
            f"{key} is {array.dtype} and cannot become {dtype} without a change: convert it in"
            " torch, as model.float() does"
        )
    return result


def _check(what: str, own: Mapping[str, Leaf], state_dict: StateDict) -> None:
    missing = {key: leaf.shape for key, leaf in own.items() if key not in state_dict}
    unexpected = {key: value.shape for key, value in state_dict.items() if key not in own}
    misshaped = {
        key: (state_dict[key].shape, leaf.shape)
        for key, leaf in own.items()
        if key in state_dict and state_dict[key].shape != leaf.shape
    }
    if missing or unexpected or misshaped:
        raise PortError(what, missing, unexpected, misshaped)


def _list(kind: str, items: Sequence[str], most: int = 4) -> str:
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return f"{len(items)} {kind}: {', '.join(items[:most])}{more}" if items else ""


def _tree(own: Mapping[str, Leaf], state_dict: StateDict, *, copy: bool = True) -> dict[str, Any]:
    tree = {}
    for key, leaf in own.items():
        array = state_dict[key]
        ours = array.transpose(np.argsort(TORCH_AXES[array.ndim]))
        tree[leaf.path] = cast(key, ours, leaf.dtype, copy=copy)
    return unflatten_dict(tree)


def _torch_axes(array: np.ndarray) -> np.ndarray:
    return array.transpose(TORCH_AXES[array.ndim]) if array.ndim in TORCH_AXES else array
