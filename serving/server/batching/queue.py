"""Queues of requests that wait for a model, and the batches that they form."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.runtime import MICRO_BATCH
from serving.server.config.settings import BatchingParameters

MAX_QUEUED_ROWS_PER_THREAD = 128
"""Limit of the queue for each thread of a model, in rows, when no batching file is given."""

Tensors = Mapping[str, NDArray[Any]]
"""Arrays by input or output alias."""


def make_policy(threads: int, parameters: BatchingParameters | None = None) -> BatchingParameters:
    """Return how requests to a model are merged, split and admitted.

    Args:
        threads: number of threads of the model.
        parameters: contents of the batching file; None: the parameters that are fastest on CPUs (see
            serving.runtime).
    """
    if parameters is not None:
        return replace(parameters, num_batch_threads=parameters.num_batch_threads or threads)
    return BatchingParameters(
        max_batch_size=MICRO_BATCH,
        num_batch_threads=threads,
        enable_large_batch_splitting=True,
        tensorflow_serving=False,
    )


@dataclass(eq=False)
class Request:
    """The tensors of one call, until all of its rows are answered.

    Attributes:
        inputs: arrays by input alias.
        rows: size of the first dimension; 1 for a request that always runs alone.
        deadline: time.monotonic() at which the caller stops waiting; None: no deadline.
        arrived: time.monotonic() of arrival.
        caller: name of the caller.
        result: future of the outputs.
        partial_outputs: outputs of the slices that have run.
        rows_done: number of rows of these slices.
        retried: whether the request was taken out of its batches to run alone.
    """

    inputs: Tensors
    rows: int
    deadline: float | None
    arrived: float
    caller: str = ""
    result: Future[Tensors] = field(default_factory=Future)
    partial_outputs: dict[RequestSlice, Tensors] = field(default_factory=dict)
    rows_done: int = 0
    retried: bool = False

    @property
    def nbytes(self) -> int:
        """Size of the inputs in bytes, their strings included."""
        return sum(
            values.nbytes + (sum(map(len, values.flat)) if values.dtype == object else 0)
            for values in self.inputs.values()
        )

    def is_expired(self, now: float) -> bool:
        """Return whether the deadline has passed."""
        return self.deadline is not None and self.deadline <= now

    def resolve(self, outputs: Tensors) -> None:
        """Set the outputs, unless the caller has cancelled the request."""
        with suppress(InvalidStateError):
            self.result.set_result(outputs)

    def fail(self, error: Exception) -> None:
        """Set an error, unless the caller has cancelled the request."""
        with suppress(InvalidStateError):
            self.result.set_exception(error)

    def join_outputs(self) -> Tensors:
        """Return the outputs of all slices, concatenated in row order.

        Raises:
            ValueError: they differ in shape, as those of a model that pads its rows to the longest one.
        """
        # Slices may finish in any order, as they run on several threads.
        parts = [part for _, part in sorted(self.partial_outputs.items(), key=lambda item: item[0].start)]
        return {alias: np.concatenate([part[alias] for part in parts]) for alias in parts[0]}


@dataclass(frozen=True)
class RequestSlice:
    """Rows `start` (included) to `stop` (excluded) of a request."""

    request: Request
    start: int
    stop: int

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.stop - self.start

    @property
    def is_whole(self) -> bool:
        """True if the slice covers its whole request."""
        return self.rows == self.request.rows


class Queue:
    """Requests that may share a batch, grouped into batches in the order of arrival.

    Only the last batch may have free rows; the ones before it are complete.
    """

    def __init__(self, policy: BatchingParameters, *, merges: bool) -> None:
        """Create an empty queue.

        Args:
            policy: how requests are merged and split.
            merges: whether requests may share a batch; False: each runs alone and whole.
        """
        self.merges = merges
        self._policy = policy
        self._batches: deque[list[RequestSlice]] = deque()
        self._opened_at = 0.0

    def __len__(self) -> int:
        """Return the number of queued batches, the last of which may still have free rows."""
        return len(self._batches)

    @property
    def rows(self) -> int:
        """Number of queued rows."""
        return sum(count_rows(batch) for batch in self._batches)

    def count_batches_with(self, rows: int) -> int:
        """Return the number of batches that would be queued after a request with `rows` rows."""
        free = self._free_rows()
        if not self._policy.enable_large_batch_splitting:
            return len(self) + (rows > free)
        return len(self) + math.ceil(max(rows - free, 0) / self._policy.batch_rows)

    def put(self, request: Request, now: float) -> None:
        """Append a request, split over batches where the policy allows it."""
        if not self.merges:
            self._open_batch([RequestSlice(request, 0, request.rows)], now)
            return
        start = 0
        while start < request.rows:
            free, remaining = self._free_rows(), request.rows - start
            # Fill the last batch first; without splitting, the request moves to a new batch as a whole.
            splits = self._policy.enable_large_batch_splitting
            taken = min(remaining, free or self._policy.batch_rows) if splits else remaining
            piece = RequestSlice(request, start, start + taken)
            if taken <= free:
                self._batches[-1].append(piece)
            else:
                self._open_batch([piece], now)
            start += taken

    def due(self) -> float:
        """Return the time.monotonic() from which the first batch may run; the queue must not be empty."""
        # A batch is complete once it is full or another one was opened behind it.
        complete = not self.merges or len(self) > 1 or not self._free_rows()
        return 0.0 if complete else self._opened_at + self._policy.batch_timeout_micros / 1e6

    def take(self, _: int) -> list[RequestSlice]:
        """Remove and return the first batch, which is never divided."""
        return self._batches.popleft()

    def remove(self, request: Request) -> int:
        """Remove a request; return how many of its rows were queued."""
        before = self.rows
        kept = ([piece for piece in batch if piece.request is not request] for batch in self._batches)
        self._batches = deque(batch for batch in kept if batch)
        return before - self.rows

    def _free_rows(self) -> int:
        """Return how many rows still fit into the last batch."""
        return self._policy.batch_rows - count_rows(self._batches[-1]) if self._batches else 0

    def _open_batch(self, batch: list[RequestSlice], now: float) -> None:
        self._batches.append(batch)
        self._opened_at = now


class FairQueue:
    """Requests that may share a batch, whose callers take turns.

    Each batch has rows of as many callers as possible, so that a caller with few rows waits for few rows of
    each of the others, however many these have.
    """

    def __init__(self, policy: BatchingParameters, *, merges: bool) -> None:
        """Create an empty queue; parameters as for `Queue`."""
        self._batch_rows = policy.batch_rows if merges else 1
        self._rows = 0
        # By caller, in the order of their turns. A request is split: its first slice shrinks.
        self._waiting: dict[str, deque[RequestSlice]] = {}

    def __len__(self) -> int:
        """Return the number of batches that the queued rows form."""
        return math.ceil(self._rows / self._batch_rows)

    @property
    def rows(self) -> int:
        """Number of queued rows."""
        return self._rows

    def put(self, request: Request, _: float) -> None:
        """Append a request to those of its caller."""
        self._waiting.setdefault(request.caller, deque()).append(RequestSlice(request, 0, request.rows))
        self._rows += request.rows

    def due(self) -> float:
        """Return 0.0: rows may always run."""
        return 0.0

    def take(self, max_rows: int) -> list[RequestSlice]:
        """Remove and return the next batch, of at most `max_rows` rows."""
        left = min(self._rows, self._batch_rows, max_rows)
        self._rows -= left
        part = math.ceil(left / len(self._waiting))
        batch: list[RequestSlice] = []
        while left:
            caller = next(iter(self._waiting))
            waiting = self._waiting.pop(caller)
            rows = min(part, left)
            while rows and waiting:
                piece = waiting.popleft()
                middle = min(piece.start + rows, piece.stop)
                batch.append(replace(piece, stop=middle))
                if middle < piece.stop:
                    waiting.appendleft(replace(piece, start=middle))
                rows -= batch[-1].rows
                left -= batch[-1].rows
            if waiting:
                self._waiting[caller] = waiting  # at the end
        return batch

    def remove(self, request: Request) -> int:
        """Remove a request; return how many of its rows were queued."""
        waiting = self._waiting.pop(request.caller, deque())
        kept = deque(piece for piece in waiting if piece.request is not request)
        removed = count_rows(waiting) - count_rows(kept)
        if kept:
            self._waiting[request.caller] = kept
        self._rows -= removed
        return removed


def count_rows(batch: Iterable[RequestSlice]) -> int:
    """Return the number of rows of a batch."""
    return sum(piece.rows for piece in batch)


def merge_inputs(batch: Sequence[RequestSlice], padding: int = 0) -> Tensors:
    """Return the inputs of a batch, followed by `padding` copies of the first row of its last slice.

    Arrays of unequal shapes are padded to the largest one with their own first value (AddPadding of
    batching_util.cc).
    """
    if len(batch) == 1 and batch[0].is_whole and not padding:
        return batch[0].request.inputs  # no copy
    last = batch[-1]
    pieces = [*batch, *[RequestSlice(last.request, last.start, last.start + 1)] * padding]
    return {
        alias: _concatenate([piece.request.inputs[alias][piece.start : piece.stop] for piece in pieces])
        for alias in last.request.inputs
    }


def _concatenate(arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
    if len({values.shape[1:] for values in arrays}) > 1:
        largest = np.max([values.shape[1:] for values in arrays], axis=0)
        arrays = [_pad_to_shape(values, largest.tolist()) for values in arrays]
    return np.concatenate(arrays)


def _pad_to_shape(values: NDArray[Any], shape: Sequence[int]) -> NDArray[Any]:
    """Return the array padded to `shape` behind its first dimension, with its own first value."""
    empty: Any = b"" if values.dtype == object else 0
    larger = np.full((len(values), *shape), values.flat[0] if values.size else empty, values.dtype)
    larger[tuple(slice(size) for size in values.shape)] = values
    return larger


def round_up_rows(rows: int, sizes: Sequence[int]) -> int:
    """Return the smallest of the allowed sizes that holds `rows` rows, or `rows` if none does."""
    return next((size for size in sizes if size >= rows), rows)
