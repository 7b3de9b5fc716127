"""Command lines derived from a configuration dataclass, and one way of failing."""

import argparse
import dataclasses
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, get_origin, get_type_hints

from jaxcifar.config import REQUIRED, choices, flag, fraction, without_none
from jaxcifar.errors import UserError, one_line
from jaxcifar.runtime import process as runtime


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see --help)")


def parse(config_type: type, argv: Sequence[str] | None, *, prog: str, description: str) -> Any:
    """Reads the flags of a dataclass's fields.

    Returns:
      A dict of the values that were given, and no others.

    Raises:
      UserError: an unknown flag, or a value that cannot be read.
      SystemExit: after ``--help``.
    """
    return vars(make_parser(config_type, prog=prog, description=description).parse_args(argv))


def make_parser(config_type: type, *, prog: str, description: str) -> argparse.ArgumentParser:
    """A parser with a flag for each of a dataclass's fields; it raises ``UserError``."""
    parser = _Parser(
        prog=prog,
        description=description,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=30),
    )
    hints = get_type_hints(config_type)
    for field in dataclasses.fields(config_type):
        hint, text = without_none(hints[field.name]), field.metadata["help"].replace("%", "%%")
        if hint is bool:  # a flag for what is not the default
            name = flag(f"no_{field.name}" if field.default else field.name)
            action = "store_false" if field.default else "store_true"
            parser.add_argument(name, dest=field.name, action=action, help=text)
            continue
        needed = field.default is REQUIRED
        if field.default is not None and not needed:
            text += f" (default: {_show(field.default)})"
        options: dict[str, Any] = {"choices": choices(hint)} if choices(hint) else {}
        if hint in (int, float):
            options = {"type": int if hint is int else fraction, "metavar": "N"}
        elif not options:
            options = {"metavar": field.metadata["metavar"]}
        if field.metadata["positional"]:
            if get_origin(hint) is tuple:  # one or more
                options["nargs"] = "+"
            parser.add_argument(field.name, help=text, **{**options, "metavar": field.name.upper()})
        else:
            parser.add_argument(flag(field.name), required=needed, help=text, **options)
    return parser


def command_line(config: Any, prog: str) -> str:
    """The command that gives this configuration: ``parse``'s inverse, for a shell."""
    words = prog.split()
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value == field.default:
            continue
        if isinstance(value, bool):
            words.append(flag(field.name if value else f"no_{field.name}"))
        else:
            text = _show(value)  # one that looks like a flag is given with an equals sign
            name = flag(field.name)
            words += [f"{name}={text}"] if text.startswith("-") else [name, text]
    return shlex.join(words)


def run(main: Callable[[Sequence[str] | None], int | None], *, prog: str) -> NoReturn:
    """Runs a command: exit 0, or what it returns.

    2 and one line where the input is at fault; 128 + N on signal N.
    """
    runtime.prepare()
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        code = main(None)
    except (UserError, OSError) as error:
        print(f"{prog}: error: {one_line(str(error))}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as interrupt:
        sys.exit(128 + (interrupt.args[0] if interrupt.args else signal.SIGINT))
    sys.exit(code or 0)


def _interrupt(signum: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt(signum)  # so that what is half done is cleaned up


def _show(default: object) -> str:
    return "1/3" if default == 1 / 3 else str(default)
