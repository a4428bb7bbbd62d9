"""The error that becomes a gRPC status, and the texts that TensorFlow Serving sends with it."""

from __future__ import annotations

import functools
import traceback

import grpc

_MAX_DETAILS = 1024
"""Bytes from which TensorFlow Serving truncates texts (model_servers/grpc_status_util.cc), as a header has
little room: gRPC sends three bytes for each that is not ASCII."""


class StatusError(Exception):
    """A request that ends with a gRPC status other than OK.

    Attributes:
        code: gRPC status code.
        text: full message, worded as in TensorFlow Serving; REST sends it.
        details: message as gRPC sends it, truncated to 1,024 bytes.
    """

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(details)
        self.code = code
        self.text = details
        encoded = details.encode(errors="backslashreplace")
        self.details = encoded[:_MAX_DETAILS].decode(errors="ignore")
        if len(encoded) > _MAX_DETAILS:
            self.details += "...TRUNCATED"


def free_frames(error: BaseException) -> None:
    """Free what an error refers to by its traceback, such as the request, once it has left these frames.

    A frame refers to the future that holds the error of a request, so that otherwise both, and all bytes of
    the request, stay until the garbage collector finds the cycle, which on an idle server is never.
    """
    following: BaseException | None = error
    while following is not None:
        traceback.clear_frames(following.__traceback__)
        following.__traceback__ = None
        following = following.__cause__ or following.__context__


invalid_argument = functools.partial(StatusError, grpc.StatusCode.INVALID_ARGUMENT)
failed_precondition = functools.partial(StatusError, grpc.StatusCode.FAILED_PRECONDITION)
not_found = functools.partial(StatusError, grpc.StatusCode.NOT_FOUND)
resource_exhausted = functools.partial(StatusError, grpc.StatusCode.RESOURCE_EXHAUSTED)
unavailable = functools.partial(StatusError, grpc.StatusCode.UNAVAILABLE)
unimplemented = functools.partial(StatusError, grpc.StatusCode.UNIMPLEMENTED)


def cancelled() -> StatusError:
    """Return the CANCELLED error for a request whose caller has left."""
    return StatusError(grpc.StatusCode.CANCELLED, "The caller has cancelled the request.")


def queue_full(waiting: int, limit: int) -> StatusError:
    """Return the UNAVAILABLE error for a request that finds no room in the queue.

    Clients recognise overload by this text (shared_batch_scheduler.h of TensorFlow).

    Args:
        waiting: number of batches in the queue.
        limit: number of batches that the queue may hold.
    """
    return unavailable(
        "The batch scheduling queue to which this task was submitted is full; "
        f"currently {waiting} batches enqueued and max_enqueued_batches is {limit}",
    )


def queue_timeout() -> StatusError:
    """Return the RESOURCE_EXHAUSTED error for a request whose deadline passed in the queue."""
    return StatusError(
        grpc.StatusCode.RESOURCE_EXHAUSTED, "Run() timeout exceeded while waiting in batching queue"
    )


def execution_timeout() -> StatusError:
    """Return the DEADLINE_EXCEEDED error for a request whose deadline passed while the model ran."""
    return StatusError(grpc.StatusCode.DEADLINE_EXCEEDED, "Timed out waiting for notification")
