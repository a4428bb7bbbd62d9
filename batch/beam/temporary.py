"""Temporary directory for what Beam leaves while it submits a job, and removal of those of killed processes.

Beam creates directories in `tempfile.gettempdir()` for the files that it stages and does not delete them, not
even after a success (observed with Beam 2.77). So they get a directory of this process around them.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PREFIX = "hubhead-beam-"


@contextmanager
def temporary_directory() -> Iterator[None]:
    """Let everything temporary of this process go to a directory that is deleted at the end of the block.

    A process that is killed leaves its directory, and the next process that uses this function deletes it.
    """
    before, top = tempfile.tempdir, Path(tempfile.gettempdir())
    _remove_abandoned(top)
    directory = Path(tempfile.mkdtemp(prefix=f".{_PREFIX}"))
    # The kernel releases the lock when the process ends, however it does. The directory gets its name when it
    # is locked, since others delete those that are not.
    descriptor = _lock(directory)
    try:
        directory = directory.rename(top / directory.name.removeprefix("."))
        tempfile.tempdir = str(directory)
        yield
    finally:
        tempfile.tempdir = before
        shutil.rmtree(directory, ignore_errors=True)
        if descriptor is not None:
            os.close(descriptor)


def _remove_abandoned(top: Path) -> None:
    for directory in top.glob(f"{_PREFIX}*"):
        if (descriptor := _lock(directory)) is not None:
            shutil.rmtree(directory, ignore_errors=True)
            os.close(descriptor)


def _lock(directory: Path) -> int | None:
    """Return the descriptor that locks a directory; None if another process has locked or removed it."""
    with suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            return None
        return descriptor
    return None
