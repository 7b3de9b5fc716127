"""The command line: a table of commands, their flags, and one way to fail."""

import argparse
import contextlib
import importlib
import logging
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn, TextIO, cast, get_origin

from tqdm import tqdm

import jaxcifar
from jaxcifar.config import commands, options
from jaxcifar.config.options import Options, flag
from jaxcifar.config.train import TrainConfig
from jaxcifar.errors import UserError, did_you_mean, one_line, printable
from jaxcifar.runtime import console, memory


class Command(NamedTuple):
    """A command: its options, and what ``--help`` says about it."""

    options: type[Options]
    description: str


# Each is the function ``main`` of the module of its name, imported when it runs.
COMMANDS = {
    "train": Command(TrainConfig, "Train a network and print its test accuracy."),
    "evaluate": Command(commands.EvaluateConfig, "Print how good weights are on test images."),
    "predict": Command(commands.PredictConfig, "Print the most likely classes of images."),
    "report": Command(commands.ReportConfig, "Make a page with the scores and curves of runs."),
    "export": Command(commands.ExportConfig, "Write weights for torch, safetensors or plain JAX."),
    "port": Command(commands.PortConfig, "Convert weights from or to torch, and verify them."),
}


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run ``jaxcifar COMMAND ...`` and exit.

    The exit code is 0, what the command returns, 2 after bad input, or 128 + N on signal N.
    """
    memory.share_one_arena()
    os.environ["MPLBACKEND"] = "agg"  # figures are files, whatever the user's plots are
    name, *rest = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    console.protect_streams(strict=name != "train")  # a run's results are in its directory, too
    console.catch_signals()
    logging.getLogger("jaxcifar").propagate = False  # other libraries have handlers of their own
    try:
        code = call(name, rest) or 0
        sys.stdout.flush()
    except BrokenPipeError:  # head -1 has what it wanted
        code = 0
    except (UserError, OSError) as error:
        prog = f"jaxcifar {name}" if name in COMMANDS else "jaxcifar"
        print(f"{prog}: error: {one_line(str(error))}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt as interrupt:
        console.leave(128 + (interrupt.args[0] if interrupt.args else signal.SIGINT))
    sys.exit(code)


def run(name: str) -> NoReturn:
    """Run one command with this process's arguments, as ``python -m jaxcifar.NAME`` does."""
    main([name, *sys.argv[1:]])


def call(name: str, argv: Sequence[str]) -> int | None:
    """Run a command in this process and return its exit code; errors are raised."""
    if name not in COMMANDS:
        parser = _Parser(prog="jaxcifar", description=jaxcifar.__doc__)
        version = f"jaxcifar {jaxcifar.__version__}"
        parser.add_argument("--version", action="version", version=version)
        subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
        for each, command in COMMANDS.items():
            subparsers.add_parser(each, help=command.description)
        parser.parse_args([name])
    config = COMMANDS[name].options.from_flags(parse(name, argv))
    logger = logging.getLogger("jaxcifar")
    if not any(isinstance(handler, _StderrHandler) for handler in logger.handlers):
        logger.addHandler(_StderrHandler())
    logger.setLevel(logging.INFO)
    try:
        with contextlib.redirect_stdout(cast(TextIO, _Stdout(sys.stdout))):
            return importlib.import_module(f"jaxcifar.{name}").main(config)
    except Exception as error:
        if not _is_out_of_memory(error):
            raise
        size, problem = getattr(config, "batch_size", 1), "there is not enough memory"
        advice = f"for --batch-size {size}: try {size // 2}" if size > 1 else ": free some"
        reason = str(error) or type(error).__name__
        raise UserError(f"{problem} {advice} ({reason:.200})") from error


def parse(name: str, argv: Sequence[str]) -> dict[str, Any]:
    """Return the values of the flags given for a command, and no others."""
    command = COMMANDS[name]
    parser = make_parser(command.options, f"jaxcifar {name}", command.description)
    return vars(parser.parse_args(argv))


def make_parser(config: type[Options], prog: str, description: str) -> argparse.ArgumentParser:
    """Return a parser with a flag for each option; it raises ``UserError``."""
    parser = _Parser(
        prog=prog,
        description=description,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=30),
    )
    group: Any = parser
    for field, kind in options.fields_with_types(config):
        if title := field.metadata["group"]:
            group = parser.add_argument_group(title)
        text, name = field.metadata["help"].replace("%", "%%"), flag(field.name)
        if kind is bool:  # a flag for what is not the default
            name = flag(f"no_{field.name}") if field.default else name
            action = "store_false" if field.default else "store_true"
            group.add_argument(name, dest=field.name, action=action, help=text)
            continue
        values: dict[str, Any] = {"metavar": field.metadata["metavar"]}
        if kind in (int, float):
            values = {"type": int if kind is int else options.fraction, "metavar": "N"}
        elif options.choices(kind):
            values = {"choices": options.choices(kind)}
        if field.metadata["positional"]:
            name, values["metavar"] = field.name, field.name.upper()
            values["nargs"] = "+" if get_origin(kind) is tuple else None  # one or more
        elif field.default is options.REQUIRED:
            values["required"] = True
        elif field.default is not None:
            text += f" (default: {options.show(field.default)})"
        group.add_argument(name, help=text, **values)
    return parser


class _Parser(argparse.ArgumentParser):
    words: Sequence[str] = ()

    def parse_args(self, words: Sequence[str]) -> argparse.Namespace:  # type: ignore[override]
        self.words = words
        return super().parse_args(words)

    def error(self, message: str) -> NoReturn:
        known = [*self._option_string_actions, *(c for a in self._actions for c in a.choices or ())]
        unknown = (word.partition("=")[0] for word in self.words if word not in known)
        wrong = [word for word in unknown if word.startswith("--") or repr(word) in message]
        hints = "".join(did_you_mean(word, known) for word in wrong)
        raise UserError(f"{message}{hints} (see --help)")


class _StderrHandler(logging.Handler):
    """Writes to whatever stderr is now, above a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        warning = "Warning: " if record.levelno >= logging.WARNING else ""
        tqdm.write(f"{warning}{one_line(record.getMessage())}", file=sys.stderr)


class _Stdout:
    """Writes to a stream without the control characters of names and paths."""

    def __init__(self, stream: TextIO) -> None:
        self.write = lambda text: stream.write(printable(text))
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _is_out_of_memory(error: BaseException | None) -> bool:
    """Whether a failure, or what it was raised from, is for want of memory on host or device."""
    if error is None or isinstance(error, MemoryError):
        return error is not None
    exhausted = isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" in str(error)
    return exhausted or _is_out_of_memory(error.__cause__ or error.__context__)
