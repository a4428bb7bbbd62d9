"""The answer to a request that cannot be served."""

from __future__ import annotations

import grpc

_MAX_DETAILS = 1024
"""TensorFlow Serving cuts longer texts (model_servers/grpc_status_util.cc); they travel as a header."""


class Refusal(Exception):
    """A gRPC status other than OK.

    Attributes:
        code: the status code.
        text: as TensorFlow Serving words it.
        details: the text as gRPC sends it.
    """

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(details)
        self.code = code
        self.text = details
        self.details = details if len(details) <= _MAX_DETAILS else details[:_MAX_DETAILS] + "...TRUNCATED"


def invalid(details: str) -> Refusal:
    """INVALID_ARGUMENT, the most frequent of them."""
    return Refusal(grpc.StatusCode.INVALID_ARGUMENT, details)


def queue_full(waiting: int, limit: int) -> Refusal:
    """There is no room for a request; callers know it by these words (shared_batch_scheduler.h)."""
    return Refusal(
        grpc.StatusCode.UNAVAILABLE,
        "The batch scheduling queue to which this task was submitted is full; "
        f"currently {waiting} batches enqueued and max_enqueued_batches is {limit}",
    )
