"""Limits that callers share."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from hypothesis import given
from hypothesis import strategies as st

from serving import protos
from serving.server import memory
from serving.server.callers import Caller, FairLimit, Pacer, TurnLock
from serving.server.grpc.dispatcher import CallContext, Dispatcher
from serving.server.metrics import Metrics


def test_one_caller_may_use_the_limit_and_not_more() -> None:
    limit = FairLimit(4)
    assert [limit.take("a", 1) for _ in range(5)] == [True, True, True, True, False]
    limit.give_back("a", 1)
    assert limit.take("a", 1)


def test_caller_with_few_is_admitted_beside_one_that_fills_the_limit() -> None:
    limit = FairLimit(8)
    assert all(limit.take("greedy", 1) for _ in range(8))
    assert [limit.take("good", 1) for _ in range(5)] == [True, True, True, True, False]
    assert not limit.take("greedy", 1)
    assert limit.take("third", 2)


def test_amount_above_the_limit_is_admitted_only_alone() -> None:
    limit = FairLimit(10)
    assert limit.take("a", 50)
    assert not limit.take("b", 1)
    limit.give_back("a", 50)
    assert limit.take("b", 1)
    assert not limit.take("a", 50)


@given(
    st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 12), st.booleans()), max_size=60),
    st.integers(1, 20),
)
def test_total_never_exceeds_twice_the_limit(steps: list[tuple[str, int, bool]], size: int) -> None:
    limit, held = FairLimit(size), Counter[str]()
    for caller, amount, takes in steps:
        if takes and limit.take(caller, amount):
            held[caller] += amount
        elif not takes and held[caller]:
            limit.give_back(caller, 1)
            held[caller] -= 1
        assert limit.total == held.total() <= max(2 * size, 12)


def test_functions_run_once_the_caller_leaves_or_at_once_if_it_has_left() -> None:
    caller, seen = Caller("a"), list[int]()
    caller.on_leave(lambda: seen.append(1))
    assert (caller.has_left, seen) == (False, [])
    caller.leave()
    caller.on_leave(lambda: seen.append(2))
    assert (caller.has_left, seen) == (True, [1, 2])


def test_callers_take_turns_at_a_lock() -> None:
    lock, order, ready = TurnLock(), list[str](), threading.Barrier(7)

    def hold(caller: str) -> None:
        ready.wait()
        with lock.hold(caller) as held:
            assert held
            order.append(caller)

    with ThreadPoolExecutor(6) as pool, lock.hold("first"):
        for caller in ("greedy",) * 5 + ("good",):
            pool.submit(hold, caller)
        ready.wait()
        _wait_until(lambda: sum(map(len, lock._waiting.values())) == 6)
    assert len(order) == 6
    assert order.index("good") < 2


def test_lock_that_is_not_free_in_time_is_not_held() -> None:
    lock = TurnLock()
    with lock.hold("a") as first, lock.hold("b", 0.01) as second:
        assert (first, second) == (True, False)
    with lock.hold("b", 0.0) as third:
        assert third


def test_senders_of_large_messages_wait_for_each_other_and_no_one_else() -> None:
    pacer, ended = Pacer(rate=1000, large=50), dict[str, float]()
    for caller, size in {"large": 100, "other": 100, "small": 49}.items():
        pacer.record(caller, size)
    start = time.monotonic()

    async def send(number: int, caller: str) -> None:
        await pacer.wait(caller)
        ended[f"{caller} {number}"] = time.monotonic() - start

    async def send_all() -> None:
        callers = ["large", "large", "large", "other", "small"]
        await asyncio.gather(*(send(number, caller) for number, caller in enumerate(callers)))

    asyncio.run(send_all())
    assert ended["large 2"] >= 0.3
    assert ended["large 2"] > ended["other 3"] >= 0.1
    assert ended["small 4"] < 0.1
    pacer.record("large", 10)
    pacer.pause(60)
    asyncio.run(asyncio.wait_for(pacer.wait("large"), 10))


def _wait_until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.001)


def test_parsing_of_heavy_messages_alone_delays_large_ones() -> None:
    class SlowRequest:
        """A PredictRequest that is parsed on a slow machine."""

        DESCRIPTOR = protos.PredictRequest.DESCRIPTOR

        @staticmethod
        def FromString(_: bytes) -> None:
            time.sleep(0.01)

    dispatcher = Dispatcher(1, Metrics(), lambda _: True)
    paused: list[float] = []
    dispatcher._pacer.pause = paused.append  # type: ignore[method-assign, assignment]
    large = protos.PredictRequest(inputs={"x": {"tensor_content": bytes(memory.LARGE)}}).SerializeToString()
    for body in (b"", large, b""):
        with dispatcher._parse(SlowRequest, [body], CallContext(None, Caller("a"))):
            pass
    dispatcher.close()
    assert len(paused) == 1
    assert paused[0] >= 0.01
