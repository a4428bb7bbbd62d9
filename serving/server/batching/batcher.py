"""Dynamic batching across callers.

Requests wait in bounded queues, are merged and cut into batches, and run on threads of the model's own.
Where none waits and a core is free, a request runs in its caller's thread, which spares handing it over
and back. What came in one request is answered in one, in its order. Where a merged or cut batch fails, each
request in it runs again alone and as it came, so that no caller pays for another.

Without a batching file batches of hubhead's bundles, whose rows are known to be apart, are those that are
fastest on CPUs (serving.runtime): small, on one thread a core, without waiting for more; requests to other
models run one by one, as they came. Who could not be answered before his deadline is refused at once. With
a file it is as in TensorFlow Serving (batching/batching_session.cc and shared_batch_scheduler.h of
TensorFlow), but for four things: the rerun above, a request whose deadline has passed never runs, callers
whose shapes differ do not meet in a batch, and requests with no rows run alone.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import InvalidStateError
from contextlib import suppress
from typing import Any

import grpc

from serving.server.batching.queue import Piece, Queue, Request, Rules, Tensors, merged, padded_rows, rows_of
from serving.server.metrics import Metrics
from serving.server.status_error import Refusal, invalid, queue_full

MAX_BYTES = 1 << 29
"""Inputs that one version holds at most; a larger request is taken where it is the only one."""

_GRACE_SECONDS = 5.0
"""For a model that does not come back: its threads are left alone then."""

_SURE = 0.5
"""The share of a caller's time within which an answer has to be expected: speed varies, and the way here and
back takes time too. Under steady load a shorter queue costs nothing."""

_SMOOTHING = 0.2
"""Weight of the last batch in the mean time a row."""

Run = Callable[[str, Tensors], Tensors]
"""Calls the model: signature and inputs to outputs."""


class Batcher:
    """The queues and threads of one version.

    `run` is for any number of threads; the first call starts the batcher's own.
    """

    def __init__(
        self,
        name: str,
        rules: Rules,
        run: Run,
        mergeable: Callable[[str, Sequence[str]], bool],
        *,
        metrics: Metrics | None = None,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        """Without threads yet.

        Args:
            name: the model's, for threads and metrics.
            rules: how requests are merged, cut and bounded.
            run: calls the model.
            mergeable: whether inputs and wanted outputs of a signature are declared with a batch as their
                first dimension; asked only without a batching file.
            metrics: where to count batches.
            max_bytes: of inputs held at once.
        """
        self._name, self._rules, self._run_model, self._mergeable = name, rules, run, mergeable
        self._metrics, self._max_bytes = metrics, max_bytes
        self._ready = threading.Condition()
        self._queues: dict[Any, Queue] = {}
        self._threads: list[threading.Thread] = []
        self._alone: set[tuple[str, tuple[str, ...]]] = set()
        self._waiting = self._running = self._bytes = 0
        self._free = rules.threads  # batches that may begin at once
        self._pace = 0.0  # seconds a row, on one thread
        self._closed = False

    @property
    def waiting(self) -> int:
        """Rows in the queues."""
        return self._waiting

    def run(
        self, signature: str, inputs: Tensors, outputs: tuple[str, ...], seconds: float | None = None
    ) -> Tensors:
        """The outputs of one request, once it has run.

        Args:
            signature: its key.
            inputs: by alias.
            outputs: aliases that are wanted.
            seconds: how long the caller waits; None: for ever.

        Raises:
            Refusal: the queue is full, the deadline passed, or the model failed.
        """
        now = time.monotonic()
        deadline = None if seconds is None else now + seconds
        key, rows = self._place(signature, inputs, outputs)
        request = Request(signature, inputs, outputs, rows, deadline, now)
        size = request.size
        with self._ready:
            if request.late(now):
                raise _late()
            queue = self._queues.get(key) or Queue(self._rules, merges=key[2] is not None)
            self._admit(request, queue, size, now)
            self._bytes += size
            if at_once := self._may_run_at_once(rows):
                self._begin(rows)
            else:
                queue.put(request, now)
                self._queues[key] = queue
                self._waiting += rows
                self._start()
                self._ready.notify_all()
        try:
            if at_once:
                self._run_begun(key, [Piece(request, 0, rows)])
                if request.late(time.monotonic()):
                    raise _too_slow()
            return request.answer.result(seconds)
        except TimeoutError:
            if request.answer.cancel():
                raise self._given_up(key, request) from None
            return request.answer.result()  # it came this very moment
        finally:
            with self._ready:
                self._bytes -= size

    def close(self) -> None:
        """End the threads, once nothing waits any more."""
        with self._ready:
            self._closed = True
            self._ready.notify_all()
            self._ready.wait_for(lambda: self._free == self._rules.threads, _GRACE_SECONDS)
        for thread in self._threads:
            thread.join(_GRACE_SECONDS)

    def _place(self, signature: str, inputs: Tensors, outputs: tuple[str, ...]) -> tuple[Any, int]:
        """The key of a request's queue, and its rows; such a key ends with None where it runs alone."""
        lengths = {values.shape[0] for values in inputs.values() if values.ndim}
        scalars = any(not values.ndim for values in inputs.values())
        alone = (signature, outputs, None), 1
        if self._rules.as_tensorflow_serving:
            if scalars:
                raise invalid("Batching Run() input tensors must have at least one dimension")
            if len(lengths) > 1:
                raise invalid("Batching Run() input tensors must have equal 0th-dimension size")
        elif scalars or (signature, outputs) in self._alone or not self._mergeable(signature, outputs):
            return alone
        if len(lengths) != 1 or lengths == {0}:
            return alone
        rows, limit = lengths.pop(), self._rules.request_rows
        if limit is not None and rows > limit:
            raise invalid(f"Task size {rows} is larger than maximum input batch size {limit}")
        shapes = tuple(
            (alias, values.ndim if self._rules.pad else values.shape[1:]) for alias, values in inputs.items()
        )
        return (signature, outputs, shapes), rows

    def _admit(self, request: Request, queue: Queue, size: int, now: float) -> None:
        """Refuse what finds no room, or would come too late."""
        rules = self._rules
        if self._closed:
            raise Refusal(grpc.StatusCode.UNAVAILABLE, f"Model {self._name} is being unloaded.")
        if self._bytes and self._bytes + size > self._max_bytes:
            raise queue_full(len(queue), len(queue))
        if rules.batches is not None:
            if queue.batches_with(request.rows) > rules.batches:
                raise queue_full(len(queue), rules.batches)
            return
        if not self._waiting:
            return
        room = rules.waiting_rows
        if request.deadline is not None and self._pace:
            in_time = (request.deadline - now) * _SURE * rules.threads / self._pace
            room = min(room, int(in_time) - self._running)
        if self._waiting + request.rows > room:
            raise queue_full(math.ceil(self._waiting / rules.rows), max(room, 0) // rules.rows)

    def _may_run_at_once(self, rows: int) -> bool:
        """Whether a request may run in its caller's own thread, which spares handing it over and back.

        It is not where others wait, or where another thread would share its rows.
        """
        if self._rules.as_tensorflow_serving or self._waiting or not self._free:
            return False
        return rows <= self._rules.rows and math.ceil(rows / self._free) == rows

    def _given_up(self, key: Any, request: Request) -> Refusal:
        """Forget a request whose caller waits no longer."""
        with self._ready:
            removed = self._remove(key, request)
        if removed:
            return _late()
        return _too_slow()

    def _remove(self, key: Any, request: Request) -> int:
        queue = self._queues.get(key)
        removed = queue.remove(request) if queue else 0
        self._waiting -= removed
        if queue is not None and not len(queue):
            del self._queues[key]
        return removed

    def _start(self) -> None:
        if not self._threads:
            self._threads = [
                threading.Thread(target=self._work, name=f"{self._name}-batch-{number}", daemon=True)
                for number in range(self._rules.threads)
            ]
            for thread in self._threads:
                thread.start()

    def _work(self) -> None:
        while taken := self._take():
            self._run_begun(*taken)
            del taken  # or an idle thread would keep the last photos

    def _begin(self, rows: int) -> None:
        self._free -= 1
        self._running += rows

    def _run_begun(self, key: Any, batch: list[Piece]) -> None:
        rows = rows_of(batch)
        try:
            self._run(key, batch)
        finally:
            with self._ready:
                self._free += 1
                self._running -= rows
                if self._waiting or self._closed:
                    self._ready.notify_all()

    def _take(self) -> tuple[Any, list[Piece]] | None:
        """Wait for the next batch, one queue after the other; None: there will be none."""
        with self._ready:
            while True:
                now = time.monotonic()
                key = next((key for key, queue in self._queues.items() if queue.due() <= now), None)
                if key is not None and self._free:
                    if batch := self._batch_of(key, now):
                        self._begin(rows_of(batch))
                        return key, batch
                elif self._closed and not self._queues:
                    return None
                else:
                    due = min((queue.due() for queue in self._queues.values()), default=None)
                    self._ready.wait(None if due is None or not self._free else due - now)

    def _batch_of(self, key: Any, now: float) -> list[Piece]:
        """The next batch of a queue, without those that nobody waits for."""
        queue = self._queues.pop(key)
        share = None if self._rules.as_tensorflow_serving else max(1, math.ceil(queue.rows / self._free))
        batch = queue.take(share)
        if len(queue):
            self._queues[key] = queue  # behind the others
        self._waiting -= rows_of(batch)
        live = []
        for piece in batch:
            if piece.request.late(now):
                _fail(piece.request, _late())
            elif not piece.request.answer.done():
                live.append(piece)
        return live

    def _run(self, key: Any, batch: list[Piece]) -> None:
        start = time.monotonic()
        rows = rows_of(batch)
        padding = padded_rows(rows, self._rules.sizes) - rows if key[2] is not None else 0
        try:
            outputs = self._call(key, batch, rows, padding)
        except Exception as error:  # whatever it is, it is its callers' answer, and this thread goes on
            if len(batch) == 1 and batch[0].whole:
                _fail(batch[0].request, error)
            else:
                self._run_again(key, batch)
            return
        seconds = (time.monotonic() - start) / rows
        self._pace += (seconds - self._pace) * (_SMOOTHING if self._pace else 1)
        self._deliver(batch, outputs, padding)
        if self._metrics:
            waits = [start - piece.request.arrived for piece in batch]
            self._metrics.batch(self._name, rows + padding, padding, waits)

    def _call(self, key: Any, batch: list[Piece], rows: int, padding: int) -> Tensors:
        signature, wanted, shapes = key
        found = self._run_model(signature, merged(batch, padding))
        outputs = {alias: found[alias] for alias in wanted}
        as_it_came = len(batch) == 1 and batch[0].whole and not padding
        if shapes is None or (as_it_came and not self._rules.as_tensorflow_serving):
            return outputs
        for values in outputs.values():
            if not values.ndim or len(values) != rows + padding:
                self._alone.add((signature, wanted))
                raise Refusal(
                    grpc.StatusCode.FAILED_PRECONDITION,
                    "Batched output tensor's 0th dimension does not equal the sum of the 0th dimension "
                    "sizes of the input tensors"
                    if values.ndim
                    else "Batched output tensor has 0 dimensions",
                )
        return outputs

    def _deliver(self, batch: list[Piece], outputs: Tensors, padding: int) -> None:
        """Give each request its rows; whoever has all of them is answered."""
        if len(batch) == 1 and batch[0].whole and not padding:
            _answer(batch[0].request, outputs)
            return
        offset = 0
        for piece in batch:
            request = piece.request
            part = {alias: values[offset : offset + piece.rows] for alias, values in outputs.items()}
            offset += piece.rows
            if piece.whole:
                _answer(request, part)
                continue
            with self._ready:
                request.parts[piece.start] = part
                request.left -= piece.rows
                finished = not request.left and not request.retried
            if finished:
                _answer(request, request.joined())

    def _run_again(self, key: Any, batch: list[Piece]) -> None:
        """Each request of a batch that failed, alone and as it came."""
        for request in {id(piece.request): piece.request for piece in batch}.values():
            with self._ready:
                if request.retried or request.answer.done():
                    continue
                request.retried = True
                self._remove(key, request)
            if request.late(time.monotonic()):
                _fail(request, _late())
            else:
                self._run(key, [Piece(request, 0, request.rows)])


def _answer(request: Request, outputs: Tensors) -> None:
    with suppress(InvalidStateError):  # its caller gave up meanwhile
        request.answer.set_result(outputs)


def _fail(request: Request, error: Exception) -> None:
    with suppress(InvalidStateError):
        request.answer.set_exception(error)


def _late() -> Refusal:
    return Refusal(
        grpc.StatusCode.RESOURCE_EXHAUSTED, "Run() timeout exceeded while waiting in batching queue"
    )


def _too_slow() -> Refusal:
    return Refusal(grpc.StatusCode.DEADLINE_EXCEEDED, "Timed out waiting for notification")
