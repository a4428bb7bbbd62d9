"""Errors that a user of hubhead can cause or meet.

    HubheadError
    ├── BundleError        a model directory is missing, incomplete or was not made by hubhead
    ├── InputError         photos, directories, files or settings that cannot be used
    ├── OutputError        a location that cannot be written, or that holds something else
    │   ├── OutputBusy          another run is writing there
    │   ├── LeaseLost           another run took over while this one was stopped
    │   └── StorageError        remote storage failed; an InputError and an OSError as well
    ├── GateRejected       a model did not meet the required quality
    ├── FetchError         a download failed or does not have the expected content
    └── ServerError        a model server answered with an error, or did not answer
        ├── ServerUnavailable   no server answers at the address
        │   └── Overloaded      the server answers, but has no capacity left
        ├── DeadlineExceeded    no response within the deadline
        ├── ModelNotFound       no such model, version or version label
        ├── InvalidRequest      the server rejected the request
        │   └── TooLarge        more bytes or rows than the server accepts in one request
        ├── NotAllowed          credentials are missing or insufficient
        └── Cancelled           the call was cancelled on this side

Commands print each as one line on stderr and exit with the exit code of its class; a
traceback is a bug.
"""

from __future__ import annotations

import operator
from enum import IntEnum
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints


class ExitCode(IntEnum):
    """Exit code of a command.

    Attributes:
        meaning: one phrase that explains the code to people.
    """

    meaning: str

    SUCCESS = 0, "success"
    FAILED = 1, "an error; its line on stderr says what was found, where, and the remedy"
    USAGE = 2, "wrong usage: flags or arguments that are unknown, missing or exclude each other"
    TOO_MANY_REJECTED = 3, "the run is complete, but rejected more photos than `--max_rejected` allows"
    GATE_REJECTED = 4, "a model did not meet the required quality; nothing was published or promoted"
    BUSY = 5, "another run or change is writing to the same location; run the command again later"
    INTERRUPTED = 130, "interrupted by Ctrl-C (SIGINT)"
    TERMINATED = 143, "terminated by SIGTERM, after leases were released and jobs cancelled"

    def __new__(cls, value: int, meaning: str = "") -> ExitCode:
        """Create the member with this value, and keep its meaning beside it."""
        code = int.__new__(cls, value)
        code._value_, code.meaning = value, meaning
        return code


_MAX_CHARACTERS = 4000
"""Maximum length of what an error says; it may quote a line of a file that turns out to be binary."""


class HubheadError(Exception):
    """Base class of all errors: what went wrong, where, and what to do about it.

    Attributes:
        what: what went wrong and where; the middle of a very long text is left out.
        remedy: one sentence that tells the user what to do next, or "".
        exit_code: exit code of a command that ends with this error.
    """

    exit_code: int = ExitCode.FAILED

    def __init__(self, what: str, *, remedy: str = "") -> None:
        if len(what) > _MAX_CHARACTERS:
            what = f"{what[: _MAX_CHARACTERS // 2]} ... {what[-_MAX_CHARACTERS // 2 :]}"
        super().__init__(what)
        self.what = what
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.what} {self.remedy}".rstrip()


class BundleError(HubheadError):
    """A model directory is missing, incomplete or was not made by hubhead."""


class InputError(HubheadError):
    """Photos, directories, files or settings that cannot be used."""


class OutputError(HubheadError):
    """A location that cannot be written, or that holds something else."""


class OutputBusy(OutputError):
    """Another run is writing to the location; the command can be run again later."""

    exit_code = ExitCode.BUSY


class LeaseLost(OutputError):
    """Another run took over because this one was stopped for too long; it has published nothing since."""


class StorageError(InputError, OutputError, OSError):
    """Remote storage that does not answer, or that rejects an operation."""


class GateRejected(HubheadError):
    """A model that did not meet the required quality; nothing was published."""

    exit_code = ExitCode.GATE_REJECTED


class FetchError(HubheadError):
    """A download that failed, was cut off, or does not have the expected content."""


class ServerError(HubheadError):
    """A model server answered with an error, or did not answer.

    Attributes:
        code: name of the gRPC status code, such as "NOT_FOUND".
        details: message of the server, or "".
    """

    def __init__(self, what: str, *, remedy: str = "", code: str = "UNKNOWN", details: str = "") -> None:
        super().__init__(what, remedy=remedy)
        self.code = code
        self.details = details


class ServerUnavailable(ServerError):
    """No server answers at the address, or the server is overloaded."""


class Overloaded(ServerUnavailable):
    """The server answers, but has no capacity left."""


class DeadlineExceeded(ServerError):
    """No response arrived within the deadline."""


class ModelNotFound(ServerError):
    """The server has no such model, version or version label."""


class InvalidRequest(ServerError):
    """The server rejected the request."""


class TooLarge(InvalidRequest):
    """A request with more bytes or rows than the server accepts."""


class NotAllowed(ServerError):
    """Credentials are missing or insufficient."""


class Cancelled(ServerError):
    """The call was cancelled on this side: its client was closed, or its results are no longer needed."""


def check_fields(record: Any) -> None:
    """Check that the fields of a frozen dataclass have their declared types; NumPy's numbers become Python's.

    Raises:
        InputError: a field has another type, such as a text where a number is expected, or is a text that
            is not valid Unicode.
    """
    for name, hint in get_type_hints(type(record)).items():
        union = isinstance(hint, UnionType) or get_origin(hint) is Union
        kinds = {get_origin(kind) or kind for kind in (get_args(hint) if union else (hint,))}
        value: Any = getattr(record, name)
        number = isinstance(value, Real) and not isinstance(value, bool)
        if number and float in kinds:
            object.__setattr__(record, name, float(value))
        elif number and int in kinds and isinstance(value, Integral):
            object.__setattr__(record, name, operator.index(value))
        elif not isinstance(value, tuple(kinds)) or (isinstance(value, bool) and bool not in kinds):
            expected = " or ".join(sorted("None" if kind is NoneType else kind.__name__ for kind in kinds))
            # Without the value, which may be a secret, as in headers.
            raise InputError(
                f"The {name} of a {type(record).__name__} is of type {type(value).__name__}.",
                remedy=f"Give a value of type {expected}.",
            )
        elif kinds <= {str, NoneType}:  # others may be paths, which can have any bytes
            check_unicode(f"The {name} of a {type(record).__name__}", str(value or ""))


def check_unicode(what: str, text: str) -> None:
    """Check that a text can be sent as UTF-8: it has no half of a surrogate pair.

    Args:
        what: what the text is, for the error.
        text: text to check; arguments of a command that are not UTF-8 have such halves.

    Raises:
        InputError: it cannot.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{what} is not valid Unicode: {text[error.start]!a} is half of a surrogate pair.",
            remedy="Give a text that can be written as UTF-8.",
        ) from error
