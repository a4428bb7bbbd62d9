"""Dynamic batching: merging, splitting, padding, queue limits, admission control, deadlines, failures."""

from __future__ import annotations

import threading
import time
from collections import Counter
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
    MAX_QUEUED_ROWS_PER_THREAD,
    MICRO_BATCH,
    FairQueue,
    Queue,
    Request,
    make_policy,
    round_up_rows,
)
from serving.server.callers import Caller
from serving.server.config.settings import BatchingParameters
from serving.server.metrics import Metrics
from serving.server.status_error import StatusError
from tests.support.fake_model import LIMIT, eventually

QUEUE_TIMEOUT = "Run() timeout exceeded while waiting in batching queue"


@dataclass
class Model:
    """y = 2x once `gate` is set; records its batches. Negative x is a StatusError, NaN another error."""

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
            raise StatusError(
                grpc.StatusCode.OUT_OF_RANGE, f"negative among {x.shape[0] if x.ndim else 'one'}"
            )
        if np.any(np.isnan(x)):
            raise ZeroDivisionError("broken")
        return self.outputs or {"y": x * 2, "sum": np.asarray(x.sum())}


class Callers:
    """A batcher, and threads that send requests to it."""

    def __init__(self, policy: BatchingParameters, *, batchable: bool = True, **more: Any) -> None:
        self.model = Model()
        more.setdefault("metrics", Metrics())
        self.batcher = Batcher("m", policy, self.model, lambda *_: batchable, **more)
        self.pool = ThreadPoolExecutor(64)

    def ask(
        self, *x: Any, seconds: float | None = None, outputs: Sequence[str] = ("y",), signature: str = "s"
    ) -> Future[Any]:
        values = np.array(x, np.float32) if not isinstance(x[0], np.ndarray) else x[0]
        before = self.batcher._bytes.total
        future = self.pool.submit(self.batcher.run, signature, {"x": values}, tuple(outputs), seconds)
        eventually(
            lambda: future.done() or self.batcher._bytes.total != before
        )  # so that requests are queued in the order of the calls
        return future

    def block(self) -> Future[Any]:
        """Occupy a thread of the model, so that later requests are queued."""
        began = len(self.model.batches)
        future = self.pool.submit(self.batcher.run, "s", {"x": np.zeros(1, np.float32)}, ("y",), None)
        eventually(lambda: len(self.model.batches) > began)
        return future

    def close(self) -> None:
        self.model.gate.set()
        self.pool.shutdown()
        self.batcher.close()


@pytest.fixture
def started() -> Iterator[list[Callers]]:
    found: list[Callers] = []
    yield found
    for callers in found:
        callers.close()


@pytest.fixture
def callers(started: list[Callers]) -> Any:
    def make(policy: BatchingParameters, **more: Any) -> Callers:
        started.append(Callers(policy, **more))
        return started[-1]

    return make


def error_of(future: Future[Any]) -> tuple[str, str]:
    with pytest.raises(StatusError) as caught:
        future.result(LIMIT)
    return caught.value.code.name, caught.value.details


def y(future: Future[Any]) -> list[Any]:
    return future.result(LIMIT)["y"].tolist()  # type: ignore[no-any-return]


def queue_full_error(waiting: int, limit: int) -> tuple[str, str]:
    return (
        "UNAVAILABLE",
        "The batch scheduling queue to which this task was submitted is full; "
        f"currently {waiting} batches enqueued and max_enqueued_batches is {limit}",
    )


# --- Without a batching file -----------------------------------------------------------------------------


def test_queued_requests_are_merged_into_micro_batches_and_each_gets_its_own_rows(callers: Any) -> None:
    one = callers(make_policy(1))
    blocker = one.block()
    futures = [one.ask(i, i + 0.5) for i in range(5)]
    one.model.gate.set()
    assert [y(future) for future in futures] == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
    assert y(blocker) == [0]
    assert one.model.batches == [[0], [0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5], [4, 4.5]]
    assert len(one.model.batches[1]) == MICRO_BATCH


def test_large_request_is_split_and_its_outputs_keep_row_order(callers: Any) -> None:
    two = callers(make_policy(2))
    two.model.gate.set()
    x = list(range(101))
    assert y(two.ask(*x)) == [2 * value for value in x]
    assert sorted(value for batch in two.model.batches for value in batch) == x
    assert max(map(len, two.model.batches)) <= MICRO_BATCH


