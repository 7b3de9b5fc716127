"""Options of a command: the fields of a frozen dataclass, checked when it is made."""

import dataclasses
import shlex
from collections.abc import Callable, Mapping
from fractions import Fraction
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, Self, Union, get_args, get_origin, get_type_hints

from jaxcifar.errors import UserError

REQUIRED: Any = dataclasses.MISSING
KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


class Range(NamedTuple):
    """The values that an option takes."""

    description: str
    contains: Callable[[Any], bool]


POSITIVE = Range("at least 1", lambda value: value >= 1)


def option(
    default: Any,
    help: str,
    *,
    range: Range | None = None,
    may_change: bool = False,
    of_process: bool = False,
    positional: bool = False,
    metavar: str = "PATH",
) -> Any:
    """A field with its help.

    Args:
      default: ``REQUIRED``, or the value without the flag.
      help: shown by ``--help``.
      range: checked unless the value is None.
      may_change: a resumed run may set it to another value.
      of_process: belongs to one process of a run and is not saved.
      positional: given by its place on the command line, without a flag.
      metavar: the value's name in ``--help``, for texts.
    """
    metadata = {
        "help": help,
        "range": range,
        "may_change": may_change or of_process,
        "of_process": of_process,
        "positional": positional,
        "metavar": metavar,
    }
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """The base of every command's options.

    Raises:
      UserError: a value has the wrong type or is out of range.
    """

    def __post_init__(self) -> None:
        for field, hint in fields_with_types(type(self)):
            value, optional = getattr(self, field.name), field.default is None
            if hint is float and type(value) is int:
                object.__setattr__(self, field.name, float(value))
            if value is None and optional:
                continue
            if not _is_instance(value, hint):
                self.reject(field.name, _describe(hint))
            limits = field.metadata["range"]
            if limits and not limits.contains(value):
                self.reject(field.name, limits.description)

    def reject(self, name: str, expected: str) -> None:
        """Raise the error about one field's value."""
        raise UserError(f"{flag(name)} must be {expected}, got {getattr(self, name)!r}")

    @classmethod
    def from_flags(cls, flags: Mapping[str, Any]) -> Self:
        """Return the options for the flags given on a command line."""
        return cls(**flags)


def fields_with_types(options: type) -> list[tuple[dataclasses.Field[Any], Any]]:
    """Return each field with its type; of ``T | None`` the ``T``."""
    hints = get_type_hints(options)
    return [(field, _without_none(hints[field.name])) for field in dataclasses.fields(options)]


def command_line(options: Options, prog: str = "jaxcifar train") -> str:
    """Return the command with these options, quoted for a shell: the inverse of ``cli.parse``."""
    words = prog.split()
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if value == field.default:
            continue
        if isinstance(value, bool):
            words.append(flag(field.name if value else f"no_{field.name}"))
        else:
            text, name = show(value), flag(field.name)
            words += [f"{name}={text}"] if text.startswith("-") else [name, text]
    return shlex.join(words)


def show(value: object) -> str:
    """Return an option's value as a user would type it."""
    return "1/3" if value == 1 / 3 else str(value)


def flag(name: str) -> str:
    """Return the command-line flag of a field."""
    return "--" + name.replace("_", "-")


def fraction(text: str) -> float:
    """Read a number that may be a fraction: ``0.5``, ``1e-3``, ``1/3``."""
    try:
        return float(text)
    except ValueError:
        try:
            return float(Fraction(text))
        except (ValueError, ZeroDivisionError, OverflowError):
            raise ValueError(f"not a number: {text!r}") from None


def choices(hint: Any) -> tuple[str, ...]:
    """Return the values of a ``Literal``; none for any other type."""
    return get_args(hint) if get_origin(hint) is Literal else ()


def _without_none(hint: Any) -> Any:
    if get_origin(hint) not in (Union, UnionType):
        return hint
    return next(kind for kind in get_args(hint) if kind is not NoneType)


def _is_instance(value: Any, hint: Any) -> bool:
    if choices(hint):
        return value in choices(hint)
    if get_origin(hint) is tuple:
        return isinstance(value, list | tuple)
    return type(value) is int if hint is int else isinstance(value, hint)  # a bool is no count


def _describe(hint: Any) -> str:
    return f"one of {', '.join(choices(hint))}" if choices(hint) else KINDS.get(hint, "a list")
