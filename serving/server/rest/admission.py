"""Admission control of REST requests: limits on their number and memory, which the callers share.

A request counts in two steps: the bytes of its body while they arrive, and its place among the requests in
flight once the body is complete. So callers that stop half-way keep no one from being answered.
"""

from __future__ import annotations

import asyncio
from typing import Any

import grpc

from serving.server import memory
from serving.server.callers import Caller, FairLimit, TurnLock
from serving.server.status_error import StatusError, unavailable

MAX_BODY_BYTES = 128 << 20
"""Maximum body of one request; a photo of 64 MiB takes 86 MiB in base64."""

MAX_TOTAL_BODY_BYTES = 4 * MAX_BODY_BYTES
"""Maximum memory of the requests in flight of one caller, parsed; requests beyond it get 503."""

MAX_REQUESTS = 256
"""Maximum number of requests in flight of one caller; requests beyond it get 503."""

MAX_VALUES = 1 << 23
"""Maximum number of JSON values in a body."""

HEAVY_VALUES = 1 << 12
"""Number of JSON values from which bodies are parsed one after another, in a process of their own.

Parsing fewer takes some milliseconds; a request of photos has a few, a picture of 32 x 32 pixels 3,072."""

MIN_BYTES_PER_SECOND = 16 << 10
"""Rate below which a body is given up."""

BODY_GRACE_SECONDS = 5.0
"""Time before the rate counts."""

_TRIM_SECONDS = 0.5
"""Time from the end of a large request until its memory is returned to the operating system."""

_VALUE_BYTES = 48
"""Memory of a JSON value: an object of Python and references to it."""

_OBJECT_VALUES = 4
"""Number of values that a JSON object counts as, since it takes that much more memory."""


class BodyTooLargeError(StatusError):
    """The body of a request is larger than MAX_BODY_BYTES, or has more than MAX_VALUES values."""


class InFlight:
    """Number of requests in flight, the memory that they take, and the turn of the heavy ones."""

    def __init__(self) -> None:
        self.heavy_turn = TurnLock()
        self.requests = FairLimit(MAX_REQUESTS)
        self.bytes = FairLimit(MAX_TOTAL_BODY_BYTES)


class Reservation:
    """The part of the limits that one request takes, until the thread that answers it has finished."""

    def __init__(self, in_flight: InFlight, caller: Caller) -> None:
        self._in_flight, self._caller = in_flight, caller
        self._size = self._values = self._bytes = self._requests = 0

    @property
    def is_heavy(self) -> bool:
        """Return whether parsing the body keeps other requests waiting, as it holds the interpreter lock."""
        return self._size >= memory.LARGE or self._values >= HEAVY_VALUES

    def add(self, chunk: bytes) -> None:
        """Count the next bytes of the body, and the JSON values that begin there.

        Raises:
            BodyTooLargeError: the body is larger than MAX_BODY_BYTES, or has more than MAX_VALUES values.
            StatusError: the requests in flight take too much memory.
        """
        values = chunk.count(b",") + chunk.count(b"[") + _OBJECT_VALUES * chunk.count(b"{")
        self._size += len(chunk)
        self._values += values
        if self._size > MAX_BODY_BYTES:
            raise _too_large(f"The body is larger than {MAX_BODY_BYTES} bytes.")
        if self._values > MAX_VALUES:
            raise _too_large(f"The body has more than {MAX_VALUES} values.")
        self._take_bytes(len(chunk) + values * _VALUE_BYTES)

    def start(self) -> None:
        """Count the request as one in flight; its body is complete.

        Raises:
            StatusError: too many requests are in flight.
        """
        if not self._in_flight.requests.take(self._caller.name, 1):
            raise _busy(f"{self._in_flight.requests.total} REST requests are in flight")
        self._requests = 1

    def release(self, work: asyncio.Future[Any] | None) -> None:
        """Release the reservation once the thread has finished, even if the caller has left before.

        Args:
            work: future of the thread that answers the request; None if none was started.
        """
        if work and not work.done():
            work.add_done_callback(self.release)
            return
        if work and not work.cancelled():
            work.exception()  # retrieve it, or asyncio logs it as unhandled when the request has timed out
        self._in_flight.requests.give_back(self._caller.name, self._requests)
        self._in_flight.bytes.give_back(self._caller.name, self._bytes)
        if self._bytes >= memory.LARGE:
            loop = asyncio.get_running_loop()
            loop.call_later(_TRIM_SECONDS, loop.run_in_executor, None, memory.trim)

    def _take_bytes(self, size: int) -> None:
        if not self._in_flight.bytes.take(self._caller.name, size):
            raise _busy(f"the REST requests in flight take {self._in_flight.bytes.total} bytes")
        self._bytes += size


def _too_large(text: str) -> BodyTooLargeError:
    return BodyTooLargeError(grpc.StatusCode.INVALID_ARGUMENT, text)


def _busy(why: str) -> StatusError:
    return unavailable(f"The server is overloaded: {why}. Retry later.")