def test_each_thread_takes_its_part_of_the_rows_that_are_left(callers: Any) -> None:
    two = callers(make_policy(2))
    two.model.gate.set()
    y(two.ask(0))
    two.model.gate.clear()
    two.model.batches.clear()
    eventually(lambda: two.batcher._free_threads == 2)
    futures = two.ask(1, 2, 3, 4)
    eventually(lambda: len(two.model.batches) == 2)
    two.model.gate.set()
    assert y(futures) == [2, 4, 6, 8]
    assert sorted(two.model.batches) == [[1, 2], [3], [4]]


def test_single_request_runs_inline_while_a_thread_is_free(callers: Any) -> None:
    two = callers(make_policy(2))
    first, second = two.block(), two.block()
    assert not two.batcher._threads
    third = two.ask(3)  # no free thread: it is queued
    eventually(lambda: len(two.batcher._threads) == 2)
    assert (len(two.model.batches), two.batcher._load.queued_rows) == (2, 1)
    two.model.gate.set()
    assert [y(future) for future in (first, second, third)] == [[0], [0], [6]]


def test_close_waits_for_inline_runs(callers: Any) -> None:
    one = callers(make_policy(1))
    running = one.block()
    closing = one.pool.submit(one.batcher.close)
    time.sleep(0.2)
    assert not closing.done()
    one.model.gate.set()
    closing.result(LIMIT)
    assert y(running) == [0]


def test_failed_batch_is_retried_individually_so_a_bad_row_fails_only_its_request(callers: Any) -> None:
    one = callers(make_policy(1))
    one.block()
    good, bad, broken, other = one.ask(1), one.ask(-1), one.ask(np.float32("nan")), one.ask(2)
    one.model.gate.set()
    assert (y(good), y(other)) == ([2], [4])
    assert error_of(bad) == ("OUT_OF_RANGE", "negative among 1")
    with pytest.raises(ZeroDivisionError):
        broken.result(LIMIT)
    assert y(one.ask(3)) == [6]


def test_split_request_that_fails_is_retried_whole(callers: Any) -> None:
    one = callers(make_policy(1))
    one.block()
    futures, other = one.ask(*range(9), -1), one.ask(7)
    one.model.gate.set()
    assert error_of(futures) == ("OUT_OF_RANGE", "negative among 10")
    assert y(other) == [14]


@pytest.mark.parametrize(
    ("x", "outputs", "batchable"),
    [
        (np.ones(9, np.float32), ("y", "sum"), True),  # `sum` turns out to be a scalar
        (np.ones(9, np.float32), ("y",), False),  # declared without a batch dimension
        (np.array(3, np.float32), ("y",), True),
        (np.ones((0, 2), np.float32), ("y",), True),
    ],
)
def test_request_without_a_batch_dimension_runs_alone_and_whole(
    callers: Any, x: Any, outputs: tuple[str, ...], batchable: bool
) -> None:
    one = callers(make_policy(1), batchable=batchable)
    one.model.gate.set()
    for _ in range(2):
        found = one.ask(x, outputs=outputs).result(LIMIT)
        assert found["y"].tolist() == (x * 2).tolist()
        if "sum" in outputs:
            assert found["sum"] == 9
    assert one.model.batches[-2:] == [x.tolist()] * 2 or one.model.batches[-1] == x.tolist()


def test_requests_of_different_signatures_shapes_or_outputs_are_not_merged(callers: Any) -> None:
    one = callers(make_policy(1))
    one.block()
    wide, narrow = one.ask(np.ones((1, 3), np.float32)), one.ask(np.ones((1, 2), np.float32))
    other, more = one.ask(1, signature="t"), one.ask(np.ones((1, 2), np.float32), outputs=("y", "y2"))
    one.model.outputs = None
    one.model.gate.set()
    assert (y(wide), y(narrow), y(other)) == ([[2, 2, 2]], [[2, 2]], [2])
    with pytest.raises(KeyError):
        more.result(LIMIT)
    assert len(one.model.batches) == 5


