"""The map between a torch state dict and a model's variables, in both directions, without torch.

The tree has torch's names, so the map is one rule: the path of a leaf is its key, and only its
last name and the order of its axes are translated:

    params/.../kernel      weight         (O, I, H, W) of (H, W, I, O), (O, I) of (I, O)
    params/.../scale       weight
    batch_stats/.../mean   running_mean
    batch_stats/.../var    running_var
    anything else          the same name

Keys and leaves are a bijection, checked against the model before anything is mapped.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxcifar.core.models import MODELS, abstract_variables, create_model
from jaxcifar.errors import UserError

TORCH_NAMES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
TORCH_AXES = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,), 0: ()}  # by rank: our axes in torch's order
MAX_CLASSES = 100_000  # a file of a few bytes can claim a tensor that fills the memory


class Leaf(NamedTuple):
    """What a model has under a torch key; ``shape`` is in torch's order of axes."""

    path: tuple[str, ...]  # in the variables, as ("params", "features", "0", "kernel")
    shape: tuple[int, ...]
    dtype: np.dtype


Leaves = Mapping[str, Leaf]
Arrays = Mapping[str, np.ndarray]


class PortError(UserError):
    """Raised if a state dict does not fit a model; ``misshaped`` has actual and expected shapes."""

    def __init__(self, what: str, expected: Leaves, arrays: Arrays) -> None:
        self.missing = {k: leaf.shape for k, leaf in expected.items() if k not in arrays}
        self.unexpected = {k: array.shape for k, array in arrays.items() if k not in expected}
        both = {k: (arrays[k].shape, leaf.shape) for k, leaf in expected.items() if k in arrays}
        self.misshaped = misshaped = {k: pair for k, pair in both.items() if pair[0] != pair[1]}
        pairs = {key: f"{shape}, expected {right}" for key, (shape, right) in misshaped.items()}
        shapes: tuple[Mapping[str, object], ...] = (self.missing, self.unexpected, pairs)
        parts = []
        for kind, by_key in zip(("missing", "unexpected", "of another shape"), shapes, strict=True):
            items = [f"{key} {shape}" for key, shape in by_key.items()]
            more = f" and {len(items) - 4} more" if len(items) > 4 else ""
            parts += [f"{len(items)} {kind}: {', '.join(items[:4])}{more}"] if items else []
        super().__init__(f"{what}: {'; '.join(parts)}")


def leaves(model: nn.Module) -> Leaves:
    """Return the model's leaves by their torch keys, in the order of torch's state dict."""
    return _leaves(model, jnp.result_type(float))  # float64 only under x64


@cache
def _leaves(model: nn.Module, _: jnp.dtype) -> Leaves:
    modules: dict[tuple[str, ...], dict[str, Leaf]] = {}
    for path, leaf in flatten_dict(abstract_variables(model)).items():
        shape = tuple(leaf.shape[axis] for axis in TORCH_AXES[leaf.ndim])
        modules.setdefault(path[1:-1], {})[_key(path)] = Leaf(path, shape, leaf.dtype)
    return {key: leaf for module in modules.values() for key, leaf in module.items()}


def identify(arrays: Arrays, name: str | None, source: object) -> tuple[str, int]:
    """Return the name and number of classes of the model that has these keys and shapes.

    Raises ``PortError`` if no model has them, and ``UserError`` if another one than ``name`` has.
    """
    keys = {n: leaves(create_model(n)).keys() for n in MODELS}
    nearest = min(MODELS, key=lambda n: len(keys[n] ^ arrays.keys()))
    if name not in (nearest, None) and keys[nearest] == arrays.keys():
        raise UserError(f"{source} is {nearest}, not {name}: use --model {nearest}")
    what = f"is not {name}" if name else f"is no known model; the nearest is {nearest}"
    name = name or nearest
    *_, head_bias = keys[name]
    shape = arrays[head_bias].shape if head_bias in arrays else ()
    num_classes = shape[0] if len(shape) == 1 and shape[0] else 10
    if num_classes > MAX_CLASSES:
        raise UserError(f"{source} has {num_classes} classes, at most {MAX_CLASSES} are possible")
    check(f"{source} {what}", leaves(create_model(name, num_classes=num_classes)), arrays)
    return name, num_classes


