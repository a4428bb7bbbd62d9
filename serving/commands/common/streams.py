"""Standard streams of a command: those that the caller has closed, and a stdout that cannot be written."""

from __future__ import annotations

import errno
import os
import sys

_WRITE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)

_CLOSED = ((0, "stdin", os.O_RDONLY, "r"), (1, "stdout", os.O_WRONLY, "w"), (2, "stderr", os.O_WRONLY, "w"))
"""Number, name, flags and mode of each standard stream."""


def open_missing_streams() -> None:
    """Open the null device in place of closed standard streams, as of `hubhead ... >&- 2>&-`.

    Otherwise the next files that are opened get their numbers, and what libraries print goes into them.
    """
    for number, name, flags, mode in _CLOSED:
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, flags)  # the lowest free number, which is that of the stream
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            os.set_inheritable(number, True)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, closefd=False))


def is_output_error(error: OSError) -> bool:
    """Return whether an error is that of a write to a stream, such as stdout on a full disk.

    Errors of files have their names, or are OutputErrors.
    """
    return error.filename is None and error.errno in _WRITE_ERRORS


def discard_stdout() -> None:
    """Send what is left for stdout to the null device: its flush at exit would fail again."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)
