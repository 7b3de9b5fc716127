"""What a process that computes on a CPU asks of the C library and of JAX.

A step needs several hundred MB for a moment. By default glibc returns such memory to the
system after each step and gets it back page by page, which took a fifth of the time of a
step where measured; and steps that are dispatched ahead of time hold theirs at once.
"""

import ctypes
import os
import sys

from jaxcifar.compile_cache import cpu_flags

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


def warn_of_slow_bfloat16() -> None:
    """Prints a line where the processor is known to lack bfloat16 instructions."""
    flags = cpu_flags().split()
    if flags and not {"avx512_bf16", "amx_bf16", "bf16"} & set(flags):
        print(
            "Warning: this processor has no bfloat16 instructions: --precision float32 is faster",
            file=sys.stderr,
        )


def keep_freed_memory() -> None:
    """From here on freed memory stays with the process; call it once the step is compiled.

    Earlier, what the compiler frees would be kept in pieces. Without glibc nothing happens.
    """
    _mallopt(_MMAP_MAX, 0)
    _mallopt(_TRIM_THRESHOLD, 2**31 - 1)


def _mallopt(parameter: int, value: int) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(parameter, value)
