"""Return of free memory to the operating system."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable

_LARGE = 1 << 23
"""Bytes of a request from which it is worth it; glibc then takes some milliseconds."""


def release_free_memory(size: int) -> None:
    """Return the memory that a large request has freed; glibc would keep it.

    Args:
        size: bytes of the request.
    """
    if size >= _LARGE and (trim := _find_trim()):
        trim(0)


@functools.cache
def _find_trim() -> Callable[[int], int] | None:
    """Return malloc_trim of glibc; None with another C library."""
    return getattr(ctypes.CDLL(None), "malloc_trim", None)
