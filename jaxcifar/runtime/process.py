"""How a process computes, where it keeps compiled programs, and the signals that stop it."""

import hashlib
import logging
import os
import platform
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
import jaxlib

from jaxcifar.errors import UserError
from jaxcifar.runtime import console, memory

log = logging.getLogger(__name__)


def start(
    *,
    use_compile_cache: bool = False,
    prefer_cpu: bool = False,
    join: Callable[[], object] | None = None,
) -> None:
    """Set JAX and its devices up for a command, or raise ``UserError``; call it before all else.

    If ``prefer_cpu``, compute on the CPU unless the user has chosen a platform. ``join`` connects
    to other processes.
    """
    if prefer_cpu and not jax.config.jax_platforms:  # type: ignore[attr-defined]
        jax.config.update("jax_platforms", "cpu")
    # On a CPU each step ends, and frees its memory, before the next is dispatched.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    if use_compile_cache:
        keep_programs()
    if join is not None:
        join()
    try:
        jax.devices()
    except Exception as error:  # of JAX or a plugin; an assertion, if JAX knows no such platform
        platforms = jax.config.jax_platforms  # type: ignore[attr-defined]
        reason = str(error) or type(error).__name__
        problem = f"JAX has no device for JAX_PLATFORMS={platforms or ''} ({reason:.200})"
        raise UserError(f"{problem}: set JAX_PLATFORMS=cpu, or see to the driver") from error


def computes_on_cpu() -> bool:
    """Whether JAX's devices are CPUs."""
    return jax.default_backend() == "cpu"


def keep_freed_memory() -> None:
    """Call ``memory.keep_freed`` if JAX computes on a CPU."""
    if computes_on_cpu():
        memory.keep_freed()


def keep_programs() -> None:
    """Turn JAX's compilation cache on in the user's cache directory, unless one is set."""
    if jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        return
    # One for each jaxlib and processor: code for one can crash on another.
    processor = f"{platform.machine()} {platform.processor()} {cpu_flags()}"
    key = hashlib.sha256(processor.encode()).hexdigest()[:12]
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    home = os.path.expanduser("~/Library/Caches") if sys.platform == "darwin" else home
    directory = Path(home, f"jaxcifar/jaxlib-{jaxlib.version.__version__}-{key}")
    with suppress(OSError):  # without a place for it, or a home, there is no cache
        if home.startswith("~"):
            return
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if os.access(directory, os.W_OK):
            jax.config.update("jax_compilation_cache_dir", str(directory))
            _clear_when_damaged(directory)


def _clear_when_damaged(directory: Path) -> None:
    """Delete the programs when JAX warns that one cannot be read; it would never replace it."""
    show = warnings.showwarning

    def clear(message: Warning | str, *args: Any, **options: Any) -> None:
        if "persistent compilation cache entry" not in str(message):
            show(message, *args, **options)
            return
        for path in directory.glob("*-cache"):
            path.unlink(missing_ok=True)

    warnings.showwarning = clear


def cpu_flags() -> str:
    """Return the processor's instruction sets, where Linux lists them."""
    return _cpu_info("flags") or _cpu_info("Features")


def processor() -> str:
    """Return the processor's name."""
    return _cpu_info("model name") or platform.processor() or platform.machine()


def _cpu_info(name: str) -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith(name):
                return line.partition(":")[2].strip()
    return ""


def warn_of_slow_bfloat16() -> None:
    """Warn if JAX computes on a processor that is known to lack bfloat16 instructions."""
    flags = set(cpu_flags().split())
    if computes_on_cpu() and flags and not {"avx512_bf16", "amx_bf16", "bf16"} & flags:
        log.warning("this processor has no bfloat16 instructions; --precision float32 is faster")


@contextmanager
def signals() -> Iterator[list[int]]:
    """Collect the first signal to stop; a second one terminates the process."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received  # only the main thread may handle signals
        return

    def handle(signum: int, frame: object) -> None:
        received.append(signum)
        signal.signal(signum, old[signum])

    old = {signum: signal.signal(signum, handle) for signum in console.stop_signals()}
    try:
        yield received
    finally:
        for signum, handler in old.items():
            signal.signal(signum, handler)
