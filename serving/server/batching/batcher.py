"""Dynamic batching across callers.

Requests wait in bounded queues, are merged and split into batches, and run on threads that belong to the
model. While the queues are empty and a thread is free, a request runs inline, in its caller's thread, which
saves two thread switches. Each request gets its outputs in one piece and in row order. When a batch fails,
each of its requests is retried individually, so that one bad row does not fail other callers. When a caller
leaves, the rows of its request that have not started never run.

Without a batching file, requests to bundles of hubhead, whose rows are independent, run in the batches that
are fastest on CPUs (see serving.runtime): small, one thread per core, no waiting for more requests. Requests
to other models run one by one, unmodified. Callers take turns, so that one with many rows does not delay the
others. A request that cannot meet its deadline is rejected immediately.

With a batching file, batches form as in TensorFlow Serving (batching/batching_session.cc, and
shared_batch_scheduler.h of TensorFlow), with four differences: the individual retry described above; a
request whose deadline has passed never runs; requests of different shapes are never merged; requests with no
rows run alone.

Life of a request, on the caller's thread: `run` routes it to a queue, `_accept` admits or rejects it, and it
either runs inline or waits for its future. On a batch thread: `_take_batch`, `_run_batch`, then `_deliver`
or `_retry_individually`. All counters are guarded by `_changed`; the model itself runs outside that lock.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from typing import Any, TypeAlias

from serving.server.batching.admission import Load
from serving.server.batching.queue import (
    MAX_QUEUED_ROWS_PER_THREAD,
    FairQueue,
    Queue,
    Request,
    RequestSlice,
    Tensors,
    count_rows,
    merge_inputs,
    round_up_rows,
)
from serving.server.callers import Caller, FairLimit
from serving.server.config.settings import BatchingParameters
from serving.server.metrics import Metrics
from serving.server.status_error import (
    cancelled,
    execution_timeout,
    failed_precondition,
    invalid_argument,
    queue_full,
    queue_timeout,
    unavailable,
)

MAX_BYTES = 1 << 29
"""Maximum bytes of inputs that one version holds; a larger request is accepted while no other is held."""

MAX_ROWS = 1 << 14
"""Maximum rows of a request that is divided into batches. A message of a few bytes can state any number."""

_GRACE_SECONDS = 5.0
"""Time that closing waits for a model call that does not return; its threads are abandoned after that."""

RunModel = Callable[[str, Tensors], Tensors]
"""Calls the model: signature key and inputs to outputs."""

QueueKey: TypeAlias = tuple[str, tuple[str, ...], tuple[Any, ...] | None]
"""Signature key, requested outputs, and input shapes; None in place of shapes: requests run alone."""


class Batcher:
    """The queues and threads of one version of a model.

    `run` may be called from any number of threads. Batch threads start with the first request that waits.
    """

    def __init__(
        self,
        name: str,
        policy: BatchingParameters,
        run: RunModel,
        is_batchable: Callable[[str, Sequence[str]], bool],
        *,
        metrics: Metrics,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        """Create a batcher without starting threads.

        Args:
            name: model name, for thread names and metrics.
            policy: how requests are merged, split and admitted, from `make_policy`.
            run: function that calls the model.
            is_batchable: function that returns whether a signature's inputs and the given outputs declare
                a batch as their first dimension; used only without a batching file.
            metrics: registry that counts batches.
            max_bytes: maximum bytes of inputs held at once.
        """
        self._name, self._policy, self._run_model, self._is_batchable = name, policy, run, is_batchable
        self._metrics = metrics
        self._changed = threading.Condition()
        # In the order in which the queues are served: the one that gave a batch moves to the end.
        self._queues: dict[QueueKey, Queue | FairQueue] = {}
        self._threads: list[threading.Thread] = []
        # Signatures and outputs whose results turned out to have no batch dimension, despite is_batchable.
        self._unbatchable: set[tuple[str, tuple[str, ...]]] = set()
        self._load = Load(policy)
        self._bytes = FairLimit(max_bytes)
        # Batches that may start now. Inline runs count too, so never more than num_batch_threads run.
        self._free_threads = policy.num_batch_threads
        self._closed = False

    def run(
        self,
        signature: str,
        inputs: Tensors,
        outputs: tuple[str, ...],
        seconds: float | None = None,
        caller: Caller | None = None,
    ) -> Tensors:
        """Run one request and return its outputs.

        Args:
            signature: signature key.
            inputs: arrays by input alias.
            outputs: aliases of the requested outputs.
            seconds: how long the caller waits; None: no limit.
            caller: sender of the request; None: the server itself.

        Raises:
            StatusError: the queue is full, the deadline passed, the caller left, or the model failed.
        """
        now, caller = time.monotonic(), caller or Caller()
        key, rows = self._route(signature, inputs, outputs)
        request = Request(inputs, rows, None if seconds is None else now + seconds, now, caller.name)
        nbytes = request.nbytes
        with self._changed:
            inline = self._accept(key, request, nbytes, now)
        try:
            if inline:
                self._run_reserved(key, [RequestSlice(request, 0, rows)])
                if request.is_expired(time.monotonic()):
                    raise execution_timeout()
            else:
                caller.on_leave(lambda: self._cancel(key, request))
            return request.result.result(seconds)
        except TimeoutError:
            if not request.result.cancel():
                return request.result.result()  # it was set between the timeout and the cancellation
            removed = self._cancel(key, request)
            raise (queue_timeout() if removed else execution_timeout()) from None
        except CancelledError:
            raise cancelled() from None
        finally:
            self._bytes.give_back(caller.name, nbytes)

    def close(self) -> None:
        """Finish what is queued, then end the threads."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            # Inline runs have no thread to join: wait until every reservation was returned.
            threads = self._policy.num_batch_threads
            self._changed.wait_for(lambda: self._free_threads == threads, _GRACE_SECONDS)
        for thread in self._threads:
            thread.join(_GRACE_SECONDS)

    # --- Admission control, on the caller's thread ---

    def _route(self, signature: str, inputs: Tensors, outputs: tuple[str, ...]) -> tuple[QueueKey, int]:
        """Return the queue key of a request and its number of rows; a request that runs alone counts as 1."""
        sizes = {values.shape[0] for values in inputs.values() if values.ndim}
        has_scalar = any(not values.ndim for values in inputs.values())
        alone: tuple[QueueKey, int] = ((signature, outputs, None), 1)
        if self._policy.tensorflow_serving:
            if has_scalar:
                raise invalid_argument("Batching Run() input tensors must have at least one dimension")
            if len(sizes) > 1:
                raise invalid_argument("Batching Run() input tensors must have equal 0th-dimension size")
        elif (
            has_scalar
            or (signature, outputs) in self._unbatchable
            or not self._is_batchable(signature, outputs)
        ):
            return alone
        if len(sizes) != 1 or sizes == {0}:
            return alone
        limit = self._policy.max_batch_size if self._policy.tensorflow_serving else MAX_ROWS
        if (rows := sizes.pop()) > limit:
            raise invalid_argument(f"Task size {rows} is larger than maximum input batch size {limit}")
        # Requests are merged only if they can be concatenated: equal shapes, or equal ranks with padding.
        pads = self._policy.pad_variable_length_inputs
        shapes = tuple((alias, x.ndim if pads else x.shape[1:]) for alias, x in inputs.items())
        return (signature, outputs, shapes), rows

    def _accept(self, key: QueueKey, request: Request, nbytes: int, now: float) -> bool:
        """Admit a request; reserve a thread and return True if it may run inline, otherwise queue it.

        Raises:
            StatusError: it is rejected.
        """
        if request.is_expired(now):
            raise queue_timeout()
        if self._closed:
            raise unavailable(f"Model {self._name} is being unloaded.")
        kind = Queue if self._policy.tensorflow_serving else FairQueue
        queue = self._queues.get(key) or kind(self._policy, merges=key[2] is not None)
        self._load.check(request, queue, now)
        if not self._bytes.take(request.caller, nbytes):
            raise queue_full(len(queue), len(queue))
        if self._can_run_inline(request.rows):
            self._reserve_thread(request.rows)
            return True
        queue.put(request, now)
        self._queues[key] = queue
        self._load.count_queued(request.caller, request.rows)
        self._start_threads()
        self._changed.notify_all()
        return False

    def _can_run_inline(self, rows: int) -> bool:
        """Return whether a request may run in its caller's own thread.

        False while others wait, and for a request whose rows several free threads would divide.
        """
        if self._policy.tensorflow_serving or self._load.queued_rows or not self._free_threads:
            return False
        return rows <= self._policy.batch_rows and math.ceil(rows / self._free_threads) == rows

    def _cancel(self, key: QueueKey, request: Request) -> int:
        """Take back a request that nobody waits for; return how many of its rows had not started."""
        request.result.cancel()
        with self._changed:
            return self._remove(key, request)

    def _remove(self, key: QueueKey, request: Request) -> int:
        """Remove a request's waiting rows from its queue; return how many there were."""
        queue = self._queues.get(key)
        removed = queue.remove(request) if queue else 0
        self._load.count_queued(request.caller, -removed)
        if queue is not None and not len(queue):
            del self._queues[key]
        return removed

    # --- Batch threads ---

    def _start_threads(self) -> None:
        if not self._threads:
            self._threads = [
                threading.Thread(target=self._run_batches, name=f"{self._name}-batch-{number}", daemon=True)
                for number in range(self._policy.num_batch_threads)
            ]
            for thread in self._threads:
                thread.start()

    def _run_batches(self) -> None:
        while taken := self._take_batch():
            self._run_reserved(*taken)
            del taken  # an idle thread would otherwise keep the last photos in memory

    def _reserve_thread(self, rows: int) -> None:
        self._free_threads -= 1
        self._load.running_rows += rows

    def _run_reserved(self, key: QueueKey, batch: list[RequestSlice]) -> None:
        """Run a batch for which `_reserve_thread` was called, and return the reservation."""
        rows = count_rows(batch)
        try:
            self._run_batch(key, batch)
        finally:
            with self._changed:
                self._free_threads += 1
                self._load.running_rows -= rows
                if self._load.queued_rows or self._closed:
                    self._changed.notify_all()

    def _take_batch(self) -> tuple[QueueKey, list[RequestSlice]] | None:
        """Wait for the next batch, serving the queues in turn; None: closed, and nothing is queued."""
        with self._changed:
            while True:
                now = time.monotonic()
                key = next((key for key, queue in self._queues.items() if queue.due() <= now), None)
                if key is not None and self._free_threads:
                    if batch := self._pop_batch(key, now):
                        self._reserve_thread(count_rows(batch))
                        return key, batch
                elif self._closed and not self._queues:
                    return None
                else:
                    # Sleep until an incomplete batch becomes due; without a free thread, until one is freed.
                    due = min((queue.due() for queue in self._queues.values()), default=None)
                    self._changed.wait(None if due is None or not self._free_threads else due - now)

    def _pop_batch(self, key: QueueKey, now: float) -> list[RequestSlice]:
        """Remove the next batch from a queue; return it without expired and cancelled requests."""
        queue = self._queues.pop(key)
        # A thread leaves their part to the others, which may be about to finish: guided self-scheduling
        # (Polychronopoulos and Kuck 1987). Few callers would otherwise wait for each other in one batch.
        batch = queue.take(max(1, math.ceil(queue.rows / self._policy.num_batch_threads)))
        if len(queue):
            self._queues[key] = queue  # at the end, so that other queues come first
        for piece in batch:
            self._load.count_queued(piece.request.caller, -piece.rows)
        live = []
        for piece in batch:
            if piece.request.is_expired(now):
                piece.request.fail(queue_timeout())
            elif not piece.request.result.done():
                live.append(piece)
        return live

    def _run_batch(self, key: QueueKey, batch: list[RequestSlice]) -> None:
        start = time.monotonic()
        rows = count_rows(batch)
        padding = round_up_rows(rows, self._policy.allowed_batch_sizes) - rows if key[2] is not None else 0
        try:
            outputs = self._call_model(key, batch, rows, padding)
            self._load.observe((time.monotonic() - start) / rows)
            self._deliver(key, batch, outputs, padding)
        except Exception as error:  # any error belongs to the callers; this thread has to go on
            if len(batch) == 1 and batch[0].is_whole:
                batch[0].request.fail(error)
            else:
                self._retry_individually(key, batch, error)
            return
        waits = [start - piece.request.arrived for piece in batch]
        self._metrics.observe_batch(self._name, rows + padding, padding, waits)

    def _call_model(self, key: QueueKey, batch: list[RequestSlice], rows: int, padding: int) -> Tensors:
        """Call the model with a batch; return the requested outputs.

        Raises:
            StatusError: the model failed, or an output does not have the rows of the batch.
        """
        signature, wanted, shapes = key
        results = self._run_model(signature, merge_inputs(batch, padding))
        outputs = {alias: results[alias] for alias in wanted}
        unmodified = len(batch) == 1 and batch[0].is_whole and not padding
        if shapes is None or (unmodified and not self._policy.tensorflow_serving):
            return outputs  # nothing has to be divided among requests
        for values in outputs.values():
            if not values.ndim or len(values) != rows + padding:
                # Without a batching file the retry runs each request alone, and so do later requests.
                self._unbatchable.add((signature, wanted))
                raise failed_precondition(
                    "Batched output tensor's 0th dimension does not equal the sum of the 0th dimension "
                    "sizes of the input tensors"
                    if values.ndim
                    else "Batched output tensor has 0 dimensions",
                )
        return outputs

    def _deliver(self, key: QueueKey, batch: list[RequestSlice], outputs: Tensors, padding: int) -> None:
        """Give each request its rows of the outputs; resolve the requests that are complete.

        Raises:
            ValueError: the outputs of a request's slices do not fit together.
        """
        if len(batch) == 1 and batch[0].is_whole and not padding:
            batch[0].request.resolve(outputs)
            return
        offset = 0
        for piece in batch:
            request = piece.request
            part = {alias: values[offset : offset + piece.rows] for alias, values in outputs.items()}
            offset += piece.rows
            if piece.is_whole:
                request.resolve(part)
                continue
            # Other slices of this request may be delivered by other threads at the same time.
            with self._changed:
                request.partial_outputs[piece] = part
                request.rows_done += piece.rows
                complete = request.rows_done == request.rows and not request.retried
            if complete:
                try:
                    request.resolve(request.join_outputs())
                except ValueError:
                    self._unbatchable.add(key[:2])
                    raise

    def _retry_individually(self, key: QueueKey, batch: list[RequestSlice], error: Exception) -> None:
        """Run each request of a failed batch again, alone and whole; one with very many rows fails."""
        # A batch may hold several slices of one request, and other batches the rest of it: `retried` makes
        # sure that it runs once, and that slices which finish later do not resolve it.
        for request in {id(piece.request): piece.request for piece in batch}.values():
            with self._changed:
                if request.retried or request.result.done():
                    continue
                request.retried = True
                self._remove(key, request)
            if request.is_expired(time.monotonic()):
                request.fail(queue_timeout())
            elif request.rows > max(MAX_QUEUED_ROWS_PER_THREAD, self._policy.max_batch_size):
                request.fail(error)
            else:
                self._run_batch(key, [RequestSlice(request, 0, request.rows)])
