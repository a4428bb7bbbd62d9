"""The callers of a server: who they are, whether they still wait, and how they share a limit."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass

_MAX_LARGE_SENDERS = 4096
"""Maximum number of senders of large messages that are remembered; most of them have left."""


class Caller:
    """The sender of one request.

    Attributes:
        name: identity of the sender, such as the address of its connection; "" for the server itself.
    """

    def __init__(self, name: str = "") -> None:
        self.name = name
        self._left: Future[None] = Future()

    @property
    def has_left(self) -> bool:
        """Return whether the sender has cancelled the request or closed its connection."""
        return self._left.done()

    def leave(self) -> None:
        """Note that the sender no longer waits, and run the functions of `on_leave`; call it once."""
        self._left.set_result(None)

    def on_leave(self, function: Callable[[], object]) -> None:
        """Run a function, which must not block, once the sender has left; at once if it has left before."""
        self._left.add_done_callback(lambda _: function())


class FairLimit:
    """A limited quantity, such as calls or bytes, and how much of it each caller holds.

    One caller alone may use all of it, but cannot keep the others out: up to the limit everyone is admitted,
    and from there to twice the limit a caller that holds no more than an equal part. While nothing is held,
    any amount is admitted.

    Safe to call from any thread.

    Attributes:
        limit: amount that one caller may hold.
        total: amount that all callers hold.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.total = 0
        self._held: dict[str, int] = {}
        self._lock = threading.Lock()

    def take(self, caller: str, amount: int) -> bool:
        """Add an amount to what a caller holds; return False, and add nothing, if that is too much.

        Args:
            caller: identity of the caller, such as the address of its connection.
            amount: amount to add; return it with `give_back`.
        """
        with self._lock:
            held = self._held.get(caller, 0)
            total, part = self.total + amount, self.limit // (len(self._held) + (not held))
            is_above = bool(self.total) and total > self.limit
            if is_above and (held + amount > part or total > 2 * self.limit):
                return False
            self.total = total
            self._held[caller] = held + amount
            return True

    def give_back(self, caller: str, amount: int) -> None:
        """Subtract an amount that `take` has added."""
        with self._lock:
            self.total -= amount
            self._held[caller] = self._held.get(caller, 0) - amount
            if not self._held[caller]:
                del self._held[caller]


class TurnLock:
    """A lock whose callers take turns: one with many threads that wait does not keep the others out.

    Safe to use from any thread.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: OrderedDict[str, deque[object]] = OrderedDict()  # by caller, the next one first
        self._held = False

    @contextmanager
    def hold(self, caller: str, seconds: float | None = None) -> Iterator[bool]:
        """Hold the lock within a `with` block; yield False, without the lock, if it is not free in time.

        Args:
            caller: identity of the caller, such as the address of its connection.
            seconds: how long to wait; None: no limit.
        """
        ticket = object()
        with self._changed:
            self._waiting.setdefault(caller, deque()).append(ticket)
            held = self._changed.wait_for(lambda: self._is_next(caller, ticket), seconds)
            self._waiting[caller].remove(ticket)
            if not self._waiting[caller]:
                del self._waiting[caller]
            elif held:
                self._waiting.move_to_end(caller)
            if held:
                self._held = True
            else:
                self._changed.notify_all()  # the next one may be another now
        try:
            yield held
        finally:
            if held:
                with self._changed:
                    self._held = False
                    self._changed.notify_all()

    def _is_next(self, caller: str, ticket: object) -> bool:
        return not self._held and next(iter(self._waiting)) == caller and self._waiting[caller][0] is ticket


@dataclass
class _LargeSender:
    """A caller whose last message was large: its size in bytes, and the order of its own messages."""

    size: int
    order: asyncio.Lock


class Pacer:
    """The rate of large messages: their senders take turns, so that the event loop has time for the others.

    A message is known to be large only once it has arrived, so a caller waits because of its previous one.

    Wait in coroutines of one event loop.
    """

    def __init__(self, rate: float, large: int) -> None:
        """Create a pacer.

        Args:
            rate: bytes per second of the large messages of all callers together.
            large: bytes from which a message is large.
        """
        self._rate, self._large = rate, large
        self._free_at = 0.0
        self._senders: OrderedDict[str, _LargeSender] = OrderedDict()

    async def wait(self, caller: str) -> None:
        """Wait until the next message of a caller may be read; at once unless its last one was large."""
        if not (sender := self._senders.get(caller)):
            return
        async with sender.order:  # so that one caller with many calls does not keep the others out
            while (seconds := self._free_at - time.monotonic()) > 0:
                await asyncio.sleep(seconds)
            self._free_at = time.monotonic() + sender.size / self._rate

    def pause(self, seconds: float) -> None:
        """Read no large message in the next seconds; call it from any thread."""
        self._free_at = max(self._free_at, time.monotonic() + seconds)

    def record(self, caller: str, size: int) -> None:
        """Note the size in bytes of the message that a caller has sent."""
        if size < self._large:
            self._senders.pop(caller, None)
        elif sender := self._senders.get(caller):
            sender.size = size
        else:
            self._senders[caller] = _LargeSender(size, asyncio.Lock())
            if len(self._senders) > _MAX_LARGE_SENDERS:
                self._senders.popitem(last=False)
