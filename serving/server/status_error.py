"""The error that becomes a gRPC status, and the texts that TensorFlow Serving sends with it."""

from __future__ import annotations

import functools

import grpc

_MAX_DETAILS = 1024
"""TensorFlow Serving truncates longer texts (model_servers/grpc_status_util.cc); they travel as a header."""


class StatusError(Exception):
    """A request that ends with a gRPC status other than OK.

    Attributes:
        code: gRPC status code.
        text: full message, worded as in TensorFlow Serving; REST sends it.
        details: message as gRPC sends it, truncated to 1,024 characters.
    """

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(details)
        self.code = code
        self.text = details
        self.details = details if len(details) <= _MAX_DETAILS else details[:_MAX_DETAILS] + "...TRUNCATED"


invalid_argument = functools.partial(StatusError, grpc.StatusCode.INVALID_ARGUMENT)
failed_precondition = functools.partial(StatusError, grpc.StatusCode.FAILED_PRECONDITION)
not_found = functools.partial(StatusError, grpc.StatusCode.NOT_FOUND)
unavailable = functools.partial(StatusError, grpc.StatusCode.UNAVAILABLE)
unimplemented = functools.partial(StatusError, grpc.StatusCode.UNIMPLEMENTED)


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
