"""Retries of failed gRPC calls: which errors are retried, with which backoff, and until when."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, replace
from enum import Enum

import grpc

from serving import protos
from serving.client.grpc_errors import to_server_error
from serving.client.sans_io import Call, Operation, Pause
from serving.errors import (
    DeadlineExceeded,
    InputError,
    ServerError,
    ServerUnavailable,
    TooLarge,
    check_fields,
)

_REQUEST_ERRORS = (
    "Missing ModelSpec",
    "ModelSpec has no name",
    "Unrecognized servable version label",
    "Serving signature",
    "No signature was found",
    "input size does not match",
    "Signature input alias",
    "Inputs contains invalid name",
    "Inputs expected to be",
    "output tensor alias",
    "duplicate output tensor alias",
    "Expects arg[",
    "tensor parsing error",
    "Batching Run() input tensors",
)
"""Prefixes of errors that concern the request as a whole: isolating a faulty photo is of no use."""

_CLOCK_TOLERANCE_SECONDS = 0.02
"""Seconds by which the server may regard a deadline as passed before this machine does."""


@dataclass(frozen=True)
class Retry:
    """Retry policy: exponential backoff with full jitter.

    The wait before the nth retry is drawn uniformly from 0 to min(most, first * 2^(n-1)) seconds, the
    scheme that puts the least load on a recovering server (M. Brooker, "Exponential Backoff And Jitter",
    AWS Architecture Blog, 2015). The deadline of a request covers all its retries; a retry whose backoff
    would end after the deadline is not made.

    Attributes:
        attempts: maximum number of attempts, the first one included; 1 never retries.
        first: maximum wait before the first retry, in seconds.
        most: maximum wait before any retry, in seconds.
    """

    attempts: int = 5
    first: float = 0.1
    most: float = 5.0

    def __post_init__(self) -> None:
        check_fields(self)
        if self.attempts < 1 or not (self.first >= 0 and self.most >= 0):
            raise InputError(
                f"Retry(attempts={self.attempts}, first={self.first:g}, most={self.most:g}) is not valid.",
                remedy="Give at least one attempt, and no negative seconds.",
            )

    def backoff_seconds(self, failures: int) -> float:
        """Return the seconds to wait after `failures` failed attempts, drawn at random."""
        return random.uniform(0, min(self.most, self.first * 2.0 ** min(failures - 1, 60)))


class RetryDecision(Enum):
    """Action after an error of a Predict call, which is idempotent and may be repeated."""

    RETRY = "retry the same request with backoff"
    SPLIT = "send smaller requests"
    ISOLATE = "split the request to isolate a faulty photo"
    RAISE = "raise the error to the caller"


def classify_error(error: ServerError) -> RetryDecision:
    """Return what to do about an error before it is raised to the caller."""
    match error:
        case TooLarge():
            return RetryDecision.SPLIT
        case ServerUnavailable():
            return RetryDecision.RETRY
        case ServerError() if error.details.startswith(_REQUEST_ERRORS):
            return RetryDecision.RAISE
        case ServerError(code="INVALID_ARGUMENT" | "INTERNAL" | "UNKNOWN" | "OUT_OF_RANGE" | "DATA_LOSS"):
            return RetryDecision.ISOLATE
        # Out of memory, where fewer rows need less; shapes that do not match those of other clients in a
        # merged batch.
        case ServerError(code="RESOURCE_EXHAUSTED" | "FAILED_PRECONDITION" | "ABORTED"):
            return RetryDecision.ISOLATE
        case _:
            return RetryDecision.RAISE


def with_retries(call: Call, retry: Retry, target: str, model: str) -> Operation[protos.Message]:
    """Make a call, with retries, until a response, the last attempt or the deadline.

    All calls of the protocol that the client makes may be repeated: they are idempotent.

    Args:
        call: call to make; its timeout covers all attempts.
        retry: retry policy.
        target: gRPC target of the server, for the error.
        model: name of the model, for the error.

    Raises:
        ServerError: or one of its subclasses: the error of the last attempt that had enough time.
    """
    deadline = None if call.timeout is None else time.monotonic() + call.timeout
    attempt = 1
    previous: ServerError | None = None
    while True:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        try:
            return (yield replace(call, timeout=left, attempt=attempt))
        except grpc.RpcError as error:
            late = deadline is not None and time.monotonic() > deadline - _CLOCK_TOLERANCE_SECONDS
            failure = to_server_error(error, target, model, late=late)
            # An attempt that began with less than half of the timeout left says little when its deadline
            # passes: report the error of the attempt before it.
            if (
                isinstance(failure, DeadlineExceeded)
                and previous
                and left is not None
                and 2 * left < (call.timeout or 0)
            ):
                raise previous from error
            previous = failure
            wait = retry.backoff_seconds(attempt)
            in_time = deadline is None or time.monotonic() + wait < deadline
            retryable = classify_error(failure) is RetryDecision.RETRY
            if not retryable or attempt >= retry.attempts or not in_time:
                raise failure from error
        yield Pause(wait)
        attempt += 1