def check(what: str, expected: Leaves, arrays: Arrays) -> None:
    """Raise ``PortError`` if the arrays do not have the expected keys and shapes."""
    shapes = {key: leaf.shape for key, leaf in expected.items()}
    if shapes != {key: array.shape for key, array in arrays.items()}:
        raise PortError(what, expected, arrays)


def to_flax(tensors: Mapping[str, Any], model: nn.Module, *, copy: bool = True) -> dict[str, Any]:
    """Map a state dict, of numpy arrays or CPU tensors, to ``{"params": ..., "batch_stats": ...}``.

    Returns C-contiguous numpy arrays in the model's dtypes, which share memory only without
    ``copy``. Raises ``PortError`` if keys do not fit, ``UserError`` if a value would change.
    """
    return to_tree("not the model's state dict", leaves(model), tensors, copy=copy)


def to_tree(what: str, expected: Leaves, arrays: Arrays, *, copy: bool = True) -> dict[str, Any]:
    """Check the arrays and put them at their leaves' paths, as ``to_flax`` does."""
    arrays = {key: np.asarray(array) for key, array in arrays.items()}
    check(what, expected, arrays)
    tree = {}
    for key, leaf in expected.items():
        array = arrays[key].transpose(np.argsort(TORCH_AXES[len(leaf.shape)]))
        tree[leaf.path] = cast(key, array, leaf.dtype, copy=copy)
    return unflatten_dict(tree)


def to_torch(
    variables: Mapping[str, Any], model: nn.Module, *, dtypes: Mapping[str, str] | None = None
) -> dict[str, np.ndarray]:
    """Map ``{"params": ..., "batch_stats": ...}`` to a state dict, in torch's order of keys.

    Returns new C-contiguous numpy arrays in torch's usual dtypes, or those named in ``dtypes``.
    Raises ``PortError`` and ``UserError`` as ``to_flax`` does.
    """
    expected, arrays = leaves(model), torch_view(variables)
    check("not the model's variables", expected, arrays)
    names = {k: "int64" if leaf.dtype.kind == "i" else leaf.dtype for k, leaf in expected.items()}
    names |= dtypes or {}
    return {key: cast(key, arrays[key], np.dtype(names[key])) for key in expected}


def torch_view(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return views of the variables under torch's keys and in its axes, unchecked."""
    arrays = {_key(path): np.asarray(leaf) for path, leaf in flatten_dict(variables).items()}
    return {key: a.transpose(TORCH_AXES.get(a.ndim, range(a.ndim))) for key, a in arrays.items()}


def _key(path: tuple[str, ...]) -> str:
    _, *module, name = path
    return ".".join([*module, TORCH_NAMES.get(name, name)])


def cast(key: str, array: np.ndarray, dtype: np.dtype, *, copy: bool = True) -> np.ndarray:
    """Return the same values in another dtype, C-contiguous; raise ``UserError`` if one changes."""
    kinds = [jnp.issubdtype(kind, np.floating) for kind in (array.dtype, dtype)]
    exact = kinds[0] == kinds[1] and array.dtype.kind != "c"
    if array.dtype == ml_dtypes.bfloat16 and dtype == np.float32:
        # By the definition of bfloat16: astype loses a NaN's payload, in both directions.
        bits = array.view(np.uint16).astype(np.uint32, order="C")
        return (bits << 16).view(np.float32)
    if array.dtype == np.float32 and dtype == ml_dtypes.bfloat16:
        bits = array.view(np.uint32)
        result = (bits >> 16).astype(np.uint16, order="C").view(dtype)
        exact = not (bits & 0xFFFF).any()
    elif exact:
        with np.errstate(all="ignore"):  # what overflows is not exact
            result = array.astype(dtype, order="C", copy=copy)
            exact = array.dtype == dtype or bool(np.all((result == array) | (result != result)))
    if not exact:
        raise UserError(f"{key} is {array.dtype} and not exact in {dtype}: convert it with torch")
    return result
