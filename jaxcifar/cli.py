"""The command line: a table of commands, their flags, and one way to fail."""

import argparse
import dataclasses
import gc
import importlib
import logging
import os
import re
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Literal, NoReturn, get_args, get_origin

from tqdm import tqdm

import jaxcifar
from jaxcifar.config import commands, options
from jaxcifar.config.options import Options, flag
from jaxcifar.config.train import TrainConfig
from jaxcifar.errors import UserError, did_you_mean, one_line
from jaxcifar.runtime import console

# Each is the function ``main`` of the module of its name, imported when it runs.
COMMANDS: dict[str, type[Options]] = {
    "train": TrainConfig,
    "evaluate": commands.EvaluateConfig,
    "predict": commands.PredictConfig,
    "report": commands.ReportConfig,
    "export": commands.ExportConfig,
    "port": commands.PortConfig,
}


def main(*words: str) -> NoReturn:
    """Run ``jaxcifar``, with these words and then the process's arguments, and exit."""
    gc.set_threshold(50_000)  # tracing creates millions of objects, nearly all to be kept
    os.environ["MPLBACKEND"] = "agg"  # figures are files, whatever the user's plots are
    name, *rest = [*words, *sys.argv[1:]] or ["--help"]
    console.protect_streams()
    console.catch_signals()
    logging.getLogger("jaxcifar").propagate = False  # other libraries have handlers of their own
    try:
        code = call(name, rest) or 0
        if name != "train":  # a run's results are in its directory, too
            sys.stdout.flush()
    except BrokenPipeError:  # head -1 has what it wanted
        code = 0
    except (UserError, OSError) as error:
        prog = f"jaxcifar {name}" if name in COMMANDS else "jaxcifar"
        with suppress(OSError):
            print(f"{prog}: error: {one_line(str(error))}", file=sys.stderr)
        code = 2
    except BaseException as error:  # importing a module in C turns a signal into another error
        signals = [*console.received, *(error.args if isinstance(error, KeyboardInterrupt) else ())]
        if not signals:
            raise
        code = 128 + signals[0]
    console.leave(code)


def call(name: str, argv: Sequence[str]) -> int | None:
    """Run a command in this process and return its exit code; errors are raised."""
    if name not in COMMANDS:
        parser = _Parser(prog="jaxcifar", description=jaxcifar.__doc__)
        version = f"jaxcifar {jaxcifar.__version__}"
        parser.add_argument("--version", action="version", version=version)
        subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
        for each, kind in COMMANDS.items():
            subparsers.add_parser(each, help=kind.__doc__)
        parser.parse_args([name])
    flags = vars(make_parser(name).parse_args(argv))
    config = COMMANDS[name](**flags)
    if isinstance(config, TrainConfig):
        config = config.resumed(flags)
    logging.getLogger("jaxcifar").addHandler(HANDLER)  # once, however often this is called
    logging.getLogger("jaxcifar").setLevel(logging.INFO)
    try:
        return importlib.import_module(f"jaxcifar.{name}").main(config)
    except Exception as error:
        text = traceback.format_exc()
        if "No space left" in text or not re.search(r"EXHAUSTED|^\S*MemoryError", text, re.M):
            raise
        size, problem = getattr(config, "batch_size", 1), "there is not enough memory"
        advice = f"for --batch-size {size}: try {size // 2}" if size > 1 else ": free some"
        raise UserError(f"{problem} {advice} ({error!r:.200})") from error


def make_parser(name: str) -> argparse.ArgumentParser:
    """Return a command's parser, with a flag for each option; it raises ``UserError``."""
    parser = _Parser(
        prog=f"jaxcifar {name}",
        description=COMMANDS[name].__doc__,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=30),
    )
    group: Any = parser
    for field, kind, _ in options.fields_with_types(COMMANDS[name]):
        shown = field.metadata
        if "group" in shown:
            group = parser.add_argument_group(shown["group"])
        word, text = flag(field.name), shown["help"].replace("%", "%%")
        values: dict[str, Any] = {"metavar": shown.get("metavar", "PATH")}
        if kind is bool:  # a flag for what is not the default
            word = flag(f"no_{field.name}") if field.default else word
            values = {"dest": field.name, "action": f"store_{not field.default}".lower()}
        elif kind in (int, float):
            values = {"metavar": "N", "type": int if kind is int else options.fraction}
        elif get_origin(kind) is Literal:
            values = {"choices": get_args(kind)}
        if "positional" in shown:
            word, values["metavar"] = field.name, field.name.upper()
            values["nargs"] = "+" if get_origin(kind) is tuple else None  # one or more
        elif field.default is dataclasses.MISSING:
            values["required"] = True
        elif field.default is not None and kind is not bool:
            text += f" (default: {options.show(field.default)})"
        group.add_argument(word, help=text, **values)
    return parser


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        known = [*self._option_string_actions, *(c for a in self._actions for c in a.choices or ())]
        words = re.findall(r"(?<!\S)--[\w-]+|(?<=choice: ')[^']+", message)
        hints = "".join(did_you_mean(word, known) for word in words if word not in known)
        raise UserError(f"{message}{hints} (see --help)")


class _StderrHandler(logging.Handler):
    """Writes to whatever stderr is now, above a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        warning = "Warning: " if record.levelno >= logging.WARNING else ""
        with suppress(OSError):  # nothing is lost but a line
            tqdm.write(f"{warning}{one_line(record.getMessage())}", file=sys.stderr)


HANDLER = _StderrHandler()
