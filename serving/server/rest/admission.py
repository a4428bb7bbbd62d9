"""What REST requests in flight may hold together, so that memory stays flat under any load."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc

from serving.server.status_error import Refusal

MAX_BODY_BYTES = 128 << 20
"""Of one request: a photo of 64 MiB in base64 takes 86."""

MAX_BODIES_BYTES = 4 * MAX_BODY_BYTES
"""Of all requests in flight; beyond that new ones have to come again later."""

MAX_REQUESTS = 256
"""In flight; beyond that new ones have to come again later."""


class TooLargeError(Exception):
    """One body is larger than any may be."""


class Limits:
    """The count of requests and bytes; for one event loop."""

    def __init__(self) -> None:
        self.requests = 0
        self.bytes = 0


class Held:
    """What one request holds, until the thread that answers it is done."""

    def __init__(self, limits: Limits) -> None:
        """Count one more.

        Raises:
            Refusal: there are too many.
        """
        if limits.requests >= MAX_REQUESTS:
            raise _busy(f"{MAX_REQUESTS} REST requests are in flight")
        self._limits, self._bytes = limits, 0
        self._worked_on = False
        limits.requests += 1

    def add(self, size: int) -> None:
        """Bytes of its body came in.

        Raises:
            TooLargeError: it is larger than any may be.
            Refusal: all together are.
        """
        if self._bytes + size > MAX_BODY_BYTES:
            raise TooLargeError(f"The body is larger than {MAX_BODY_BYTES} bytes.")
        if self._limits.bytes + size > MAX_BODIES_BYTES:
            raise _busy(f"the bodies of REST requests in flight take {MAX_BODIES_BYTES} bytes")
        self._bytes += size
        self._limits.bytes += size

    def until(self, work: asyncio.Future[Any]) -> None:
        """Hold on until a thread is done, though nobody may wait for it any longer."""
        self._worked_on = True
        work.add_done_callback(self._done)

    def leave(self) -> None:
        """The request is over, unless a thread works on it."""
        if not self._worked_on:
            self._release()

    def _done(self, work: asyncio.Future[Any]) -> None:
        if not work.cancelled():
            work.exception()  # asked for, or asyncio complains where the request's time was over before
        self._release()

    def _release(self) -> None:
        self._limits.requests -= 1
        self._limits.bytes -= self._bytes


def _busy(why: str) -> Refusal:
    return Refusal(grpc.StatusCode.UNAVAILABLE, f"The server is overloaded: {why}. Try again later.")
