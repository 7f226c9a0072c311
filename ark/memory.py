"""Memory, tuned for programs that allocate and free the same large arrays every step."""

from __future__ import annotations

import ctypes
import gc
import os
import platform

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # names of options in glibc's malloc.h


def settle() -> None:
    """Call once, when everything is imported."""
    gc.freeze()  # modules live to the end: not to be searched for garbage
    _keep_freed_memory()


def _keep_freed_memory() -> None:
    """Tells glibc to keep up to 1 GiB of freed memory instead of handing it back at once.

    By default blocks over 128 kB come from the system and go back to it, zeroed page by page each
    time: on the CPU a sixth of the time of a training step (docs/design.md). Workers inherit it.
    Does nothing with another C library, or where the user set MALLOC_* variables.
    """
    if platform.libc_ver()[0] != "glibc" or any(name.startswith("MALLOC_") for name in os.environ):
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(_MMAP_THRESHOLD, 32 << 20)  # the largest that glibc allows
    libc.mallopt(_TRIM_THRESHOLD, 1 << 30)
