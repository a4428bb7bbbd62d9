"""The callers of a server: who they are, whether they still wait, and how they share a limit."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future


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
