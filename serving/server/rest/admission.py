"""Admission control of REST requests: limits on their number and bytes, so that memory stays bounded."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc

from serving.server.status_error import StatusError, unavailable

MAX_BODY_BYTES = 128 << 20
"""Maximum body of one request; a photo of 64 MiB takes 86 MiB in base64."""

MAX_TOTAL_BODY_BYTES = 4 * MAX_BODY_BYTES
"""Maximum bytes of all bodies in flight; requests beyond it get 503."""

MAX_REQUESTS = 256
"""Maximum number of requests in flight; requests beyond it get 503."""


class BodyTooLargeError(StatusError):
    """The body of a request is larger than MAX_BODY_BYTES."""


class InFlight:
    """Number of requests in flight and bytes of their bodies; for use on one event loop."""

    def __init__(self) -> None:
        self.requests = 0
        self.bytes = 0


class Reservation:
    """The part of the limits that one request takes, until the thread that answers it has finished."""

    def __init__(self, in_flight: InFlight) -> None:
        """Count one more request.

        Raises:
            StatusError: too many requests are in flight.
        """
        if in_flight.requests >= MAX_REQUESTS:
            raise _busy(f"{MAX_REQUESTS} REST requests are in flight")
        self._in_flight, self._bytes = in_flight, 0
        in_flight.requests += 1

    def add_bytes(self, size: int) -> None:
        """Count `size` more bytes of the body.

        Raises:
            BodyTooLargeError: the body is larger than MAX_BODY_BYTES.
            StatusError: all bodies in flight are larger than MAX_TOTAL_BODY_BYTES.
        """
        if self._bytes + size > MAX_BODY_BYTES:
            text = f"The body is larger than {MAX_BODY_BYTES} bytes."
            raise BodyTooLargeError(grpc.StatusCode.INVALID_ARGUMENT, text)
        if self._in_flight.bytes + size > MAX_TOTAL_BODY_BYTES:
            raise _busy(f"the bodies of REST requests in flight take {MAX_TOTAL_BODY_BYTES} bytes")
        self._bytes += size
        self._in_flight.bytes += size

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
        self._in_flight.requests -= 1
        self._in_flight.bytes -= self._bytes


def _busy(why: str) -> StatusError:
    return unavailable(f"The server is overloaded: {why}. Retry later.")
