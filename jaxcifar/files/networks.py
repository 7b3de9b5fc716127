"""Networks by name: the built-in ones, and the user's own code."""

import importlib
import inspect
import os
import sys
from contextlib import suppress
from functools import cache
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxcifar.core.models import MODELS, create_model
from jaxcifar.errors import UserError


def create(
    name: str, *, num_classes: int = 10, dropout_rate: float = 0.5, dtype: str = "float32"
) -> nn.Module:
    """Create a built-in network, or the user's, with those of the options that it has.

    Runs the user's code, so the name must come from the user and never from a file.
    """
    options = {"num_classes": num_classes, "dropout_rate": dropout_rate, "dtype": dtype}
    return create_model(name, **options) if name in MODELS else _create(_absolute(name), **options)


@cache  # jit finds a compiled program only by the identical model
def _create(name: str, *, dtype: str, **options: Any) -> nn.Module:
    network = call(name, "--model", {**options, "dtype": jnp.dtype(dtype)})
    if not isinstance(network, nn.Module):
        raise UserError(f"--model {name} gives a {type(network).__name__}, not a Flax module")
    if "train" not in inspect.signature(type(network).__call__).parameters:
        raise UserError(f"--model {name}: its __call__ takes no argument train")
    return network


def call(name: str, flag: str, options: dict[str, Any]) -> Any:
    """Return what ``FILE.py:NAME`` or ``package.module:NAME`` gives for the options it takes."""
    source, _, attribute = _absolute(name).rpartition(":")
    try:
        if not source or not attribute:
            raise ValueError("expected FILE.py:NAME or package.module:NAME")
        function = getattr(_load(source), attribute)
        parameters = inspect.signature(function).parameters
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            with suppress(TypeError):  # it may hand them on to what does not take them
                return function(**options)
        return function(**{key: value for key, value in options.items() if key in parameters})
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise UserError(f"{flag} {name}: {type(error).__name__}: {error}") from error


def _absolute(name: str) -> str:
    source, _, attribute = name.rpartition(":")
    return f"{Path(source).resolve()}:{attribute}" if source.endswith(".py") else name


@cache  # a second module of one file would have other classes
def _load(source: str) -> ModuleType:
    if not source.endswith(".py"):
        sys.path.append(os.getcwd())  # as python -m has it
        return importlib.import_module(source)
    sys.path.append(str(Path(source).parent))  # for what it imports from beside it
    module = sys.modules[source] = ModuleType(source)  # where its dataclasses are looked up
    module.__file__ = source
    SourceFileLoader(source, source).exec_module(module)
    return module
