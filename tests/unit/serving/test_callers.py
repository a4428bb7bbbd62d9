"""Limits that callers share."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from serving.server.callers import Caller, FairLimit


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
