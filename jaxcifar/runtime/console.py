"""A command's streams and signals. Imports nothing heavy."""

import atexit
import io
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any, NoReturn

received: list[int] = []  # signals that stopped the command


def protect_streams() -> None:
    """Keep closed streams, and characters that a stream cannot show, from ending a command."""
    while os.open(os.devnull, os.O_RDWR) <= 2:  # or the next file opened would be stdout
        pass
    for name in ("stdout", "stderr"):
        if (stream := getattr(sys, name)) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):  # else a notebook's
            stream.reconfigure(errors="replace", line_buffering=True)


def stop_signals() -> list[int]:
    """Return the signals that stop a command; SIGHUP, which Windows lacks, unless of ``nohup``."""
    numbers: list[int] = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    return numbers


def catch_signals() -> None:
    """Let the signals that stop a command raise ``KeyboardInterrupt``, and say so at once."""
    for signum in stop_signals():
        signal.signal(signum, _interrupt)
    sys.unraisablehook = threading.excepthook = _raise_again
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    # While XLA compiles no handler runs, but other threads do.
    threading.Thread(target=_listen, args=(reader, writer), daemon=True).start()


def _raise_again(lost: Any) -> None:
    """Repeat a signal that fell into a callback; what else failed is reported by who needs it."""
    if isinstance(lost.exc_value, KeyboardInterrupt):
        threading.Timer(0.1, signal.raise_signal, lost.exc_value.args).start()


def _listen(reader: socket.socket, writer: socket.socket) -> None:
    while reader.recv(1):
        _announce()


@cache
def _announce() -> None:
    with suppress(OSError):
        os.write(2, b"\nstopping; this can take a while\n")


def _interrupt(signum: int, frame: object) -> NoReturn:
    received.append(signum)
    _announce()
    raise KeyboardInterrupt(signum)  # so that half-written files are removed


@contextmanager
def signals() -> Iterator[list[int]]:
    """Collect the first signal to stop; a second one terminates the process."""
    received: list[int] = []
    old: dict[int, Any] = {}

    def handle(signum: int, frame: object) -> None:
        received.append(signum)
        signal.signal(signum, old[signum])

    with suppress(ValueError):  # only the main thread may handle signals
        old |= {signum: signal.signal(signum, handle) for signum in stop_signals()}
    try:
        yield received
    finally:
        for signum, handler in old.items():
            signal.signal(signum, handler)


def leave(code: int) -> NoReturn:
    """End this process; a plain exit crashes where XLA compiles, and fails where stdout is full."""
    with suppress(BaseException):  # another signal
        atexit._run_exitfuncs()
        sys.stdout.flush()
    os._exit(code)
