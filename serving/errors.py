"""Every error that a user of hubhead can cause or meet.

    HubheadError
    ├── BundleError        a model directory is missing, incomplete or not ours
    ├── InputError         photos, folders, files or settings that cannot be used
    ├── OutputError        a place that cannot be written, or holds something else
    │   └── OutputBusy          another run is writing there
    ├── GateRejected       a model that is not as good as it was asked to be
    ├── FetchError         a download failed or is not what was expected
    └── ServerError        a model server answered with an error, or not at all
        ├── ServerUnavailable   nothing answers at the address
        │   └── Overloaded      it answers, and has more to do than it can
        ├── DeadlineExceeded    no answer in time
        ├── ModelNotFound       no such model, version or label
        ├── InvalidRequest      the server refuses what was sent
        │   └── TooLarge        more bytes or rows than the server takes in one request
        ├── NotAllowed          the credentials are missing, or are not enough
        └── Cancelled           the call was given up on this side

Commands turn each into one line on stderr and the exit code of the class; a
traceback is a bug.
"""

from __future__ import annotations


class HubheadError(Exception):
    """What went wrong and where, and what to do about it.

    Attributes:
        remedy: one sentence that tells the user what to do next, or "".
        exit_code: what the command ends with.
    """

    exit_code = 1

    def __init__(self, what: str, *, remedy: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.what} {self.remedy}".rstrip()


class BundleError(HubheadError):
    """A model directory is missing, incomplete or was not made by hubhead."""


class InputError(HubheadError):
    """Photos, folders, files or settings that cannot be used."""


class OutputError(HubheadError):
    """A place that cannot be written, or that holds something else."""


class OutputBusy(OutputError):
    """Another run is writing there; the same command may be run again later."""

    exit_code = 5


class GateRejected(HubheadError):
    """A model that is not as good as it was asked to be; nothing was published."""

    exit_code = 4


class FetchError(HubheadError):
    """A download failed, was cut off, or is not what was expected."""


class ServerError(HubheadError):
    """A model server answered with an error, or not at all.

    Attributes:
        code: the name of the gRPC status code, such as "NOT_FOUND".
        details: the server's own words, or "".
    """

    def __init__(self, what: str, *, remedy: str = "", code: str = "UNKNOWN", details: str = "") -> None:
        super().__init__(what, remedy=remedy)
        self.code = code
        self.details = details


class ServerUnavailable(ServerError):
    """Nothing answers at the address, or the server is overloaded."""


class Overloaded(ServerUnavailable):
    """The server answers, and has more to do than it can."""


class DeadlineExceeded(ServerError):
    """No answer in time."""


class ModelNotFound(ServerError):
    """The server has no such model, version or label."""


class InvalidRequest(ServerError):
    """The server refuses what was sent."""


class TooLarge(InvalidRequest):
    """More bytes or rows than the server takes in one request."""


class NotAllowed(ServerError):
    """The server wants credentials, or others than those that were sent."""


class Cancelled(ServerError):
    """The call was given up on this side: its client was closed, or its results are no longer wanted."""
