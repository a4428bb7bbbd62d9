"""Client operations as generators that do no I/O themselves (sans-I/O).

An operation is a generator: it yields steps (a call, a pause, a computation) and receives their
results. The blocking client and the asyncio client perform the steps in their own way, so that
retries, request splitting and the isolation of a faulty photo are written and tested once.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import grpc

from serving import protos


@dataclass(frozen=True, slots=True)
class Call:
    """One attempt of a gRPC call; its result is the response, a failure is thrown in as grpc.RpcError.

    Attributes:
        method: path of the method, such as protos.PREDICT.
        request: request message.
        response_type: class of the response message.
        timeout: seconds until the deadline; None for no deadline.
        wait_for_ready: True to wait for a connection instead of failing while there is none.
        rows: photos in the request, which the concurrency limit compares latencies by.
        attempt: number of the attempt, 1 for the first.
    """

    method: str
    request: protos.Message
    response_type: protos.Message
    timeout: float | None
    wait_for_ready: bool = False
    rows: int = 0
    attempt: int = 1

    def bind(self, channel: Any) -> Any:
        """Return the function of a channel that makes this call."""
        return channel.unary_unary(
            self.method,
            request_serializer=type(self.request).SerializeToString,
            response_deserializer=self.response_type.FromString,
        )


@dataclass(frozen=True, slots=True)
class Pause:
    """A wait of `seconds`, such as the backoff before a retry."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Compute:
    """CPU-bound work; its result is what `function` returns. It must not block an event loop."""

    function: Callable[[], Any]


Step: TypeAlias = Call | Pause | Compute

T = TypeVar("T")

Operation: TypeAlias = Generator[Step, Any, T]
"""A generator that yields steps, receives their results, and returns a T."""


def run_operation(operation: Operation[T], perform: Callable[[Step], Any]) -> T:
    """Run an operation to its end in this thread.

    Args:
        operation: operation to run.
        perform: function that performs one step and returns its result.
    """
    try:
        step = next(operation)
        while True:
            try:
                result = perform(step)
            except grpc.RpcError as error:
                # The operation decides whether to retry, to split the request or to give up.
                step = operation.throw(error)
            else:
                step = operation.send(result)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]  # what the operation returns


@dataclass(frozen=True)
class Response:
    """The decoded response to one Predict call.

    Attributes:
        count: rows of the request.
        outputs: output tensors by name.
        version: model version that answered.
    """

    count: int
    outputs: dict[str, Any]
    version: int | None
