"""Retries of failed gRPC calls: which failures are retried, after which pauses, and until when."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, replace
from enum import Enum

import grpc

from serving import protos
from serving.client.grpc_errors import to_server_error
from serving.client.sans_io import Call, Operation, Pause
from serving.errors import DeadlineExceeded, InputError, ServerError, ServerUnavailable, TooLarge

_ABOUT_THE_REQUEST = (
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
"""How a refusal begins that any photo would have met, so that looking for the guilty one is vain."""

_MOMENT = 0.02
"""Seconds by which a server's clock may be ahead of ours."""


@dataclass(frozen=True)
class Retry:
    """Exponential backoff with full jitter.

    The wait before the nth retry is drawn evenly from 0 to min(most, first * 2^(n-1)) seconds, the
    scheme that loads a recovering server least (M. Brooker, "Exponential Backoff And Jitter", AWS
    Architecture Blog, 2015). A deadline bounds a request with all its retries; one that would end
    after it is not made.

    Attributes:
        attempts: tries of a request, the first one included; 1 never retries.
        first: the longest wait before the first retry, in seconds.
        most: the longest wait before any, in seconds.
    """

    attempts: int = 5
    first: float = 0.1
    most: float = 5.0

    def __post_init__(self) -> None:
        if self.attempts < 1 or self.first < 0 or self.most < 0:
            raise InputError(
                f"Retries of {self.attempts} attempts, {self.first:g} to {self.most:g} s make no sense.",
                remedy="Give at least one attempt, and no negative seconds.",
            )

    def backoff_seconds(self, failures: int) -> float:
        """Seconds to wait after so many failed attempts."""
        return random.uniform(0, min(self.most, self.first * 2.0 ** min(failures - 1, 60)))


class RetryDecision(Enum):
    """What helps against a failure of a Predict request, which may always be sent twice."""

    RETRY = "the same request later"
    SPLIT = "smaller requests"
    ISOLATE = "ISO"
    RAISE = "RAISE"


def classify_error(error: ServerError) -> RetryDecision:
    """What to try before the caller is told."""
    match error:
        case TooLarge():
            return RetryDecision.SPLIT
        case ServerUnavailable():
            return RetryDecision.RETRY
        case ServerError(code="RESOURCE_EXHAUSTED"):  # memory: fewer rows take less
            return RetryDecision.ISOLATE
        case ServerError(code="INVALID_ARGUMENT" | "INTERNAL" | "UNKNOWN" | "OUT_OF_RANGE" | "DATA_LOSS"):
            return (
                RetryDecision.RAISE if error.details.startswith(_ABOUT_THE_REQUEST) else RetryDecision.ISOLATE
            )
        case ServerError(code="FAILED_PRECONDITION" | "ABORTED"):
            # Shapes that do not match those of other callers in a merged batch, among others.
            return (
                RetryDecision.RAISE if error.details.startswith(_ABOUT_THE_REQUEST) else RetryDecision.ISOLATE
            )
        case _:
            return RetryDecision.RAISE


def with_retries(call: Call, retry: Retry, target: str, model: str) -> Operation[protos.Message]:
    """The answer to a call that may be sent again where that is safe and of use.

    All calls of the protocol that the client makes are: they change nothing.

    Raises:
        ServerError: or one of its classes: the failure of the last attempt that had its time.
    """
    deadline = None if call.timeout is None else time.monotonic() + call.timeout
    attempt = 1
    before: ServerError | None = None
    while True:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        try:
            return (yield replace(call, timeout=left, attempt=attempt))
        except grpc.RpcError as error:
            late = deadline is not None and time.monotonic() > deadline - _MOMENT
            failure = to_server_error(error, target, model, late=late)
            if (
                isinstance(failure, DeadlineExceeded)
                and before
                and left is not None
                and 2 * left < (call.timeout or 0)
            ):
                raise before from error  # what was left was too short to tell anything
            before = failure
            wait = retry.backoff_seconds(attempt)
            in_time = deadline is None or time.monotonic() + wait < deadline
            if classify_error(failure) is not RetryDecision.RETRY or attempt >= retry.attempts or not in_time:
                raise failure from error
        yield Pause(wait)
        attempt += 1
