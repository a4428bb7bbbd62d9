"""What a client does, as scripts that send nothing themselves.

A script is a generator: it yields steps (a call, a pause, some work) and is sent their outcomes. The
blocking client and the one for asyncio each perform the steps in their own way, so that retries,
splitting and the search for a guilty photo are written and tested once.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import grpc

from serving import protos
from serving.errors import ServerError


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
class Compute:
    """Come back with what `function` returns; it keeps a processor busy, which no event loop should."""

    function: Callable[[], Any]


Step: TypeAlias = Call | Pause | Compute

T = TypeVar("T")

Operation: TypeAlias = Generator[Step, Any, T]
"""Yields steps, is sent their outcomes, returns a T."""


def run_operation(script: Operation[T], perform: Callable[[Step], Any]) -> T:
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
class PartialResult:
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
