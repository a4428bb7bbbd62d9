"""Reading of files that a list names, of which nobody knows whether they are files on a disk."""

from __future__ import annotations

import errno
import os
import stat
from functools import cache
from pathlib import Path

from serving.storage import files, remote

MAX_BYTES = 1 << 30
"""Maximum size of a file; no model takes a photo near it, and sparse files can be of any size."""


def read_regular(uri: str) -> bytes:
    """Return the content of a file; for a pipe or a device raise an error at once, without opening it.

    Raises:
        OSError: the file cannot be read, has more than MAX_BYTES, or it is a pipe, a device, or made by the
            kernel (/proc, /sys).
    """
    if files.is_remote(uri):
        return remote.read(uri)
    path = files.local_path(uri)
    try:
        _check_regular(path, Path(path).stat())
        # O_NONBLOCK: the opening of a pipe that has taken its place since would wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except ValueError as error:  # a null byte, or characters that no file name has
        raise OSError(errno.EINVAL, f"not a file name ({error})", path) from error
    with os.fdopen(descriptor, "rb") as file:
        _check_regular(path, os.fstat(descriptor))
        return file.read()


def _check_regular(path: str, info: os.stat_result) -> None:
    """Check that a path is that of a file on a disk.

    Raises:
        OSError: it is something else.
    """
    if stat.S_ISDIR(info.st_mode):
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    if not stat.S_ISREG(info.st_mode) or is_made_by_kernel(info):
        raise OSError(errno.EINVAL, "not a regular file", path)
    if info.st_size > MAX_BYTES:
        raise OSError(errno.EFBIG, f"{info.st_size} bytes, more than {MAX_BYTES}", path)


def is_made_by_kernel(info: os.stat_result) -> bool:
    """Return whether a file or directory is on a file system that the kernel makes up: /proc or /sys."""
    return info.st_dev in _kernel_devices()


@cache
def _kernel_devices() -> frozenset[int]:
    """Return the numbers of the file systems whose files the kernel makes up when they are read."""
    tops = (Path(name) for name in ("/proc", "/sys"))
    found = {top.stat().st_dev for top in tops if top.is_dir()}
    return frozenset(found - {Path("/").stat().st_dev})  # directories in which nothing is mounted
