"""How many requests of a bulk caller are under way at once: as many as the server works on, and few more.

The limit follows TCP Vegas (L. Brakmo, S. O'Malley, L. Peterson, "TCP Vegas: New Techniques for
Congestion Detection and Avoidance", SIGCOMM 1994), which Netflix' concurrency-limits carried over to
requests: what waits in the server's queue is estimated from how much longer an answer takes than it
did when nothing waited. The limit grows while fewer than ALPHA requests wait and shrinks while more
than BETA do. So a bulk caller keeps the server busy, and its queue short for everybody else; where
others fill that queue, it is the one that gives way. A refusal for overload halves the limit, at most
once in the time of a request.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import grpc

from serving.client.grpc_errors import is_overload
from serving.errors import InputError

ALPHA = 1.0
BETA = 3.0
"""Requests in the server's queue: the smaller pair of the two that the paper tries."""

MAX_CONCURRENCY = 16
"""Requests under way at once, whatever the server can take."""

REMEMBERED = 1000
"""Answers after which the time without a queue is measured anew, as it may have changed."""


class AdaptiveLimit:
    """The limit itself, without a clock and without waiting.

    Attributes:
        value: requests that may be under way, a fraction in between.
        most: what it never exceeds.
    """

    def __init__(self, most: int = MAX_CONCURRENCY) -> None:
        if most < 1:
            raise InputError(f"max_concurrency is {most}; it has to be at least 1.")
        self.most = most
        self.value = min(2.0, float(most))
        self._starting = True
        self._shortest: dict[int, float] = {}
        self._answers = 0
        self._held_until = 0.0

    def record_response(self, rows: int, seconds: float, under_way: int) -> None:
        """Take note of an answer.

        Args:
            rows: photos in the request; requests of about equal size are compared.
            seconds: from sending to the answer.
            under_way: requests that were, this one included.
        """
        self._answers += 1
        if self._answers % REMEMBERED == 0:
            self._shortest.clear()
            self.value = max(1.0, self.value / 2)
        size = rows.bit_length()
        shortest = self._shortest[size] = min(seconds, self._shortest.get(size, seconds))
        waiting = self.value * (1 - shortest / seconds) if seconds > 0 else 0.0
        if waiting > BETA:
            self._starting = False
            self.value = max(1.0, self.value - 1 / self.value)
        elif waiting < ALPHA and 2 * under_way >= self.value:  # else the limit was not what held it back
            self.value = min(float(self.most), self.value + (1.0 if self._starting else 1 / self.value))
        else:
            self._starting = self._starting and waiting < ALPHA

    def record_overload(self, now: float, seconds: float) -> None:
        """Take note of a refusal for overload, or of a deadline that passed.

        Args:
            now: of a clock that only goes forward, in seconds.
            seconds: from sending to the refusal.
        """
        self._starting = False
        if now >= self._held_until:
            self.value = max(1.0, self.value / 2)
            self._held_until = now + seconds


class ConcurrencyLimiter:
    """Lets as many threads through as the limit says."""

    def __init__(self, limit: AdaptiveLimit) -> None:
        self.limit = limit
        self._changed = threading.Condition()
        self._under_way = 0

    @contextmanager
    def __call__(self, rows: int) -> Iterator[Permit]:
        """Wait for a turn, and measure what is done in it."""
        with self._changed:
            self._changed.wait_for(lambda: self._under_way < int(self.limit.value))
            self._under_way += 1
            permit = Permit(self._under_way)
        try:
            yield permit
        finally:
            with self._changed:
                permit.report_to(self.limit, rows)
                self._under_way -= 1
                self._changed.notify_all()


class AsyncConcurrencyLimiter:
    """The same for the tasks of one event loop."""

    def __init__(self, limit: AdaptiveLimit) -> None:
        self.limit = limit
        self._under_way = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    @asynccontextmanager
    async def __call__(self, rows: int) -> AsyncIterator[Permit]:
        """Wait for a turn, and measure what is done in it."""
        while self._under_way >= int(self.limit.value):
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                self._wake()  # the turn may have been this one's
                raise
        self._under_way += 1
        permit = Permit(self._under_way)
        try:
            yield permit
        finally:
            permit.report_to(self.limit, rows)
            self._under_way -= 1
            self._wake()

    def _wake(self) -> None:
        free = int(self.limit.value) - self._under_way
        while free > 0 and self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                free -= 1


class Permit:
    """One request between its sending and its answer."""

    def __init__(self, under_way: int) -> None:
        self._failed = self._overloaded = False
        self._under_way = under_way
        self._begin = time.monotonic()

    def record_failure(self, error: BaseException) -> None:
        """There is no answer: for want of time, or for what says nothing of the load."""
        self._failed = True
        self._overloaded = isinstance(error, grpc.RpcError) and is_overload(error)

    def report_to(self, limit: AdaptiveLimit, rows: int) -> None:
        """Tell the limit how it went."""
        now = time.monotonic()
        if self._overloaded:
            limit.record_overload(now, now - self._begin)
        elif not self._failed:
            limit.record_response(rows, now - self._begin, self._under_way)
