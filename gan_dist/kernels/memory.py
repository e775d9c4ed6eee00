"""Memory on a CPU: blocks that were freed are used again, instead of being given back to the operating system."""

from __future__ import annotations

import ctypes
from contextlib import suppress

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # numbers of two parameters of glibc's `mallopt`
DEFAULTS = {M_TRIM_THRESHOLD: 2**17, M_MMAP_MAX: 2**16}  # glibc's own values


def keep_freed_memory() -> None:
    """Let glibc keep freed memory for the next allocation instead of returning it to the operating system.

    By default glibc returns every large block when it is freed. The next activation of this size then gets new memory,
    which costs a page fault for each 4 KiB.
    """
    with suppress(AttributeError, TypeError, OSError):  # other C libraries than glibc have no `mallopt`
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)


def give_back_memory() -> None:
    """Give freed memory back to the operating system, and let glibc do so from now on: undo `keep_freed_memory`."""
    with suppress(AttributeError, TypeError, OSError):
        libc = ctypes.CDLL(None)
        for parameter, value in DEFAULTS.items():
            libc.mallopt(parameter, value)
        libc.malloc_trim(0)