def test_full_queue_rejects_immediately_and_accepts_again_once_there_is_room(callers: Any) -> None:
    one = callers(make_policy(1))
    blocker = one.block()
    futures = [one.ask(*range(64)) for _ in range(2)]
    assert one.batcher._load.queued_rows == MAX_QUEUED_ROWS_PER_THREAD
    assert error_of(one.ask(1)) == queue_full_error(limit := MAX_QUEUED_ROWS_PER_THREAD // MICRO_BATCH, limit)
    one.model.gate.set()
    for future in [blocker, *futures]:
        future.result(LIMIT)
    assert y(one.ask(1)) == [2]


def test_request_larger_than_the_queue_is_accepted_while_nothing_is_queued(callers: Any) -> None:
    one = callers(make_policy(1))
    one.model.gate.set()
    assert len(y(one.ask(*range(3 * MAX_QUEUED_ROWS_PER_THREAD)))) == 3 * MAX_QUEUED_ROWS_PER_THREAD


def ask_as(one: Callers, caller: Caller, *x: float, seconds: float | None = None) -> Future[Any]:
    """Send a request of a named caller, and wait until it is queued."""
    before = one.batcher._load.queued_rows
    values = {"x": np.array(x, np.float32)}
    future = one.pool.submit(one.batcher.run, "s", values, ("y",), seconds, caller)
    eventually(lambda: future.done() or one.batcher._load.queued_rows != before)
    return future


def test_caller_with_one_row_is_answered_before_one_with_thousands(callers: Any) -> None:
    one = callers(make_policy(1))
    one.block()
    greedy = [ask_as(one, Caller("greedy"), *[1.0] * 5000), ask_as(one, Caller("greedy"), 1.0)]
    assert error_of(greedy[1])[0] == "UNAVAILABLE", "a caller has a limit"
    good = ask_as(one, Caller("good"), 7.0)
    one.model.gate.set()
    assert y(good) == [14]
    assert any(7.0 in batch for batch in one.model.batches[:3])
    assert len(y(greedy[0])) == 5000


def test_admission_counts_only_the_rows_that_run_before_a_request(callers: Any) -> None:
    one = callers(make_policy(1))
    one.batcher._load.observe(0.1)
    one.block()
    greedy = ask_as(one, Caller("greedy"), *[1.0] * 1000)  # 100 s of work
    late = ask_as(one, Caller("greedy"), 1.0, seconds=LIMIT)
    good = ask_as(one, Caller("good"), 7.0, seconds=LIMIT)
    one.model.gate.set()
    assert error_of(late)[0] == "UNAVAILABLE"
    assert y(good) == [14]
    assert len(y(greedy)) == 1000


def test_rows_of_a_caller_that_leaves_do_not_run(callers: Any) -> None:
    one, caller = callers(make_policy(1)), Caller("leaves")
    one.block()
    future, other = ask_as(one, caller, *[5.0] * 1000), one.ask(6)
    caller.leave()
    assert error_of(future)[0] == "CANCELLED"
    assert one.batcher._load.queued_rows == 1
    one.model.gate.set()
    assert y(other) == [12]
    assert not any(5.0 in batch for batch in one.model.batches)
    assert error_of(one.pool.submit(one.batcher.run, "s", {"x": np.ones(20)}, ("y",), None, caller)) == (
        "CANCELLED",
        "The caller has cancelled the request.",
    )


def test_work_of_a_caller_that_leaves_stops_after_the_running_batch(callers: Any) -> None:
    one, caller = callers(make_policy(2)), Caller("leaves")
    future = one.pool.submit(one.batcher.run, "s", {"x": np.ones(1000, np.float32)}, ("y",), None, caller)
    eventually(lambda: len(one.model.batches) == 2)
    caller.leave()
    one.model.gate.set()
    assert error_of(future)[0] == "CANCELLED"
    assert y(one.ask(1)) == [2]
    assert sum(len(batch) for batch in one.model.batches) == 2 * MICRO_BATCH + 1


def test_request_of_very_many_rows_is_rejected_before_it_is_divided(callers: Any) -> None:
    one = callers(make_policy(1))
    code, text = error_of(one.ask(np.empty((2**40, 0), np.float32)))
    assert (code, text) == (
        "INVALID_ARGUMENT",
        "Task size 1099511627776 is larger than maximum input batch size 16384",
    )


def test_request_of_many_rows_whose_batch_fails_is_not_retried_whole(callers: Any) -> None:
    one = callers(make_policy(1))
    one.model.gate.set()
    assert error_of(one.ask(*[1.0] * 500, -1.0)) == ("OUT_OF_RANGE", "negative among 5")
    assert max(map(len, one.model.batches)) == MICRO_BATCH
    assert y(one.ask(3)) == [6]


def test_ragged_outputs_of_slices_are_computed_again_as_a_whole(callers: Any) -> None:
    one = callers(make_policy(1))
    one.batcher._run_model = lambda _, inputs: {"y": np.ones((len(inputs["x"]), len(inputs["x"])))}
    for _ in range(2):
        assert one.ask(*range(20)).result(LIMIT)["y"].shape == (20, 20)
    assert one.ask(1, 2).result(LIMIT)["y"].shape == (2, 2)


def test_held_bytes_are_limited_and_released_with_the_response(callers: Any) -> None:
    one = callers(make_policy(1), max_bytes=1000)
    huge = np.array([b"x" * 5000], dtype=object)
    first = one.ask(huge)
    eventually(lambda: len(one.model.batches) == 1)
    code, text = error_of(one.ask(huge))
    assert code == "UNAVAILABLE"
    assert text.startswith("The batch scheduling queue to which this task was submitted is full")
    one.model.gate.set()
    assert y(first) == huge.tolist()
    assert y(one.ask(huge)) == huge.tolist()


def test_admission_control_rejects_a_request_that_cannot_meet_its_deadline(callers: Any) -> None:
    one = callers(make_policy(1))
    blocker = one.block()
    time.sleep(0.2)  # so that the average of seconds per row is high
    one.model.gate.set()
    y(blocker)
    one.model.gate.clear()
    one.block()
    one.ask(1)
    code, text = error_of(one.ask(2, seconds=0.1))
    assert code == "UNAVAILABLE"  # not RESOURCE_EXHAUSTED, the status after a wait
    assert text.startswith("The batch scheduling queue to which this task was submitted is full")
    patient = one.ask(3, seconds=LIMIT)
    one.model.gate.set()
    assert y(patient) == [6]


def test_request_whose_deadline_passes_in_the_queue_never_runs(callers: Any) -> None:
    one = callers(make_policy(1))
    one.block()
    expired, other = one.ask(5, seconds=0.05), one.ask(6)
    assert error_of(expired) == ("RESOURCE_EXHAUSTED", QUEUE_TIMEOUT)
    assert one.batcher._load.queued_rows == 1
    assert error_of(one.ask(7, seconds=0)) == ("RESOURCE_EXHAUSTED", QUEUE_TIMEOUT)
    one.model.gate.set()
    assert y(other) == [12]
    assert [5] not in one.model.batches


def test_request_whose_deadline_passes_while_it_runs_is_deadline_exceeded(callers: Any) -> None:
    two = callers(make_policy(2))
    divided = two.pool.submit(two.batcher.run, "s", {"x": np.ones(2, np.float32)}, ("y",), 0.05)
    assert error_of(divided) == ("DEADLINE_EXCEEDED", "Timed out waiting for notification")
    two.model.gate.set()
    eventually(lambda: two.batcher._free_threads == 2)
    two.model.gate.clear()
    alone = two.pool.submit(two.batcher.run, "s", {"x": np.ones(1, np.float32)}, ("y",), 0.05)
    time.sleep(0.1)
    assert not alone.done(), "an inline run cannot be interrupted"
    two.model.gate.set()
    assert error_of(alone) == ("DEADLINE_EXCEEDED", "Timed out waiting for notification")
    assert y(two.ask(1)) == [2]


def test_close_ends_the_batch_threads(callers: Any) -> None:
    two = callers(make_policy(2))
    two.model.gate.set()
    y(two.ask(1))
    threads = list(two.batcher._threads)
    two.batcher.close()
    assert not any(thread.is_alive() for thread in threads)
    assert error_of(two.ask(1))[0] == "UNAVAILABLE"


# --- With a batching file --------------------------------------------------------------------------------


def file_policy(**fields: Any) -> BatchingParameters:
    return make_policy(1, BatchingParameters(**fields))


@pytest.mark.protocol("batching.timeout")
def test_batch_waits_for_more_requests_until_it_is_full_or_times_out(callers: Any) -> None:
    patient = callers(file_policy(max_batch_size=3, batch_timeout_micros=int(LIMIT * 2e6)))
    patient.model.gate.set()
    first, second = patient.ask(1), patient.ask(2)
    assert patient.model.batches == []
    third = patient.ask(3)
    assert [y(first), y(second), y(third)] == [[2], [4], [6]]
    assert patient.model.batches == [[1, 2, 3]]
    short = callers(file_policy(max_batch_size=3, batch_timeout_micros=50_000))
    short.model.gate.set()
    start = time.monotonic()
    assert y(short.ask(1)) == [2]
    assert time.monotonic() - start >= 0.05


def test_batch_is_padded_with_the_first_row_of_its_last_request(callers: Any) -> None:
    metrics = Metrics()
    found = callers(file_policy(max_batch_size=8, allowed_batch_sizes=(2, 8)), metrics=metrics)
    found.block()
    futures = [found.ask(1), found.ask(2, 3, 4)]
    found.model.gate.set()
    assert [y(future) for future in futures] == [[2], [4, 6, 8]]
    assert found.model.batches == [[0, 0], [1, 2, 3, 4, 2, 2, 2, 2]]
    text = metrics.render().decode()
    assert ':tensorflow:serving:batching_session:wrapped_run_count{model_name="m"} 2' in text
    assert ':tensorflow:serving:batching_session:padding_size_sum{model_name="m"} 5.0' in text
    assert ':tensorflow:serving:batching_session:queuing_latency_count{model_name="m"} 3.0' in text


@pytest.mark.protocol("batching.splitting")
def test_requests_are_split_only_with_enable_large_batch_splitting(callers: Any) -> None:
    whole = callers(file_policy(max_batch_size=4))
    whole.block()
    futures = [whole.ask(1, 2, 3), whole.ask(4, 5, 6)]
    whole.model.gate.set()
    assert [y(future) for future in futures] == [[2, 4, 6], [8, 10, 12]]
    assert whole.model.batches == [[0], [1, 2, 3], [4, 5, 6]]
    splitting = callers(
        file_policy(max_batch_size=8, enable_large_batch_splitting=True, max_execution_batch_size=4)
    )
    splitting.block()
    futures = [splitting.ask(1, 2, 3), splitting.ask(*range(10, 17))]
    splitting.model.gate.set()
    assert [y(future) for future in futures] == [[2, 4, 6], [20, 22, 24, 26, 28, 30, 32]]
    assert splitting.model.batches == [[0], [1, 2, 3, 10], [11, 12, 13, 14], [15, 16]]


def test_request_above_max_batch_size_is_rejected(callers: Any) -> None:
    expected = ("INVALID_ARGUMENT", "Task size 33 is larger than maximum input batch size 32")
    assert error_of(callers(file_policy(max_batch_size=32)).ask(*range(33))) == expected
    splitting = file_policy(max_batch_size=32, enable_large_batch_splitting=True, max_execution_batch_size=8)
    assert error_of(callers(splitting).ask(*range(33))) == expected


def test_queued_batches_are_limited(callers: Any) -> None:
    small = callers(file_policy(max_batch_size=2, max_enqueued_batches=2))
    small.block()
    futures = [small.ask(1, 1), small.ask(2)]
    assert error_of(small.ask(3, 3)) == queue_full_error(2, 2)
    futures.append(small.ask(4))  # fits into the second batch
    assert error_of(small.ask(5)) == queue_full_error(2, 2)
    small.model.gate.set()
    for future in futures:
        future.result(LIMIT)
    assert small.model.batches == [[0], [1, 1], [2, 4]]


def test_inputs_without_a_common_batch_dimension_are_rejected(callers: Any) -> None:
    found = callers(file_policy())
    assert error_of(found.ask(np.array(1, np.float32))) == (
        "INVALID_ARGUMENT",
        "Batching Run() input tensors must have at least one dimension",
    )
    with pytest.raises(StatusError, match="must have equal 0th-dimension size"):
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
def test_outputs_without_a_batch_dimension_are_an_error_as_in_tensorflow_serving(
    callers: Any, outputs: Any, text: str
) -> None:
    found = callers(file_policy())
    found.model.outputs = outputs
    found.model.gate.set()
    assert error_of(found.ask(1)) == ("FAILED_PRECONDITION", text)


@pytest.mark.protocol("batching.pad-variable")
def test_unequal_shapes_are_padded_only_with_pad_variable_length_inputs(
    callers: Any,
) -> None:
    short, long = np.array([[1, 2]], np.float32), np.array([[3, 4, 5]], np.float32)
    padding = callers(file_policy(pad_variable_length_inputs=True))
    padding.block()
    flat = padding.ask(9)
    futures = [padding.ask(short), padding.ask(long)]
    padding.model.gate.set()
    assert [y(future) for future in futures] == [[[2, 4, 2]], [[6, 8, 10]]]
    assert y(flat) == [18]
    assert [[1, 2, 1], [3, 4, 5]] in padding.model.batches
    apart = callers(file_policy())
    apart.block()
    futures = [apart.ask(short), apart.ask(long)]
    apart.model.gate.set()
    assert [y(future) for future in futures] == [[[2, 4]], [[6, 8, 10]]]


# --- Any traffic -----------------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=20),
    rows=st.integers(1, 9),
    splits=st.booleans(),
)
def test_merging_and_splitting_neither_loses_nor_repeats_a_row(
    sizes: list[int], rows: int, splits: bool
) -> None:
    policy = BatchingParameters(rows if splits else 30, enable_large_batch_splitting=splits)
    queue = Queue(policy, merges=True)
    requests = []
    for size in sizes:
        expected = queue.count_batches_with(size)
        requests.append(Request({}, size, None, 0.0))
        queue.put(requests[-1], 0.0)
        assert len(queue) == expected
    assert queue.rows == sum(sizes)
    seen: list[tuple[int, int]] = []
    while len(queue):
        batch = queue.take(1)
        assert 0 < sum(piece.rows for piece in batch) <= (rows if splits else 30)
        for piece in batch:
            number = requests.index(piece.request)
            seen += [(number, row) for row in range(piece.start, piece.stop)]
    assert seen == [(number, row) for number, size in enumerate(sizes) for row in range(size)]


