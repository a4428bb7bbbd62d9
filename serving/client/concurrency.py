"""Concurrency of bulk requests: how many are in flight, and bounded maps over threads and tasks.

`AdaptiveLimit` follows TCP Vegas (L. Brakmo, S. O'Malley, L. Peterson, "TCP Vegas: New Techniques for
Congestion Detection and Avoidance", SIGCOMM 1994), which Netflix' concurrency-limits applied to
requests. The length of the server's queue is estimated from how much longer a response takes than the
shortest one seen. The limit grows while fewer than ALPHA requests are queued and shrinks while more than
BETA are. So a bulk client keeps the server busy with a short queue, and backs off when other clients
fill that queue. An overload error halves the limit, at most once per request latency.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Generator,
    Iterable,
    Iterator,
)
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, aclosing, asynccontextmanager, contextmanager, nullcontext
from typing import Any, Self, TypeAlias, TypeVar

import grpc

from serving.client.grpc_errors import is_overload
from serving.errors import InputError

A = TypeVar("A")
T = TypeVar("T")

Many: TypeAlias = Iterable[A] | AsyncIterable[A]
"""Items that exist, or that arrive over time."""

ALPHA = 1.0
BETA = 3.0
"""Queued requests between which the limit stays: the smaller of the two pairs that the paper tries."""

MAX_CONCURRENCY = 16
"""Default upper bound of requests in flight."""

RESET_AFTER = 1000
"""Responses after which the shortest latency is measured anew, since it may have changed."""


class AdaptiveLimit:
    """The limit itself, without clock and without waiting.

    Args:
        maximum: upper bound of the limit.

    Attributes:
        value: requests that may be in flight; a float, so that it can grow by fractions.
        maximum: upper bound of the limit.
    """

    def __init__(self, maximum: int = MAX_CONCURRENCY) -> None:
        if maximum < 1:
            raise InputError(f"max_concurrency is {maximum}; it has to be at least 1.")
        self.maximum = maximum
        self.value = min(2.0, float(maximum))
        self._slow_start = True
        self._shortest: dict[int, float] = {}
        self._responses = 0
        self._no_cut_before = 0.0

    def record_response(self, rows: int, seconds: float, in_flight: int) -> None:
        """Adjust the limit to the latency of a response.

        Args:
            rows: photos in the request; only requests of about the same size are compared.
            seconds: latency of the request.
            in_flight: requests that were in flight, this one included.
        """
        self._responses += 1
        if self._responses % RESET_AFTER == 0:
            # Fewer requests for a while, so that the shortest latency is measured without a queue.
            self._shortest.clear()
            self.value = max(1.0, self.value / 2)
        # Sizes are compared by powers of two: latency grows with the rows of a request.
        size = rows.bit_length()
        shortest = self._shortest[size] = min(seconds, self._shortest.get(size, seconds))
        queued = self.value * (1 - shortest / seconds) if seconds > 0 else 0.0
        if queued > BETA:
            self._slow_start = False
            self.value = max(1.0, self.value - 1 / self.value)
        elif queued < ALPHA and 2 * in_flight >= self.value:  # grow only while the limit is in use
            self.value = min(float(self.maximum), self.value + (1.0 if self._slow_start else 1 / self.value))
        else:
            self._slow_start = self._slow_start and queued < ALPHA

    def record_overload(self, now: float, seconds: float) -> None:
        """Halve the limit after an overload error or a missed deadline.

        Args:
            now: seconds of a monotonic clock.
            seconds: latency of the failed request.
        """
        self._slow_start = False
        # A burst of rejections is one event: the next cut has to wait for a request of its own.
        if now >= self._no_cut_before:
            self.value = max(1.0, self.value / 2)
            self._no_cut_before = now + seconds


class _Limiter:
    """Permits of an adaptive limit, which is adjusted to the outcome of each request.

    Args:
        limit: the adaptive limit.
        lock: held while a permit is returned.
        wake: wakes those who wait for a permit; called with the lock.
    """

    def __init__(
        self, limit: AdaptiveLimit, lock: AbstractContextManager[Any], wake: Callable[[], None]
    ) -> None:
        self.limit = limit
        self._lock = lock
        self._wake = wake
        self._in_flight = 0

    def _is_available(self) -> bool:
        return self._in_flight < int(self.limit.value)

    @contextmanager
    def _measure(self, rows: int) -> Iterator[None]:
        """Report the outcome of the block to the limit, then return the permit that the caller took."""
        in_flight, begin = self._in_flight, time.monotonic()
        failure = None
        try:
            yield
        except BaseException as error:
            failure = error
            raise
        finally:
            now = time.monotonic()
            with self._lock:
                # Of the failures, only an overload or a missed deadline changes the limit.
                if failure is None:
                    self.limit.record_response(rows, now - begin, in_flight)
                elif isinstance(failure, grpc.RpcError) and is_overload(failure):
                    self.limit.record_overload(now, now - begin)
                self._in_flight -= 1
                self._wake()


class ConcurrencyLimiter(_Limiter):
    """Blocks threads so that no more requests are in flight than the limit allows."""

    def __init__(self, limit: AdaptiveLimit) -> None:
        self._changed = threading.Condition()
        super().__init__(limit, self._changed, self._changed.notify_all)

    @contextmanager
    def __call__(self, rows: int) -> Iterator[None]:
        """Wait for a permit, and hold it during the block."""
        with self._changed:
            self._changed.wait_for(self._is_available)
            self._in_flight += 1
        with self._measure(rows):
            yield


class AsyncConcurrencyLimiter(_Limiter):
    """`ConcurrencyLimiter` for the tasks of one event loop."""

    def __init__(self, limit: AdaptiveLimit) -> None:
        self._changed = asyncio.Event()
        super().__init__(limit, nullcontext(), self._changed.set)

    @asynccontextmanager
    async def __call__(self, rows: int) -> AsyncIterator[None]:
        """Wait for a permit, and hold it during the block."""
        # An event wakes all waiting tasks and needs no lock, so cancelled tasks take no wake-ups.
        while not self._is_available():
            self._changed.clear()
            await self._changed.wait()
        self._in_flight += 1
        with self._measure(rows):
            yield


class CancellationScope:
    """Cancels the calls in flight and the pauses of one stream, in all threads, when its block ends."""

    def __init__(self) -> None:
        self._cancelled = threading.Event()
        self._lock = threading.Lock()
        self._calls: set[Any] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        """Cancel all calls, now and from now on, and end all pauses."""
        with self._lock:
            self._cancelled.set()
            for call in self._calls:
                call.cancel()

    def sleep(self, seconds: float) -> None:
        """Sleep for `seconds`, or until the scope is cancelled."""
        self._cancelled.wait(seconds)

    def run_call(self, start: Callable[[], Any]) -> Any:
        """Start a call and return its result.

        Args:
            start: function that starts the call and returns its grpc.Future.
        """
        # Registered and checked under one lock: no call can slip past `__exit__`.
        with self._lock:
            call = start()
            self._calls.add(call)
            if self._cancelled.is_set():
                call.cancel()
        try:
            return call.result()
        finally:
            with self._lock:
                self._calls.discard(call)


def map_in_threads(
    threads: int,
    function: Callable[[A], T],
    items: Iterable[A],
    window: Callable[[], int],
    ordered: bool = True,
) -> Generator[T]:
    """Apply a function to each item in threads, in bounded memory.

    Args:
        threads: number of threads that run the function.
        function: function to apply.
        items: items to apply it to; any number of them.
        window: returns how many results may be pending, or finished and not yet consumed, at a time.
        ordered: True to yield results in the order of the items, False as they finish.
    """
    pending: list[Future[T]] = []

    def drain(least: int) -> Generator[T]:
        """Yield finished results, and wait for more until fewer than `least` are pending."""
        while pending:
            finished = [future for future in pending[: 1 if ordered else None] if future.done()]
            if not finished:
                if len(pending) < least:
                    return
                wait(pending[:1] if ordered else pending, return_when=FIRST_COMPLETED)
            for future in finished:
                pending.remove(future)
                yield future.result()

    with ThreadPoolExecutor(threads, thread_name_prefix="hubhead-client") as pool:
        try:
            for item in items:
                context = contextvars.copy_context()  # the caller's span is the parent of spans in the pool
                pending.append(pool.submit(context.run, function, item))
                yield from drain(max(1, window()))
            yield from drain(0)
        finally:
            for future in pending:
                future.cancel()


async def map_in_tasks(
    function: Callable[[A], Awaitable[T]],
    items: Many[A],
    window: Callable[[], int],
    ordered: bool = True,
) -> AsyncGenerator[T]:
    """`map_in_threads` with tasks of the running event loop in place of threads."""
    pending: list[asyncio.Future[T]] = []

    async def drain(least: int) -> AsyncGenerator[T]:
        """Yield finished results, and wait for more until fewer than `least` are pending."""
        while pending:
            finished = [task for task in pending[: 1 if ordered else None] if task.done()]
            if not finished:
                if len(pending) < least:
                    return
                await asyncio.wait(pending[:1] if ordered else pending, return_when=asyncio.FIRST_COMPLETED)
            for task in finished:
                pending.remove(task)
                yield task.result()

    try:
        async with aclosing(_iterate(items)) as source:
            async for item in source:
                pending.append(asyncio.ensure_future(function(item)))
                async for result in drain(max(1, window())):
                    yield result
        async for result in drain(0):
            yield result
    finally:
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)


async def _iterate(items: Many[A]) -> AsyncGenerator[A]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item
