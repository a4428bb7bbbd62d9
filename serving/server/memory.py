"""Memory of the process, and the return of what is free to the operating system."""

from __future__ import annotations

import ctypes
import functools
import gc
import os
from collections.abc import Callable
from pathlib import Path

LARGE = 1 << 23
"""Bytes of a request from which `trim` is worth its milliseconds."""


def get_resident() -> int:
    """Return the resident memory of this process in bytes; 0 where there is no /proc."""
    try:
        pages = Path("/proc/self/statm").read_text("ascii").split()[1]
    except OSError:
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def collect() -> None:
    """Free all unreachable objects, and return their memory; it takes some tenths of a second."""
    gc.collect()
    trim()


def trim() -> None:
    """Return free memory, which glibc keeps otherwise; it has no effect with another C library."""
    if function := _find_trim():
        function(0)


@functools.cache
def _find_trim() -> Callable[[int], int] | None:
    """Return malloc_trim of glibc; None with another C library."""
    return getattr(ctypes.CDLL(None), "malloc_trim", None)
