"""Return of free memory to the operating system."""

from __future__ import annotations

import ctypes
import functools
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LARGE = 1 << 23
"""Bytes of a request from which `trim` is worth its milliseconds."""


def collect() -> None:
    """Free all unreachable objects, and return their memory; it takes some tenths of a second."""
    gc.collect()
    trim()


@contextmanager
def pause_collection() -> Iterator[None]:
    """Pause the garbage collector within a `with` block, which one thread at a time may enter.

    It runs again and again while millions of objects are created, and takes most of the time then.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def trim() -> None:
    """Return free memory, which glibc keeps otherwise; it has no effect with another C library."""
    if function := _find_trim():
        function(0)


@functools.cache
def _find_trim() -> Callable[[int], int] | None:
    """Return malloc_trim of glibc; None with another C library."""
    return getattr(ctypes.CDLL(None), "malloc_trim", None)
