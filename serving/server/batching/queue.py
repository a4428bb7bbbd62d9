"""Requests in line for a model, and the batches that they form."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.runtime import MICRO_BATCH
from serving.server.config.settings import Batching

ROWS_A_THREAD = 128
"""Rows that wait at most for each thread of a model, without a batching file."""

Tensors = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Rules:
    """How requests are merged, cut and bounded.

    Attributes:
        threads: batches that run at once.
        rows: of a batch at most.
        request_rows: of a request at most; None: any number.
        cut: whether a request may be spread over several batches.
        timeout: seconds that a batch that is not full waits for more.
        batches: that wait at most in one queue; None: `waiting_rows` of all queues counts.
        waiting_rows: of all queues at most.
        sizes: that batches are padded to, ascending.
        pad: whether tensors of unequal shapes are padded to one.
        as_tensorflow_serving: whether a signature without a batch as its first dimension is refused
            and all threads take what they can get; else it runs alone, threads share what waits, and
            who would wait beyond his deadline is refused at once.
    """

    threads: int
    rows: int = MICRO_BATCH
    request_rows: int | None = None
    cut: bool = True
    timeout: float = 0.0
    batches: int | None = None
    waiting_rows: int = ROWS_A_THREAD
    sizes: tuple[int, ...] = ()
    pad: bool = False
    as_tensorflow_serving: bool = False


def rules(threads: int, batching: Batching | None = None) -> Rules:
    """Of a batching file, or what is fastest on CPUs (serving.runtime).

    Args:
        threads: of the model.
        batching: of the file; None: there is none.
    """
    if batching is None:
        return Rules(threads, waiting_rows=ROWS_A_THREAD * threads)
    return Rules(
        threads=batching.num_batch_threads or threads,
        rows=(batching.enable_large_batch_splitting and batching.max_execution_batch_size)
        or batching.max_batch_size,
        request_rows=batching.max_batch_size,
        cut=batching.enable_large_batch_splitting,
        timeout=batching.batch_timeout_micros / 1e6,
        batches=batching.max_enqueued_batches,
        sizes=batching.allowed_batch_sizes,
        pad=batching.pad_variable_length_inputs,
        as_tensorflow_serving=True,
    )


@dataclass(eq=False)
class Request:
    """One caller's tensors, until all of its rows are answered.

    Attributes:
        signature: its key.
        inputs: by alias.
        outputs: aliases that are wanted.
        rows: of the first dimension; 1 where it runs alone in any case.
        deadline: of time.monotonic; None: none.
        arrived: of time.monotonic.
        answer: its outputs.
        parts: outputs of rows that ran already, by the first of them.
        left: rows that did not run yet.
        retried: whether it was taken out of its batches, to run alone.
    """

    signature: str
    inputs: Tensors
    outputs: tuple[str, ...]
    rows: int
    deadline: float | None
    arrived: float
    answer: Future[Tensors] = field(default_factory=Future)
    parts: dict[int, Tensors] = field(default_factory=dict)
    left: int = field(init=False)
    retried: bool = False

    def __post_init__(self) -> None:
        self.left = self.rows

    @property
    def size(self) -> int:
        """Bytes of its inputs."""
        return sum(size_of(values) for values in self.inputs.values())

    def late(self, now: float) -> bool:
        """Whether its caller waits no longer."""
        return self.deadline is not None and self.deadline <= now

    def joined(self) -> Tensors:
        """The outputs of all rows, in their order."""
        parts = [self.parts[start] for start in sorted(self.parts)]
        if len(parts) == 1:
            return parts[0]
        return {alias: np.concatenate([part[alias] for part in parts]) for alias in self.outputs}


@dataclass(frozen=True)
class Piece:
    """Rows `start` to `stop` of a request."""

    request: Request
    start: int
    stop: int

    @property
    def rows(self) -> int:
        """How many."""
        return self.stop - self.start

    @property
    def whole(self) -> bool:
        """Whether it is all of the request."""
        return self.rows == self.request.rows


class Queue:
    """Requests that may share a batch, in batches as they came."""

    def __init__(self, rules: Rules, *, merges: bool) -> None:
        self.merges = merges
        self._rules = rules
        self._batches: deque[list[Piece]] = deque()
        self._opened = 0.0

    def __len__(self) -> int:
        """How many batches wait, the last of them perhaps still open."""
        return len(self._batches)

    @property
    def rows(self) -> int:
        """How many rows wait."""
        return sum(rows_of(batch) for batch in self._batches)

    def batches_with(self, rows: int) -> int:
        """How many batches would wait with that many rows more."""
        if not self._batches:
            return math.ceil(rows / self._rules.rows)
        left = self._left()
        if not self._rules.cut:
            return len(self) + (rows > left)
        return len(self) + math.ceil(max(rows - left, 0) / self._rules.rows)

    def put(self, request: Request, now: float) -> None:
        """Add a request, cut where that is allowed."""
        if not self.merges:
            self._open([Piece(request, 0, request.rows)], now)
            return
        start = 0
        while start < request.rows:
            left, rest = self._left(), request.rows - start
            taken = min(rest, left or self._rules.rows) if self._rules.cut else rest
            piece = Piece(request, start, start + taken)
            if taken <= left:
                self._batches[-1].append(piece)
            else:
                self._open([piece], now)
            start += taken

    def due(self) -> float:
        """When the first batch may run, of time.monotonic; of a queue that is not empty."""
        closed = not self.merges or len(self) > 1 or not self._left()
        return 0.0 if closed else self._opened + self._rules.timeout

    def take(self, share: int | None = None) -> list[Piece]:
        """The first batch, or of one that may be cut its first `share` rows."""
        batch = self._batches.popleft()
        if share is None or not self.merges or share >= rows_of(batch):
            return batch
        taken, rest = cut(batch, share)
        self._batches.appendleft(rest)
        return taken

    def remove(self, request: Request) -> int:
        """Take a request out; how many of its rows were waiting."""
        before = self.rows
        kept = ([piece for piece in batch if piece.request is not request] for batch in self._batches)
        self._batches = deque(batch for batch in kept if batch)
        return before - self.rows

    def _left(self) -> int:
        """How many rows still fit into the last batch."""
        return self._rules.rows - rows_of(self._batches[-1]) if self._batches else 0

    def _open(self, batch: list[Piece], now: float) -> None:
        self._batches.append(batch)
        self._opened = now


def cut(batch: Sequence[Piece], rows: int) -> tuple[list[Piece], list[Piece]]:
    """The first so many rows of a batch, and the others."""
    first: list[Piece] = []
    rest: list[Piece] = []
    for piece in batch:
        taken = min(rows, piece.rows)
        rows -= taken
        middle = piece.start + taken
        if taken:
            first.append(Piece(piece.request, piece.start, middle))
        if middle < piece.stop:
            rest.append(Piece(piece.request, middle, piece.stop))
    return first, rest


def rows_of(batch: Sequence[Piece]) -> int:
    """How many rows a batch has."""
    return sum(piece.rows for piece in batch)


def merged(batch: Sequence[Piece], padding: int = 0) -> Tensors:
    """One batch's inputs, with `padding` copies of the first row of its last piece behind them.

    Where shapes differ, all are filled up to the largest with their own first value (AddPadding of
    batching_util.cc).
    """
    if len(batch) == 1 and batch[0].whole and not padding:
        return batch[0].request.inputs
    return {alias: _joined(list(_parts(batch, alias, padding))) for alias in batch[0].request.inputs}


def _parts(batch: Sequence[Piece], alias: str, padding: int) -> Iterator[NDArray[Any]]:
    for piece in batch:
        yield piece.request.inputs[alias][piece.start : piece.stop]
    if padding:
        last = batch[-1]
        yield np.repeat(last.request.inputs[alias][last.start : last.start + 1], padding, axis=0)


def _joined(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    if len({part.shape[1:] for part in parts}) > 1:
        largest = np.max([part.shape[1:] for part in parts], axis=0)
        parts = [_filled(part, largest.tolist()) for part in parts]
    return np.concatenate(parts)


def _filled(values: NDArray[Any], shape: Sequence[int]) -> NDArray[Any]:
    empty: Any = b"" if values.dtype == object else 0
    larger = np.full((len(values), *shape), values.flat[0] if values.size else empty, values.dtype)
    larger[tuple(slice(size) for size in values.shape)] = values
    return larger


def padded_rows(rows: int, sizes: Sequence[int]) -> int:
    """The smallest allowed size that holds so many rows, or `rows` where none does."""
    return next((size for size in sizes if size >= rows), rows)


def size_of(values: NDArray[Any]) -> int:
    """Bytes of an array, its strings included."""
    if values.dtype == object:
        return sum(map(len, values.flat))
    return int(values.nbytes)
