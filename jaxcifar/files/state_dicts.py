"""Find the state dict and the optimizer in what training programs save."""

import logging
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxcifar.errors import UserError, one_line
from jaxcifar.files import torch_files

STATE_DICT_ENTRIES = ("state_dict", "model_state_dict", "model", "net")
EMA_ENTRIES = ("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema")
OPTIMIZER_ENTRIES = ("optimizer", "optimizer_state_dict", "optim", "optimizer_states")
PREFIXES = ("module.", "_orig_mod.", "model.")  # DataParallel, torch.compile, Lightning
MAX_DEPTH = 4  # training programs nest no deeper; a hostile file may contain itself

log = logging.getLogger(__name__)


def find(path: Path, content: Any, *, ema: bool = False) -> tuple[dict[str, np.ndarray], Any]:
    """Return a file's state dict as numpy, without wrappers and prefixes, and its optimizer.

    ``ema`` takes the exponential moving average of the weights. The optimizer is whatever the
    file holds under one of its names, or None.
    """
    optimizer, entries = None, EMA_ENTRIES if ema else STATE_DICT_ENTRIES
    for _ in range(MAX_DEPTH):
        if not isinstance(content, Mapping) or not content:
            raise UserError(f"{path} holds a {type(content).__name__}, not a state dict")
        if all(map(_is_tensor, content.values())):
            if entries is EMA_ENTRIES:
                raise UserError(f"{path} is a bare state dict, without EMA: leave --ema out")
            return _arrays(path, content), optimizer
        name, average = _first(content, entries), _first(content, EMA_ENTRIES)
        if name is None:
            break
        other = _first(content, OPTIMIZER_ENTRIES, Mapping | list)
        if other and ema:
            log.info("%s: left %s: it belongs to the weights before averaging", path, other)
        elif other:
            optimizer = content[other]
        if average and not ema:
            log.info("%s: left %s, an average of the weights: --ema takes that", path, average)
        log.info("%s: took %s of %s", path, name, _names(content))
        content, entries = content[name], STATE_DICT_ENTRIES
    strangers = [key for key, value in content.items() if not _is_tensor(value)]
    if 0 < len(strangers) < len(content):
        kind = type(content[strangers[0]]).__name__
        raise UserError(f"{path}: {_names(strangers[:1])!r} is a {kind}, expected a tensor")
    raise UserError(
        f"{path} holds no {'EMA ' if ema else ''}state dict: its entries are {_names(content)},"
        f" expected one of {', '.join(EMA_ENTRIES if ema else STATE_DICT_ENTRIES)}"
        + (f"; --ema takes {average}" if average and not ema else "")
    )


def optimizer_arrays(content: Any) -> Any:
    """Return an optimizer's state dict with numpy in place of tensors."""
    if isinstance(content, list) and len(content) == 1:  # as Lightning keeps it
        [content] = content
    if not isinstance(content, Mapping):
        raise UserError("it is not the state dict of one optimizer")
    return jax.tree.map(partial(torch_files.to_numpy, "a moment"), content)


def _arrays(path: Path, tensors: Mapping[Any, Any]) -> dict[str, np.ndarray]:
    for key in tensors:
        if not isinstance(key, str):
            raise UserError(f"{path}: a key is a {type(key).__name__}, expected a text")
    arrays = {key: torch_files.to_numpy(f"{path}: {key}", value) for key, value in tensors.items()}
    if "n_averaged" in arrays and len(arrays) > 1:
        del arrays["n_averaged"]
        log.info("%s: left n_averaged, the count of torch's AveragedModel", path)
    while prefix := next((p for p in PREFIXES if all(key.startswith(p) for key in arrays)), None):
        arrays = {key.removeprefix(prefix): array for key, array in arrays.items()}
        log.info("%s: took %s off every key", path, prefix)
    return arrays


def _first(content: Mapping[Any, Any], names: Iterable[str], kind: Any = Mapping) -> str | None:
    return next((name for name in names if isinstance(content.get(name), kind)), None)


def _is_tensor(value: Any) -> bool:
    return hasattr(value, "dtype") and hasattr(value, "shape")


def _names(keys: Iterable[Any], limit: int = 8) -> str:
    names = [one_line(key) if isinstance(key, str) else type(key).__name__ for key in keys]
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "") or "none"
