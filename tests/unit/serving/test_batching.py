"""Batches across callers: merging, cutting, padding, bounds, deadlines, failures."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.server.batching.batcher import Batcher
from serving.server.batching.queue import (
    MICRO_BATCH,
    ROWS_A_THREAD,
    Piece,
    Queue,
    Request,
    Rules,
    cut,
    padded_rows,
    rules,
)
from serving.server.config.settings import Batching
from serving.server.metrics import Metrics
from serving.server.status_error import Refusal
from tests.support.fake_model import LIMIT, eventually

LATE = "Run() timeout exceeded while waiting in batching queue"


@dataclass
class Model:
    """y = 2x once the gate is open; keeps the batches. Negative x fails its batch, NaN breaks the model."""

    batches: list[list[Any]] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)
    outputs: Mapping[str, Any] | None = None

    def __call__(self, signature: str, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        x = inputs["x"]
        self.batches.append(x.tolist())
        assert self.gate.wait(LIMIT)
        if x.dtype == object:
            return {"y": x}
        if np.any(x < 0):
            raise Refusal(grpc.StatusCode.OUT_OF_RANGE, f"negative among {x.shape[0] if x.ndim else 'one'}")
        if np.any(np.isnan(x)):
            raise ZeroDivisionError("broken")
        return self.outputs or {"y": x * 2, "sum": np.asarray(x.sum())}


class Callers:
    """A batcher, and threads that ask it."""

    def __init__(self, rules: Rules, *, mergeable: bool = True, **more: Any) -> None:
        self.model = Model()
        self.batcher = Batcher("m", rules, self.model, lambda *_: mergeable, **more)
        self.pool = ThreadPoolExecutor(64)

    def ask(
        self, *x: Any, seconds: float | None = None, outputs: Sequence[str] = ("y",), signature: str = "s"
    ) -> Future[Any]:
        values = np.array(x, np.float32) if not isinstance(x[0], np.ndarray) else x[0]
        before = self.batcher._bytes
        future = self.pool.submit(self.batcher.run, signature, {"x": values}, tuple(outputs), seconds)
        eventually(lambda: future.done() or self.batcher._bytes != before)  # so requests keep their order
        return future

    def block(self) -> Future[Any]:
        """Occupy a thread of the model, so that what comes next has to wait."""
        began = len(self.model.batches)
        future = self.pool.submit(self.batcher.run, "s", {"x": np.zeros(1, np.float32)}, ("y",), None)
        eventually(lambda: len(self.model.batches) > began)
        return future

    def close(self) -> None:
        self.model.gate.set()
        self.pool.shutdown()
        self.batcher.close()


@pytest.fixture
def made() -> Iterator[list[Callers]]:
    found: list[Callers] = []
    yield found
    for callers in found:
        callers.close()


@pytest.fixture
def callers(made: list[Callers]) -> Any:
    def make(rules: Rules, **more: Any) -> Callers:
        made.append(Callers(rules, **more))
        return made[-1]

    return make


def refused(future: Future[Any]) -> tuple[str, str]:
    with pytest.raises(Refusal) as caught:
        future.result(LIMIT)
    return caught.value.code.name, caught.value.details


def y(future: Future[Any]) -> list[Any]:
    return future.result(LIMIT)["y"].tolist()  # type: ignore[no-any-return]


def full(waiting: int, limit: int) -> tuple[str, str]:
    return (
        "UNAVAILABLE",
        "The batch scheduling queue to which this task was submitted is full; "
        f"currently {waiting} batches enqueued and max_enqueued_batches is {limit}",
    )


# --- As is fastest --------------------------------------------------------------------------------------


def test_callers_that_wait_are_merged_into_small_batches_and_each_gets_its_own_rows(callers: Any) -> None:
    one = callers(rules(1))
    blocker = one.block()
    asked = [one.ask(i, i + 0.5) for i in range(5)]
    one.model.gate.set()
    assert [y(future) for future in asked] == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
    assert y(blocker) == [0]
    assert one.model.batches == [[0], [0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5], [4, 4.5]]
    assert len(one.model.batches[1]) == MICRO_BATCH


def test_a_large_request_is_cut_and_comes_back_in_its_order(callers: Any) -> None:
    two = callers(rules(2))
    two.model.gate.set()
    x = list(range(101))
    assert y(two.ask(*x)) == [2 * value for value in x]
    assert sorted(value for batch in two.model.batches for value in batch) == x
    assert max(map(len, two.model.batches)) <= MICRO_BATCH


def test_threads_that_are_idle_share_what_there_is(callers: Any) -> None:
    two = callers(rules(2))
    two.model.gate.set()
    y(two.ask(0))
    two.model.gate.clear()
    two.model.batches.clear()
    eventually(lambda: two.batcher._free == 2)
    asked = two.ask(1, 2, 3, 4)
    eventually(lambda: len(two.model.batches) == 2)
    two.model.gate.set()
    assert y(asked) == [2, 4, 6, 8]
    assert sorted(two.model.batches) == [[1, 2], [3, 4]]


def test_a_lone_request_runs_in_its_callers_thread_while_a_core_is_free(callers: Any) -> None:
    two = callers(rules(2))
    first, second = two.block(), two.block()
    assert not two.batcher._threads
    third = two.ask(3)  # beyond the cores: it waits for a thread of the model
    eventually(lambda: len(two.batcher._threads) == 2)
    assert (len(two.model.batches), two.batcher.waiting) == (2, 1)
    two.model.gate.set()
    assert [y(future) for future in (first, second, third)] == [[0], [0], [6]]


def test_a_model_is_not_given_up_while_a_caller_runs_it(callers: Any) -> None:
    one = callers(rules(1))
    running = one.block()
    closing = one.pool.submit(one.batcher.close)
    time.sleep(0.2)
    assert not closing.done()
    one.model.gate.set()
    closing.result(LIMIT)
    assert y(running) == [0]


def test_one_callers_bad_row_costs_the_others_nothing(callers: Any) -> None:
    one = callers(rules(1))
    one.block()
    good, bad, broken, other = one.ask(1), one.ask(-1), one.ask(np.float32("nan")), one.ask(2)
    one.model.gate.set()
    assert (y(good), y(other)) == ([2], [4])
    assert refused(bad) == ("OUT_OF_RANGE", "negative among 1")
    with pytest.raises(ZeroDivisionError):
        broken.result(LIMIT)
    assert y(one.ask(3)) == [6]


def test_a_request_that_was_cut_fails_with_the_words_of_all_its_rows(callers: Any) -> None:
    one = callers(rules(1))
    one.block()
    asked, other = one.ask(*range(9), -1), one.ask(7)
    one.model.gate.set()
    assert refused(asked) == ("OUT_OF_RANGE", "negative among 10")
    assert y(other) == [14]


@pytest.mark.parametrize(
    ("x", "outputs", "mergeable"),
    [
        (np.ones(9, np.float32), ("y", "sum"), True),  # `sum` turns out to be a scalar
        (np.ones(9, np.float32), ("y",), False),  # declared without a batch
        (np.array(3, np.float32), ("y",), True),
        (np.ones((0, 2), np.float32), ("y",), True),
    ],
)
def test_what_has_no_batch_as_its_first_dimension_runs_alone_and_whole(
    callers: Any, x: Any, outputs: tuple[str, ...], mergeable: bool
) -> None:
    one = callers(rules(1), mergeable=mergeable)
    one.model.gate.set()
    for _ in range(2):
        found = one.ask(x, outputs=outputs).result(LIMIT)
        assert found["y"].tolist() == (x * 2).tolist()
        if "sum" in outputs:
            assert found["sum"] == 9
    assert one.model.batches[-2:] == [x.tolist()] * 2 or one.model.batches[-1] == x.tolist()


def test_other_signatures_shapes_and_outputs_do_not_meet_in_a_batch(callers: Any) -> None:
    one = callers(rules(1))
    one.block()
    wide, narrow = one.ask(np.ones((1, 3), np.float32)), one.ask(np.ones((1, 2), np.float32))
    other, more = one.ask(1, signature="t"), one.ask(np.ones((1, 2), np.float32), outputs=("y", "y2"))
    one.model.outputs = None
    one.model.gate.set()
    assert (y(wide), y(narrow), y(other)) == ([[2, 2, 2]], [[2, 2]], [2])
    with pytest.raises(KeyError):
        more.result(LIMIT)
    assert len(one.model.batches) == 5


def test_a_full_queue_refuses_at_once_and_takes_more_when_there_is_room(callers: Any) -> None:
    one = callers(rules(1))
    blocker = one.block()
    asked = [one.ask(*range(64)) for _ in range(2)]
    assert one.batcher.waiting == ROWS_A_THREAD
    assert refused(one.ask(1)) == full(limit := ROWS_A_THREAD // MICRO_BATCH, limit)
    one.model.gate.set()
    for future in [blocker, *asked]:
        future.result(LIMIT)
    assert y(one.ask(1)) == [2]


def test_a_request_larger_than_the_queue_is_taken_where_nothing_waits(callers: Any) -> None:
    one = callers(rules(1))
    one.model.gate.set()
    assert len(y(one.ask(*range(3 * ROWS_A_THREAD)))) == 3 * ROWS_A_THREAD


def test_bytes_are_bounded_too_and_freed_with_the_answer(callers: Any) -> None:
    one = callers(rules(1), max_bytes=1000)
    huge = np.array([b"x" * 5000], dtype=object)
    first = one.ask(huge)
    eventually(lambda: len(one.model.batches) == 1)
    code, text = refused(one.ask(huge))
    assert code == "UNAVAILABLE"
    assert text.startswith("The batch scheduling queue to which this task was submitted is full")
    one.model.gate.set()
    assert y(first) == huge.tolist()
    assert y(one.ask(huge)) == huge.tolist()


def test_who_would_come_too_late_is_refused_at_once(callers: Any) -> None:
    one = callers(rules(1))
    blocker = one.block()
    time.sleep(0.2)  # so a row is known to take so long
    one.model.gate.set()
    y(blocker)
    one.model.gate.clear()
    one.block()
    one.ask(1)
    code, text = refused(one.ask(2, seconds=0.1))
    assert code == "UNAVAILABLE"  # and not RESOURCE_EXHAUSTED, as after a wait
    assert text.startswith("The batch scheduling queue to which this task was submitted is full")
    patient = one.ask(3, seconds=LIMIT)
    one.model.gate.set()
    assert y(patient) == [6]


def test_a_request_whose_deadline_passed_in_the_queue_never_runs(callers: Any) -> None:
    one = callers(rules(1))
    one.block()
    late, other = one.ask(5, seconds=0.05), one.ask(6)
    assert refused(late) == ("RESOURCE_EXHAUSTED", LATE)
    assert one.batcher.waiting == 1
    assert refused(one.ask(7, seconds=0)) == ("RESOURCE_EXHAUSTED", LATE)
    one.model.gate.set()
    assert y(other) == [12]
    assert [5] not in one.model.batches


def test_a_request_that_runs_when_its_deadline_passes_is_given_up(callers: Any) -> None:
    two = callers(rules(2))
    cut = two.pool.submit(two.batcher.run, "s", {"x": np.ones(2, np.float32)}, ("y",), 0.05)
    assert refused(cut) == ("DEADLINE_EXCEEDED", "Timed out waiting for notification")
    two.model.gate.set()
    eventually(lambda: two.batcher._free == 2)
    two.model.gate.clear()
    alone = two.pool.submit(two.batcher.run, "s", {"x": np.ones(1, np.float32)}, ("y",), 0.05)
    time.sleep(0.1)
    assert not alone.done(), "it runs in its caller's thread"
    two.model.gate.set()
    assert refused(alone) == ("DEADLINE_EXCEEDED", "Timed out waiting for notification")
    assert y(two.ask(1)) == [2]


def test_closing_ends_the_threads(callers: Any) -> None:
    two = callers(rules(2))
    two.model.gate.set()
    y(two.ask(1))
    threads = list(two.batcher._threads)
    two.batcher.close()
    assert not any(thread.is_alive() for thread in threads)
    assert refused(two.ask(1))[0] == "UNAVAILABLE"


# --- As a batching file says -----------------------------------------------------------------------------


def file(**fields: Any) -> Rules:
    return rules(1, Batching(**fields))


@pytest.mark.protocol("batching.timeout")
def test_a_batch_waits_for_more_until_it_is_full_or_its_time_is_up(callers: Any) -> None:
    patient = callers(file(max_batch_size=3, batch_timeout_micros=int(LIMIT * 2e6)))
    patient.model.gate.set()
    first, second = patient.ask(1), patient.ask(2)
    assert patient.model.batches == []
    third = patient.ask(3)
    assert [y(first), y(second), y(third)] == [[2], [4], [6]]
    assert patient.model.batches == [[1, 2, 3]]
    short = callers(file(max_batch_size=3, batch_timeout_micros=50_000))
    short.model.gate.set()
    start = time.monotonic()
    assert y(short.ask(1)) == [2]
    assert time.monotonic() - start >= 0.05


def test_a_batch_is_padded_with_the_first_row_of_its_last_task(callers: Any) -> None:
    metrics = Metrics()
    found = callers(file(max_batch_size=8, allowed_batch_sizes=(2, 8)), metrics=metrics)
    found.block()
    asked = [found.ask(1), found.ask(2, 3, 4)]
    found.model.gate.set()
    assert [y(future) for future in asked] == [[2], [4, 6, 8]]
    assert found.model.batches == [[0, 0], [1, 2, 3, 4, 2, 2, 2, 2]]
    text = metrics.text().decode()
    assert ':tensorflow:serving:batching_session:wrapped_run_count{model_name="m"} 2' in text
    assert ':tensorflow:serving:batching_session:padding_size_sum{model_name="m"} 5.0' in text
    assert ':tensorflow:serving:batching_session:queuing_latency_count{model_name="m"} 3.0' in text


@pytest.mark.protocol("batching.splitting")
def test_tasks_are_not_cut_unless_the_file_says_so(callers: Any) -> None:
    whole = callers(file(max_batch_size=4))
    whole.block()
    asked = [whole.ask(1, 2, 3), whole.ask(4, 5, 6)]
    whole.model.gate.set()
    assert [y(future) for future in asked] == [[2, 4, 6], [8, 10, 12]]
    assert whole.model.batches == [[0], [1, 2, 3], [4, 5, 6]]
    cutting = callers(file(max_batch_size=8, enable_large_batch_splitting=True, max_execution_batch_size=4))
    cutting.block()
    asked = [cutting.ask(1, 2, 3), cutting.ask(*range(10, 17))]
    cutting.model.gate.set()
    assert [y(future) for future in asked] == [[2, 4, 6], [20, 22, 24, 26, 28, 30, 32]]
    assert cutting.model.batches == [[0], [1, 2, 3, 10], [11, 12, 13, 14], [15, 16]]


def test_a_task_above_the_limit_is_refused(callers: Any) -> None:
    expected = ("INVALID_ARGUMENT", "Task size 33 is larger than maximum input batch size 32")
    assert refused(callers(file(max_batch_size=32)).ask(*range(33))) == expected
    cutting = file(max_batch_size=32, enable_large_batch_splitting=True, max_execution_batch_size=8)
    assert refused(callers(cutting).ask(*range(33))) == expected


def test_batches_that_wait_are_bounded(callers: Any) -> None:
    small = callers(file(max_batch_size=2, max_enqueued_batches=2))
    small.block()
    asked = [small.ask(1, 1), small.ask(2)]
    assert refused(small.ask(3, 3)) == full(2, 2)
    asked.append(small.ask(4))  # which still fits into the second
    assert refused(small.ask(5)) == full(2, 2)
    small.model.gate.set()
    for future in asked:
        future.result(LIMIT)
    assert small.model.batches == [[0], [1, 1], [2, 4]]


def test_inputs_without_a_common_batch_are_refused(callers: Any) -> None:
    found = callers(file())
    assert refused(found.ask(np.array(1, np.float32))) == (
        "INVALID_ARGUMENT",
        "Batching Run() input tensors must have at least one dimension",
    )
    with pytest.raises(Refusal, match="must have equal 0th-dimension size"):
        found.batcher.run("s", {"x": np.ones(1), "z": np.ones(2)}, ("y",))


@pytest.mark.parametrize(
    ("outputs", "text"),
    [
        ({"y": np.asarray(1)}, "Batched output tensor has 0 dimensions"),
        (
            {"y": np.ones(7)},
            "Batched output tensor's 0th dimension does not equal the sum of the 0th dimension sizes of the "
            "input tensors",
        ),
    ],
)
def test_outputs_without_a_batch_are_an_error_as_with_tensorflow_serving(
    callers: Any, outputs: Any, text: str
) -> None:
    found = callers(file())
    found.model.outputs = outputs
    found.model.gate.set()
    assert refused(found.ask(1)) == ("FAILED_PRECONDITION", text)


@pytest.mark.protocol("batching.pad-variable")
def test_unequal_shapes_are_padded_where_the_file_says_so_and_run_apart_where_it_does_not(
    callers: Any,
) -> None:
    short, long = np.array([[1, 2]], np.float32), np.array([[3, 4, 5]], np.float32)
    padding = callers(file(pad_variable_length_inputs=True))
    padding.block()
    flat = padding.ask(9)
    asked = [padding.ask(short), padding.ask(long)]
    padding.model.gate.set()
    assert [y(future) for future in asked] == [[[2, 4, 2]], [[6, 8, 10]]]
    assert y(flat) == [18]
    assert [[1, 2, 1], [3, 4, 5]] in padding.model.batches
    apart = callers(file())
    apart.block()
    asked = [apart.ask(short), apart.ask(long)]
    apart.model.gate.set()
    assert [y(future) for future in asked] == [[[2, 4]], [[6, 8, 10]]]


# --- Any traffic -----------------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=20),
    rows=st.integers(1, 9),
    cuts=st.booleans(),
    shares=st.lists(st.integers(1, 9), min_size=1),
)
def test_no_row_is_lost_or_doubled_whatever_is_merged_and_cut(
    sizes: list[int], rows: int, cuts: bool, shares: list[int]
) -> None:
    queue = Queue(Rules(1, rows=rows if cuts else 30, cut=cuts), merges=True)
    requests = []
    for size in sizes:
        expected = queue.batches_with(size)
        requests.append(Request("s", {}, (), size, None, 0.0))
        queue.put(requests[-1], 0.0)
        assert len(queue) == expected
    assert queue.rows == sum(sizes)
    seen: list[tuple[int, int]] = []
    turn = 0
    while len(queue):
        share = shares[turn % len(shares)]
        batch = queue.take(share if cuts else None)
        turn += 1
        assert 0 < sum(piece.rows for piece in batch) <= (rows if cuts else 30)
        for piece in batch:
            number = requests.index(piece.request)
            seen += [(number, row) for row in range(piece.start, piece.stop)]
    assert seen == [(number, row) for number, size in enumerate(sizes) for row in range(size)]


@settings(deadline=None)
@given(st.integers(1, 20), st.integers(0, 25))
def test_a_cut_keeps_all_rows_in_order(rows: int, at: int) -> None:
    piece = Piece(Request("s", {}, (), rows, None, 0.0), 0, rows)
    first, rest = cut([piece], at)
    assert [row for one in first + rest for row in range(one.start, one.stop)] == list(range(rows))
    assert sum(one.rows for one in first) == min(at, rows)


PADDED = Batching(
    max_batch_size=12,
    batch_timeout_micros=500,
    allowed_batch_sizes=(1, 5, 12),
    max_enqueued_batches=30,  # one for each request below, however slow the threads are
)


@settings(max_examples=20, deadline=None)
@given(
    asked=st.lists(st.lists(st.integers(-3, 99), min_size=1, max_size=12), min_size=1, max_size=30),
    threads=st.integers(1, 3),
    batching=st.sampled_from([None, PADDED]),
)
def test_every_caller_gets_his_own_answer_from_any_traffic(
    asked: list[list[int]], threads: int, batching: Batching | None
) -> None:
    found = Callers(rules(threads, batching))
    found.model.gate.set()
    futures = [
        found.pool.submit(found.batcher.run, "s", {"x": np.array(x, np.float32)}, ("y",)) for x in asked
    ]
    try:
        for x, future in zip(asked, futures, strict=True):
            if min(x) < 0:
                rows = padded_rows(len(x), batching.allowed_batch_sizes if batching else ())
                assert refused(future) == ("OUT_OF_RANGE", f"negative among {rows}")
            else:
                assert y(future) == [2 * value for value in x]
    finally:
        found.close()
    assert found.batcher.waiting == found.batcher._running == found.batcher._bytes == 0
