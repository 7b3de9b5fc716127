"""Options of a command: the fields of a frozen dataclass, checked when it is made."""

import dataclasses
import json
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from jaxcifar.errors import UserError, did_you_mean

REMOTE = re.compile(r"(folder:)?[a-z][a-z0-9+.-]+://|.*\0", re.IGNORECASE | re.DOTALL)


class Range(NamedTuple):
    """The values that an option takes, in its type: ``Annotated[int, Range(...)]``."""

    description: str
    contains: Callable[[Any], object]  # true for these


def option(default: Any, help: str, **display: Any) -> Any:
    """Return a field with its help; ``group`` is the heading of it and of those after it."""
    return dataclasses.field(default=default, metadata={"help": help, **display})


optional = partial(option, None)
required = partial(option, dataclasses.MISSING)
argument = partial(required, positional=True)


def is_count(value: object) -> bool:
    """Whether this is a whole number, and fits into 64 bits."""
    return type(value) is int and abs(value) < 2**63  # a bool is no count


def _is_local(value: Any) -> bool:
    return not any(map(REMOTE.match, [value] if isinstance(value, str) else map(str, value)))


Positive = Annotated[int, Range("at least 1", lambda value: value >= 1)]
LOCAL = Range("a path on this machine (mount or copy the rest)", _is_local)
KINDS = {
    bool: [Range("true or false", lambda value: isinstance(value, bool))],
    int: [Range("a whole number", is_count)],
    float: [Range("a number", lambda value: isinstance(value, float))],
    str: [Range("a text", lambda value: isinstance(value, str)), LOCAL],
    tuple: [Range("a list", lambda value: isinstance(value, list | tuple)), LOCAL],
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """A command's options; ``--help`` begins with the docstring. ``UserError`` for wrong values."""

    def __post_init__(self) -> None:
        for field, kind, ranges in fields_with_types(type(self)):
            value = getattr(self, field.name)
            if (kind is float and is_count(value)) or (kind is str and isinstance(value, Path)):
                value = kind(value)
                object.__setattr__(self, field.name, value)
            for expected, contains in [] if value is None and field.default is None else ranges:
                if not contains(value):
                    hint = did_you_mean(str(value).lower(), re.findall(r"[\w-]+", expected))
                    raise UserError(f"{flag(field.name)} must be {expected}, got {value!r}{hint}")


def fields_with_types(options: type) -> Iterator[tuple[dataclasses.Field[Any], Any, list[Range]]]:
    """Yield each field with its type, of ``T | None`` the ``T``, and the ranges of its values."""
    hints = get_type_hints(options, include_extras=True)
    for field in dataclasses.fields(options):
        kind, ranges = hints[field.name], list[Range]()
        if NoneType in get_args(kind):
            kind = get_args(kind)[0]
        if get_origin(kind) is Annotated:
            kind, *ranges = get_args(kind)
        if get_origin(kind) is Literal:
            names = get_args(kind)
            yield field, kind, [Range(f"one of {', '.join(names)}", names.__contains__)]
        else:
            yield field, kind, [*KINDS[get_origin(kind) or kind], *ranges]


def command_line(options: Options, *prog: str) -> str:
    """Return the command with these options, quoted for a shell: the inverse of parsing it."""
    words = [*prog]
    for field in dataclasses.fields(options):
        value, name = getattr(options, field.name), flag(field.name)
        if isinstance(value, bool) and value != field.default:
            words.append(name if value else flag(f"no_{field.name}"))
        elif value != field.default:
            text = show(value)
            words += [f"{name}={text}"] if text.startswith("-") else [name, text]
    return shlex.join(words)


def this_program() -> tuple[str, ...]:
    """Return the words that start ``jaxcifar`` as this process was started."""
    if Path(sys.argv[0]).stem == "jaxcifar":
        return (sys.argv[0],)
    return sys.executable, "-m", "jaxcifar"


def show(value: object) -> str:
    """Return an option's value as a user would type it."""
    return "1/3" if value == 1 / 3 else str(value)


def fraction(text: str) -> float:
    """Read a number that may be a fraction: ``0.5``, ``1e-3``, ``1/3``; no number over 0 is one."""
    numerator, _, denominator = text.partition("/")
    return float(numerator) / (float(denominator or 1) or float("nan"))


def flag(name: str) -> str:
    """Return the command-line flag of a field."""
    return "--" + name.replace("_", "-")


def parse_saved(text: str) -> dict[str, Any]:
    """Return a JSON object; ``ValueError`` if the text is none."""
    try:
        values = json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(values, dict):
        raise ValueError("it is not a JSON object")
    return values
