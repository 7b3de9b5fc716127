"""What a process asks of the system, the C library and JAX.

On a CPU a step needs several hundred MB for a moment. By default glibc returns such memory to the
system after each step and gets it back page by page, which took a fifth of the time of a
step where measured; and steps that are dispatched ahead of time hold theirs at once.
"""

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from jaxcifar.errors import UserError, one_line
from jaxcifar.runtime.compile_cache import cpu_flags

WAIT_SECONDS = 60  # for the other processes of a run

# mallopt's parameters, from glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def prepare() -> None:
    """Call it first, before other libraries start threads; each command does.

    From then on all threads share the one arena that can grow to any size.
    """
    _mallopt(_ARENA_MAX, 1)


def dispatch_in_turn() -> None:
    """Lets each step end, and free its memory, before the next; call it before jax computes.

    It holds for JAX's CPU backend alone.
    """
    import jax

    jax.config.update("jax_cpu_enable_async_dispatch", False)


def join(coordinator: str, num_processes: int | None, process_id: int | None) -> None:
    """Makes this process one of several that compute together; call it before jax computes.

    Args:
      coordinator: ``HOST:PORT`` of process 0, or ``auto``: jax finds everything in the
        cluster's environment.
      num_processes: how many there are.
      process_id: which one this is.

    Raises:
      UserError: they did not find each other.
    """
    import jax

    if jax.distributed.is_initialized():
        return
    jax.config.update("jax_enable_preemption_service", False)  # the loop minds signals itself
    _keep_stdout_to_python()
    try:
        jax.distributed.initialize(
            None if coordinator == "auto" else coordinator,
            num_processes,
            process_id,
            initialization_timeout=WAIT_SECONDS,
            heartbeat_timeout_seconds=WAIT_SECONDS // 3,
            shutdown_timeout_seconds=WAIT_SECONDS // 3,
        )
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"the processes did not find each other ({error}): start all of them within"
            f" {WAIT_SECONDS} seconds, with the same --coordinator"
        ) from error


def _keep_stdout_to_python() -> None:
    """Gloo reports each connection on stdout, where only results belong."""
    try:
        if sys.stdout.fileno() != 1:
            return
    except (OSError, ValueError):  # a notebook's
        return
    sys.stdout.flush()
    sys.stdout = os.fdopen(os.dup(1), "w", encoding=sys.stdout.encoding)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)


def leave(error: Exception) -> NoReturn:
    """Ends a process whose others are gone, without waiting for them."""
    print(
        f"jaxcifar: error: another process of the run has ended ({one_line(str(error))[:200]}):"
        " start all of them again with --resume",
        file=sys.stderr,
        flush=True,
    )
    os._exit(2)


def is_first_process() -> bool:
    """Whether this is the process that prints and writes."""
    import jax

    return jax.process_index() == 0


def note(line: str) -> None:
    """Prints a line to stderr, once for all processes of a run."""
    if is_first_process():
        print(line, file=sys.stderr)


def agreed(flag: bool) -> bool:
    """Whether the flag is set in any process; each of them has to ask."""
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.array(flag)).any())


@contextmanager
def signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM instead of dying of them; a second one kills as usual."""
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


def warn_of_slow_bfloat16() -> None:
    """Prints a line where the processor is known to lack bfloat16 instructions."""
    flags = cpu_flags().split()
    if flags and not {"avx512_bf16", "amx_bf16", "bf16"} & set(flags):
        note("Warning: this processor has no bfloat16 instructions: --precision float32 is faster")


def keep_freed_memory() -> None:
    """On a CPU, freed memory stays with the process from here on; call it after the first step.

    Earlier, what the compiler frees would be kept in pieces. Without glibc nothing happens.
    """
    if not computes_on_cpu():
        return
    _mallopt(_MMAP_MAX, 0)
    _mallopt(_TRIM_THRESHOLD, 2**31 - 1)


def computes_on_cpu() -> bool:
    """Whether JAX's devices are CPUs."""
    import jax

    return jax.default_backend() == "cpu"


def _mallopt(parameter: int, value: int) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(parameter, value)
