"""What a client does, as scripts that send nothing themselves.

A script is a generator: it yields steps (a call, a pause, some work) and is sent their outcomes. The
blocking client and the one for asyncio each perform the steps in their own way, so that retries,
splitting and the search for a guilty photo are written and tested once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, TypeVar

import grpc

from serving import protos
from serving.client.grpc_errors import Cure, cure, error_from
from serving.client.retry import Retry
from serving.errors import DeadlineExceeded, ServerError


@dataclass(frozen=True, slots=True)
class Call:
    """Send `request` and come back with the answer; a grpc.RpcError is thrown in where it fails.

    Attributes:
        method: the path, such as protos.PREDICT.
        request: the message.
        answer: the class of the response.
        timeout: seconds until the deadline; None: none.
        wait_for_ready: whether to wait for a connection that is not there.
        rows: photos in it, for the flow control.
        attempt: 1 for the first try.
    """

    method: str
    request: protos.Message
    answer: protos.Message
    timeout: float | None
    wait_for_ready: bool = False
    rows: int = 0
    attempt: int = 1


@dataclass(frozen=True, slots=True)
class Pause:
    """Let so many seconds pass."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Work:
    """Come back with what `function` returns; it keeps a processor busy, which no event loop should."""

    function: Callable[[], Any]


Step: TypeAlias = Call | Pause | Work

T = TypeVar("T")

_MOMENT = 0.02
"""Seconds by which a server's clock may be ahead of ours."""

Script: TypeAlias = Generator[Step, Any, T]
"""Yields steps, is sent their outcomes, returns a T."""


def with_retries(call: Call, retry: Retry, target: str, model: str) -> Script[protos.Message]:
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
            failure = error_from(error, target, model, late=late)
            if (
                isinstance(failure, DeadlineExceeded)
                and before
                and left is not None
                and 2 * left < (call.timeout or 0)
            ):
                raise before from error  # what was left was too short to tell anything
            before = failure
            wait = retry.wait(attempt)
            in_time = deadline is None or time.monotonic() + wait < deadline
            if cure(failure) is not Cure.RETRY or attempt >= retry.attempts or not in_time:
                raise failure from error
        yield Pause(wait)
        attempt += 1


def run_inline(script: Script[T], perform: Callable[[Step], Any]) -> T:
    """Run a script to its end, each step by `perform`, in this thread."""
    try:
        step = next(script)
        while True:
            try:
                outcome = perform(step)
            except grpc.RpcError as error:
                step = script.throw(error)
            else:
                step = script.send(outcome)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Piece:
    """The part of a request that was answered, or failed, by itself.

    Attributes:
        count: rows.
        outputs: the tensors; None where it failed.
        version: the version that answered.
        failure: why a row that is alone has no answer.
    """

    count: int
    outputs: dict[str, Any] | None = None
    version: int | None = None
    failure: ServerError | None = None
