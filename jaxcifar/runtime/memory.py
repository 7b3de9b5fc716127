"""What a process asks of glibc's allocator; without glibc, nothing. Imports nothing heavy.

By default glibc returns the several hundred MB of a CPU step to the system after each step and
gets them back page by page, which took a fifth of a step's time.
"""

import ctypes
import os
from functools import cache

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8  # mallopt's parameters, from malloc.h


def share_arenas() -> None:
    """Allow two arenas: with one, threads wait while XLA compiles. Call it before any starts."""
    _mallopt(_ARENA_MAX, 2)


@cache  # it is called after each step
def keep_freed() -> None:
    """Keep freed memory; call it after the first step, to not keep what the compiler frees."""
    _mallopt(_MMAP_MAX, 0)
    _mallopt(_TRIM_THRESHOLD, -1)  # never return it


def _mallopt(parameter: int, value: int) -> None:
    if os.name == "posix" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        mallopt(parameter, value)