@settings(deadline=None)
@given(
    sizes=st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 30)), min_size=1, max_size=20),
    takes=st.lists(st.integers(1, 9), min_size=1),
    merges=st.booleans(),
    removed=st.sets(st.integers(0, 19)),
)
def test_callers_take_turns_and_no_row_is_lost_or_repeated(
    sizes: list[tuple[str, int]], takes: list[int], merges: bool, removed: set[int]
) -> None:
    queue = FairQueue(make_policy(1), merges=merges)
    requests = [Request({}, size if merges else 1, None, 0.0, caller) for caller, size in sizes]
    for request in requests:
        queue.put(request, 0.0)
    for number in removed & set(range(len(requests))):
        assert queue.remove(requests[number]) == requests[number].rows
    kept = [request for number, request in enumerate(requests) if number not in removed]
    rows_left = Counter[str]()
    for request in kept:
        rows_left[request.caller] += request.rows
    seen: dict[str, list[tuple[int, int]]] = {caller: [] for caller in "abc"}
    for turn in range(1000):
        assert queue.rows == rows_left.total()
        assert len(queue) == -(-queue.rows // (MICRO_BATCH if merges else 1))
        if not len(queue):
            break
        waiting = [caller for caller in rows_left if rows_left[caller]]
        batch = queue.take(takes[turn % len(takes)])
        taken = Counter[str]()
        for piece in batch:
            taken[piece.request.caller] += piece.rows
            number = requests.index(piece.request)
            seen[piece.request.caller] += [(number, row) for row in range(piece.start, piece.stop)]
        assert 0 < taken.total() <= min(takes[turn % len(takes)], MICRO_BATCH if merges else 1)
        part = -(-taken.total() // len(waiting))
        assert max(taken.values()) <= part or any(taken[caller] == rows_left[caller] for caller in waiting)
        rows_left -= taken
    for caller, rows in seen.items():
        mine = [(n, request.rows) for n, request in enumerate(requests) if request.caller == caller]
        expected = [(n, row) for n, size in mine if n not in removed for row in range(size)]
        assert rows == expected


PADDED = BatchingParameters(
    max_batch_size=12,
    batch_timeout_micros=500,
    allowed_batch_sizes=(1, 5, 12),
    max_enqueued_batches=30,  # room for every request below, however slow the threads are
)


@settings(max_examples=20, deadline=None)
@given(
    requests=st.lists(st.lists(st.integers(-3, 99), min_size=1, max_size=12), min_size=1, max_size=30),
    threads=st.integers(1, 3),
    batching=st.sampled_from([None, PADDED]),
)
def test_every_caller_gets_its_own_response_under_any_traffic(
    requests: list[list[int]], threads: int, batching: BatchingParameters | None
) -> None:
    found = Callers(make_policy(threads, batching))
    found.model.gate.set()
    futures = [
        found.pool.submit(found.batcher.run, "s", {"x": np.array(x, np.float32)}, ("y",)) for x in requests
    ]
    try:
        for x, future in zip(requests, futures, strict=True):
            if min(x) < 0:
                rows = round_up_rows(len(x), batching.allowed_batch_sizes if batching else ())
                assert error_of(future) == ("OUT_OF_RANGE", f"negative among {rows}")
            else:
                assert y(future) == [2 * value for value in x]
    finally:
        found.close()
    assert (
        found.batcher._load.queued_rows == found.batcher._load.running_rows == found.batcher._bytes.total == 0
    )
