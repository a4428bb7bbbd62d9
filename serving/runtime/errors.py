"""Errors of loading and running SavedModels, with TensorFlow's messages as callers may see them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import dropwhile
from typing import ParamSpec, TypeVar

from serving.errors import BundleError, HubheadError, OutputError
from serving.text import first_line

_TRACEBACK_PREFIXES = (
    "Graph execution error:",
    "Detected at node ",
    "  File ",
    "    ",
    "<stack unavailable>",
    "<stack traces unavailable>",
)
"""Prefixes of the lines that eager TensorFlow adds before the message of a failed op."""


ATTEMPTS = 5
"""Maximum runs of a graph that TensorFlow reports as cancelled."""

_CANCELLED = 1
"""Number of this gRPC status code."""

_Result = TypeVar("_Result")
_Arguments = ParamSpec("_Arguments")


class RunError(HubheadError):
    """TensorFlow failed to run a signature or a graph.

    Attributes:
        code: name of the gRPC status code with which TensorFlow Serving would answer.
    """

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code

    @classmethod
    def from_status(cls, code: int, message: str) -> RunError:
        """Return the error for the number and the message of a failed op's status."""
        import grpc

        names = (known.name for known in grpc.StatusCode if known.value[0] == code)
        return cls(clean_error_message(message), next(names, "UNKNOWN"))


def make_load_error(path: str | os.PathLike[str], error: Exception) -> BundleError:
    """Return the error for a directory that cannot be loaded, with the first line of the cause."""
    return BundleError(
        f"{path} cannot be loaded as a SavedModel: {first_line(error).rstrip('.')}.",
        remedy="Export the bundle again.",
    )


def make_signature_error(path: str | os.PathLike[str], name: str, known: Iterable[str]) -> BundleError:
    """Return the error for a signature that a model does not have."""
    return BundleError(f"{path} has no signature {name!r}.", remedy=f"It has: {', '.join(known)}.")


@contextmanager
def output_errors(directory: str | os.PathLike[str]) -> Iterator[None]:
    """Raise the error of a TensorFlow op that writes to a directory, as to a full disk, as OutputError."""
    try:
        yield
    except Exception as error:  # to name OpError is to import TensorFlow; others are raised again
        if not isinstance(error, RunError) and getattr(error, "error_code", None) is None:
            raise
        # Its text is the name of a temporary file and the reason: "/models/.../x; No space left on device".
        reason = clean_error_message(str(error)).splitlines()[0].rpartition("; ")[2].rstrip(".")
        raise OutputError(
            f"Cannot write to {directory}: {reason}.",
            remedy="Check the free space and the permissions there, or choose another location.",
        ) from error


def clean_error_message(text: str) -> str:
    """Return the message of a failed op as TensorFlow Serving sends it.

    Eager TensorFlow adds the Python traceback of the code that built the graph before it, which
    would reveal local paths to callers, and names of functions in this process around it.
    """
    lines = dropwhile(lambda line: not line or line.startswith(_TRACEBACK_PREFIXES), text.splitlines())
    message = "\n".join(lines).partition(" [Op:")[0] or text
    return re.sub(r"\{\{function_node \S+\}\} ?", "", message)


def repeat_cancelled(run: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Return a function that runs a graph again if TensorFlow reports the run as cancelled.

    Nothing here cancels runs, yet TensorFlow sometimes reports that a function was cancelled, where several
    photos of a call are damaged and the machine is busy (2 of 400 calls with 7 damaged photos).

    Args:
        run: function that raises RunError, or TensorFlow's own OpError.
    """

    def repeat(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        for _ in range(ATTEMPTS - 1):
            try:
                return run(*args, **kwargs)
            except Exception as error:  # to name OpError is to import TensorFlow; others are raised again
                if not _is_cancelled(error):
                    raise
        return run(*args, **kwargs)

    return repeat


def _is_cancelled(error: Exception) -> bool:
    if isinstance(error, RunError):
        return error.code == "CANCELLED"
    return getattr(error, "error_code", None) == _CANCELLED  # an OpError, whose import takes seconds
