"""Messages that are arriving: the memory that they take together is bounded."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import grpc

from serving.server import memory
from serving.server.status_error import StatusError, resource_exhausted

MAX_SECONDS = 60.0
"""Time in which a message has to arrive."""

HIGH_GROWTH = 1 << 28
"""Growth in bytes from which unknown callers wait until large messages have arrived."""

MAX_GROWTH = 3 << 29
"""Growth in bytes from which large messages are rejected while they arrive."""

_MAX_EARLY = 4
"""Messages of unknown callers that begin to arrive at the same time."""

_MAX_KNOWN = 1 << 16
"""Callers that are remembered for their last message, which was small."""

_KEPT = 2
"""Messages that go on when the process has grown too far: the first ones, whose size has a limit."""

_LATE_SECONDS = 0.1
"""Time after which a message is taken for a large one. Small ones arrive within some milliseconds."""

_CHECK_SECONDS = 0.05
"""Time between two looks at the memory while messages arrive."""

_GROWTH_SECONDS = 10.0
"""Time in which the memory of the process must have grown."""


class Arrivals:
    """The messages that are arriving. Use it in coroutines of one event loop.

    gRPC does not tell how large a message is before it is complete, and holds what has arrived of all of
    them. So few callers whose messages are not known to be small begin at a time, and the memory of the
    process is watched: when it has grown in the last seconds, further ones wait; when it has grown too far,
    the messages that began last are rejected, and what has arrived of them is freed. What the process took
    before, such as for another model, does not count.
    """

    def __init__(self, trim: Callable[[], object]) -> None:
        """Watch no messages yet.

        Args:
            trim: function that returns free memory to the operating system soon; it must not block.
        """
        self._trim = trim
        self._began: dict[asyncio.Timeout, float] = {}  # the oldest first
        self._early: set[asyncio.Timeout] = set()  # of unknown callers
        self._known: OrderedDict[str, None] = OrderedDict()
        self._turn, self._changed = asyncio.Lock(), asyncio.Event()
        self._used: deque[tuple[float, int]] = deque()  # times, and the memory of the process then
        self._is_high = self._is_watching = False

    def record(self, caller: str, size: int) -> None:
        """Note the size in bytes of the message that a caller has sent."""
        self._known.pop(caller, None)
        if size < memory.LARGE:
            self._known[caller] = None
            if len(self._known) > _MAX_KNOWN:
                self._known.popitem(last=False)

    @asynccontextmanager
    async def limit(self, caller: str) -> AsyncIterator[None]:
        """Wait for a message of a caller within an `async with` block.

        Raises:
            StatusError: it does not arrive in time, or too much memory is taken.
        """
        loop, is_rejected, is_known = asyncio.get_running_loop(), False, caller in self._known
        if not is_known:
            await self._wait_for_turn()
        start = loop.time()
        try:
            async with asyncio.timeout_at(start + MAX_SECONDS) as timeout:
                if not self._is_watching:
                    self._measure_growth(start)
                    self._watch(loop)
                self._began[timeout] = start
                if not is_known:
                    self._early.add(timeout)
                try:
                    yield
                finally:
                    is_rejected = self._began.pop(timeout, None) is None
                    self._early.discard(timeout)
                    self._changed.set()
        except TimeoutError:
            if is_rejected:
                raise resource_exhausted(
                    "The messages that arrive at the same time take too much memory. Retry later, or send "
                    "smaller requests."
                ) from None
            details = f"The message did not arrive within {MAX_SECONDS:g} seconds."
            raise StatusError(grpc.StatusCode.DEADLINE_EXCEEDED, details) from None

    async def _wait_for_turn(self) -> None:
        """Wait until the message of an unknown caller may arrive, one caller after the other."""
        async with self._turn:
            while len(self._early) >= _MAX_EARLY or self._is_high:
                self._changed.clear()
                await self._changed.wait()

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        self._is_watching = True
        loop.call_later(_CHECK_SECONDS, self._check, loop)

    def _check(self, loop: asyncio.AbstractEventLoop) -> None:
        """Decide by the memory whether messages wait or are rejected; look again as long as any arrives."""
        now = loop.time()
        growth = self._measure_growth(now)
        late = [timeout for timeout, start in self._began.items() if start <= now - _LATE_SECONDS]
        self._early.difference_update(late)
        self._is_high = bool(late) and growth > HIGH_GROWTH
        if growth > MAX_GROWTH and (rejected := late[_KEPT:]):
            for timeout in rejected:
                del self._began[timeout]
                timeout.reschedule(now)
            self._trim()
        self._changed.set()
        self._is_watching = False
        if self._began:
            self._watch(loop)

    def _measure_growth(self, now: float) -> int:
        """Return the bytes by which the process is larger than at its smallest in the last seconds."""
        used = memory.get_resident()
        self._used.append((now, used))
        while self._used[0][0] < now - _GROWTH_SECONDS:
            self._used.popleft()
        return used - min(value for _, value in self._used)
