"""How a process computes, and the signals that stop it."""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import jax

from jaxcifar.runtime import compile_cache, memory

log = logging.getLogger(__name__)


def start(*, use_compile_cache: bool) -> None:
    """Set JAX up for a command; call it before JAX computes.

    On a CPU each step ends, and frees its memory, before the next is dispatched.
    """
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    if use_compile_cache:
        compile_cache.enable()


def computes_on_cpu() -> bool:
    """Whether JAX's devices are CPUs."""
    return jax.default_backend() == "cpu"


def keep_freed_memory() -> None:
    """Call ``memory.keep_freed`` if JAX computes on a CPU."""
    if computes_on_cpu():
        memory.keep_freed()


def warn_of_slow_bfloat16() -> None:
    """Warn if the processor is known to lack bfloat16 instructions."""
    flags = set(compile_cache.cpu_flags().split())
    if flags and not {"avx512_bf16", "amx_bf16", "bf16"} & flags:
        log.warning("this processor has no bfloat16 instructions; --precision float32 is faster")


@contextmanager
def signals() -> Iterator[list[int]]:
    """Collect the first SIGINT or SIGTERM; a second one terminates the process."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received  # only the main thread may handle signals
        return

    def handle(signum: int, frame: object) -> None:
        received.append(signum)
        signal.signal(signum, old[signum])

    old = {int(s): signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for signum, handler in old.items():
            signal.signal(signum, handler)
