"""What a process asks of glibc's allocator. Imports nothing heavy; without glibc it does nothing.

By default glibc returns the several hundred MB of a CPU step to the system after each step and
gets them back page by page, which took a fifth of a step's time.
"""

import ctypes
import os

# mallopt's parameters, from glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def share_one_arena() -> None:
    """Let all threads use the one arena that can grow; call it before libraries start threads."""
    _mallopt(_ARENA_MAX, 1)


def keep_freed() -> None:
    """Keep freed memory in the process; call it after the first step.

    Earlier, it would keep what the compiler frees, in pieces.
    """
    _mallopt(_MMAP_MAX, 0)
    _mallopt(_TRIM_THRESHOLD, 2**31 - 1)


def _mallopt(parameter: int, value: int) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(parameter, value)
