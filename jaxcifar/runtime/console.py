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
from typing import Any, NoReturn, TextIO


def protect_streams(*, strict: bool) -> None:
    """Keep failed prints from ending a command; if ``strict``, the first to stdout is raised."""
    while os.open(os.devnull, os.O_RDWR) <= 2:  # or the next file opened would be stdout
        pass
    if sys.stdout is sys.__stdout__:  # else a notebook's or a test's
        sys.stdout = forgiving(sys.stdout, strict=strict)
    if sys.stderr is sys.__stderr__:
        sys.stderr = forgiving(sys.stderr)


def forgiving(stream: TextIO | None, *, strict: bool = False) -> TextIO:
    """Return a stream to the same file that replaces what its encoding lacks, and never fails."""
    stream = stream or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    buffer = io.BufferedWriter(_Forgiving(stream, strict))  # type: ignore[type-var]
    return io.TextIOWrapper(buffer, stream.encoding, errors="replace", line_buffering=True)


class _Forgiving(io.RawIOBase):
    def __init__(self, stream: TextIO, strict: bool) -> None:
        self._stream, self._strict = stream, strict  # which closes its file when it is forgotten
        self.fileno, self.isatty = stream.fileno, stream.isatty  # type: ignore[method-assign]

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        raw = getattr(self._stream.buffer, "raw", self._stream.buffer)
        try:
            return raw.write(data) or len(data)
        except OSError as error:
            if self._strict:
                self._strict = False
                raise OSError(error.errno, error.strerror, "stdout") from error
            return len(data)


def stop_signals() -> list[int]:
    """Return the signals that stop a command; SIGHUP, which Windows lacks, unless of ``nohup``."""
    numbers = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    return [int(number) for number in numbers]


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
    """End this process; where XLA's threads still compile, a plain exit crashes."""
    with suppress(BaseException):  # another signal
        atexit._run_exitfuncs()
        sys.stdout.flush()
    os._exit(code)
