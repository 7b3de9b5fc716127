"""Options of a command: the fields of a frozen dataclass, checked when it is made."""

import dataclasses
import json
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from types import NoneType
from typing import Any, Literal, NamedTuple, Self, get_args, get_origin, get_type_hints

from jaxcifar.errors import UserError, did_you_mean

REQUIRED: Any = dataclasses.MISSING
URL = re.compile(r"(folder:)?[a-z][a-z0-9+.-]+://", re.IGNORECASE)
KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


class Range(NamedTuple):
    """The values that an option takes."""

    description: str
    contains: Callable[[Any], bool]


POSITIVE = Range("at least 1", lambda value: value >= 1)


def option(default: Any, help: str, range: Range | None = None, **display: Any) -> Any:
    """Return a dataclass field with its help; a value of None is not checked.

    ``group`` is the heading of this option and of those after it in ``--help``.
    """
    display = {"positional": False, "metavar": "PATH", "group": None, **display}
    return dataclasses.field(default=default, metadata={"help": help, "range": range, **display})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """The base of every command's options; a wrong value raises ``UserError``."""

    def __post_init__(self) -> None:
        for field, kind in fields_with_types(type(self)):
            value, limits = getattr(self, field.name), field.metadata["range"]
            number = kind is float and is_count(value)
            if number or (kind is str and isinstance(value, Path)):
                value = kind(value)
                object.__setattr__(self, field.name, value)
            elif value is None and field.default is None:
                continue
            elif not _is_instance(value, kind):
                names = ", ".join(choices(kind))
                self.reject(field.name, f"one of {names}" if names else KINDS.get(kind, "a list"))
            texts = value if isinstance(value, list | tuple) else (value,)
            if kind in (str, tuple[str, ...]) and any(map(URL.match, texts)):
                self.reject(field.name, "a path on this machine (mount or copy the rest)")
            if limits and not limits.contains(value):
                self.reject(field.name, limits.description)

    def reject(self, name: str, expected: str) -> None:
        """Raise the error about one field's value."""
        value = getattr(self, name)
        hint = did_you_mean(str(value).lower(), re.findall(r"[\w-]+", expected))
        raise UserError(f"{flag(name)} must be {expected}, got {value!r}{hint}")

    @classmethod
    def from_flags(cls, flags: Mapping[str, Any]) -> Self:
        """Return the options for the flags given on a command line."""
        return cls(**flags)


def command_line(options: Options, *prog: str) -> str:
    """Return the command with these options, quoted for a shell: the inverse of ``cli.parse``."""
    words = [*prog]
    for field in dataclasses.fields(options):
        value, name = getattr(options, field.name), flag(field.name)
        if isinstance(value, bool) and value != field.default:
            words.append(name if value else flag(f"no_{field.name}"))
        elif value != field.default:
            text = show(value)
            words += [f"{name}={text}"] if text.startswith("-") else [name, text]
    return " ".join(map(_quote, words))


def this_program() -> tuple[str, ...]:
    """Return the words that start ``jaxcifar`` as this process was started."""
    if Path(sys.argv[0]).stem == "jaxcifar":
        return (sys.argv[0],)
    return sys.executable, "-m", "jaxcifar"


def _quote(word: str) -> str:
    """Quote for a shell; what a terminal cannot show is escaped as bash and zsh have it."""
    if word.isprintable():
        return shlex.quote(word)
    escaped = str(os.fsencode(word) + b'"')[2:-2]  # the quotation mark makes Python escape others
    return f"$'{escaped}'"


def show(value: object) -> str:
    """Return an option's value as a user would type it."""
    return "1/3" if value == 1 / 3 else str(value)


def flag(name: str) -> str:
    """Return the command-line flag of a field."""
    return "--" + name.replace("_", "-")


def fraction(text: str) -> float:
    """Read a number that may be a fraction: ``0.5``, ``1e-3``, ``1/3``."""
    try:
        return float(Fraction(text) if "/" in text else text)
    except (ValueError, ZeroDivisionError, OverflowError):
        raise ValueError(f"not a number: {text!r}") from None


def fields_with_types(options: type) -> Iterator[tuple[dataclasses.Field[Any], Any]]:
    """Yield each field with its type; of ``T | None`` the ``T``."""
    hints = get_type_hints(options)
    for field in dataclasses.fields(options):
        *kinds, last = get_args(hints[field.name]) or (None,)
        yield field, kinds[0] if last is NoneType else hints[field.name]


def choices(kind: Any) -> tuple[str, ...]:
    """Return the values of a ``Literal``; none for any other type."""
    return get_args(kind) if get_origin(kind) is Literal else ()


def parse_saved(text: str) -> dict[str, Any]:
    """Return a JSON object; ``ValueError`` if the text is none."""
    try:
        values = json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(values, dict):
        raise ValueError("it is not a JSON object")
    return values


def is_count(value: object) -> bool:
    """Whether this is a whole number, and fits into 64 bits."""
    return type(value) is int and abs(value) < 2**63  # a bool is no count


def _is_instance(value: Any, kind: Any) -> bool:
    if choices(kind):
        return value in choices(kind)
    if kind is int:
        return is_count(value)
    if kind is str and isinstance(value, str) and "\0" in value:
        return False  # no path can have it
    return isinstance(value, list | tuple if get_origin(kind) is tuple else kind)
