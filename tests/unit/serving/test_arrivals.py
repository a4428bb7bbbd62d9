"""Messages that arrive: how many begin at a time, and what happens when they take too much memory."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from serving.server import memory
from serving.server.grpc import arrivals
from serving.server.grpc.arrivals import Arrivals
from serving.server.status_error import StatusError

LIMIT = 10.0


class Senders:
    """Callers whose messages arrive when `finish` is called."""

    def __init__(self) -> None:
        self.trimmed = 0
        self.arrivals = Arrivals(self._trim)
        self.reading: dict[str, asyncio.Event] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    def _trim(self) -> None:
        self.trimmed += 1

    def begin(self, *callers: str) -> None:
        for caller in callers:
            self.tasks[caller] = asyncio.create_task(self._send(caller))

    async def _send(self, caller: str) -> None:
        async with self.arrivals.limit(caller):
            arrived = self.reading[caller] = asyncio.Event()
            await arrived.wait()

    async def finish(self, *callers: str) -> None:
        for caller in callers:
            self.reading[caller].set()
            await self.tasks[caller]


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(LIMIT):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.fixture
def resident(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The memory of the process, which a test can change."""
    values = [1 << 29]
    monkeypatch.setattr(memory, "get_resident", lambda: values[0])
    monkeypatch.setattr(arrivals, "_LATE_SECONDS", 0.05)
    monkeypatch.setattr(arrivals, "_CHECK_SECONDS", 0.02)
    return values


def run(test: Callable[[Senders], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        senders = Senders()
        try:
            async with asyncio.timeout(LIMIT):
                await test(senders)
        finally:
            for task in senders.tasks.values():
                task.cancel()

    asyncio.run(main())


def test_few_unknown_callers_begin_at_a_time_and_known_ones_at_once(
    resident: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrivals, "_LATE_SECONDS", LIMIT)

    async def test(senders: Senders) -> None:
        senders.arrivals.record("known", 1000)
        senders.arrivals.record("large", 1000)
        senders.arrivals.record("large", memory.LARGE)
        senders.begin("a", "b", "c", "d", "e", "large", "known")
        await eventually(lambda: len(senders.reading) == 5)
        await asyncio.sleep(0.1)
        assert list(senders.reading) == ["a", "b", "c", "d", "known"]
        await senders.finish("b")
        await eventually(lambda: "e" in senders.reading)
        assert "large" not in senders.reading
        await senders.finish("a")
        await eventually(lambda: "large" in senders.reading)

    run(test)


def test_callers_that_send_nothing_do_not_keep_others_out(resident: list[int]) -> None:
    async def test(senders: Senders) -> None:
        senders.begin(*(f"idle {number}" for number in range(20)), "other")
        await eventually(lambda: "other" in senders.reading)
        await senders.finish("other")

    run(test)


def test_unknown_callers_wait_while_large_messages_arrive(resident: list[int]) -> None:
    async def test(senders: Senders) -> None:
        senders.begin("large")
        await eventually(lambda: "large" in senders.reading)
        resident[0] += arrivals.HIGH_GROWTH + 1
        await eventually(lambda: senders.arrivals._is_high)
        senders.arrivals.record("known", 1000)
        senders.begin("new", "known")
        await eventually(lambda: "known" in senders.reading)
        await asyncio.sleep(0.1)
        assert "new" not in senders.reading
        resident[0] -= arrivals.HIGH_GROWTH
        await eventually(lambda: "new" in senders.reading)

    run(test)


def test_messages_that_began_last_are_rejected_when_memory_has_grown_too_far(resident: list[int]) -> None:
    async def test(senders: Senders) -> None:
        for caller in ("a", "b", "c", "d"):
            senders.begin(caller)
            await eventually(lambda caller=caller: caller in senders.reading)
        resident[0] += arrivals.MAX_GROWTH + 1
        for caller in ("c", "d"):
            with pytest.raises(StatusError, match="take too much memory") as caught:
                await senders.tasks[caller]
            assert caught.value.code.name == "RESOURCE_EXHAUSTED"
        assert senders.trimmed
        await senders.finish("a", "b")

    run(test)


def test_memory_that_the_process_took_before_does_not_count(
    resident: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As that of another model, also while a slow sender is never done."""
    monkeypatch.setattr(arrivals, "_GROWTH_SECONDS", 0.5)

    async def test(senders: Senders) -> None:
        senders.begin("slow")
        await eventually(lambda: "slow" in senders.reading)
        resident[0] += arrivals.MAX_GROWTH + 1
        await eventually(lambda: senders.arrivals._is_high)
        senders.begin("new")
        await asyncio.sleep(0.1)
        assert "new" not in senders.reading
        await eventually(lambda: "new" in senders.reading)
        assert not senders.tasks["slow"].done()

    run(test)


def test_a_message_that_does_not_arrive_in_time_ends_its_call(
    resident: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrivals, "MAX_SECONDS", 0.1)

    async def test(senders: Senders) -> None:
        senders.begin("slow")
        with pytest.raises(StatusError, match=r"did not arrive within 0\.1 seconds") as caught:
            await senders.tasks["slow"]
        assert caught.value.code.name == "DEADLINE_EXCEEDED"

    run(test)
