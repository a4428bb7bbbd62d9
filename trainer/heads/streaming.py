"""Rows in blocks that need not fit in memory, for fits that read all rows many times."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from serving.process import cores, map_ahead
from trainer.heads.head import Doubles, Floats, Ints, Scaling, Vectors

Block = tuple[Vectors, Ints]
Result = TypeVar("Result")

ROWS = 2048
"""Rows per block of an array: 10 MB of 1280 float32 numbers, small enough for the allocator to reuse."""

_WORKERS = 4
"""Maximum number of blocks processed in parallel; each one takes memory."""

_BUCKET = 16_384
"""Rows per file of shuffled rows, about."""

_MOST_BUCKETS = 256


@dataclass(frozen=True)
class Blocks:
    """Embeddings with their labels, in blocks that can be read more than once.

    Attributes:
        read: function that starts reading; every call yields the same blocks, float16 or float32
            [n,D] and int64 [n].
        count: number of rows in all blocks, N.
        dimension: length of a row, D.
        scaling: scaling to features that `map` applies; None if the rows are features already.
        array: all rows and labels, if the blocks are slices of an array.
    """

    read: Callable[[], Iterable[Block]]
    count: int
    dimension: int
    scaling: Scaling | None = None
    array: Block | None = None

    @classmethod
    def from_array(
        cls, rows: Vectors, targets: Ints, size: int = ROWS, *, chosen: Ints | None = None
    ) -> Blocks:
        """Return the blocks of an array [N,D], in memory or mapped from a file.

        Args:
            rows: rows of all photos.
            targets: labels of all photos, int64 [N].
            size: rows per block.
            chosen: rows to use, in this order, int64 [n]; None for all.
        """
        count = len(targets if chosen is None else chosen)

        def read() -> Iterator[Block]:
            for start in range(0, count, size):
                part = slice(start, start + size)
                at = part if chosen is None else chosen[part]
                yield rows[at], targets[at]

        return cls(read, count, rows.shape[1], array=(rows, targets) if chosen is None else None)

    def first(self, count: int) -> Blocks:
        """Return the first `count` rows."""

        def read() -> Iterator[Block]:
            left = count
            for rows, targets in self.read():
                if left > 0:
                    yield rows[:left], targets[:left]
                left -= len(targets)

        return replace(self, read=read, count=count, array=None)

    def chain(self, other: Blocks) -> Blocks:
        """Return the rows of both, those of `other` last.

        Raises:
            ValueError: the scalings differ.
        """

        def read() -> Iterator[Block]:
            yield from self.read()
            yield from other.read()

        if self.scaling is not other.scaling:
            raise ValueError("blocks with different scalings cannot be chained")
        return replace(self, read=read, count=self.count + other.count, array=None)

    def map(self, work: Callable[[Floats, Ints], Result]) -> Iterator[Result]:
        """Yield the result of `work` for the features and labels of each block, in the order of the blocks.

        Blocks are processed in parallel. The results do not depend on the number of threads, since
        each block is processed as a whole by one thread and the caller adds results up in order.
        """

        def process(block: Block) -> Result:
            rows, targets = block
            return work(self.to_features(rows), targets)

        workers = min(_WORKERS, cores())
        if self.count <= ROWS or workers == 1:
            yield from map(process, self.read())
            return
        # At most one block more than there are workers is read ahead, which bounds the memory.
        yield from map_ahead(process, self.read(), workers, workers)

    def sum(self, work: Callable[[Floats, Ints], tuple[Any, ...]]) -> list[Doubles]:
        """Return the float64 sums over the blocks, one or more, of the results of `work` as for `map`."""
        results = self.map(work)
        totals = [np.array(part, np.float64) for part in next(results)]
        for result in results:
            for total, part in zip(totals, result, strict=True):
                total += part
        return totals

    def gather(self) -> Block:
        """Return all rows, unscaled, and their labels."""
        if self.array is not None:
            return self.array
        blocks = list(self.read())
        if not blocks:
            return np.zeros((0, self.dimension), np.float32), np.zeros(0, np.int64)
        return np.concatenate([rows for rows, _ in blocks]), np.concatenate([part for _, part in blocks])

    def load_features(self) -> Blocks:
        """Return the blocks of one array in memory with the features of all rows."""
        features = np.empty((self.count, self.dimension), np.float32)
        targets = np.empty(self.count, np.int64)
        start = 0
        for rows, labels in self.map(lambda rows, labels: (rows, labels)):
            features[start : start + len(labels)], targets[start : start + len(labels)] = rows, labels
            start += len(labels)
        return Blocks.from_array(features, targets)

    def split_every(
        self, counts: Ints, stride: int, seed: int, *, first: bool = False
    ) -> tuple[Blocks, Blocks]:
        """Split off every stride-th row of each label; return (remaining rows, rows split off).

        Args:
            counts: number of rows of each label, int64 [K].
            stride: distance of the rows split off, at least 2.
            seed: number that determines the first row split off.
            first: split off each label's first row, so that every label is among the rows split off;
                else never split it off, so that every label is among the remaining rows.
        """
        offset = 0 if first else seed % stride
        # Per label, rows with index % stride == offset are split off, except row 0 unless `first`.
        taken = sum((int(count) - 1 - offset) // stride + 1 for count in counts if count > offset)
        if offset == 0 and not first:
            taken -= int((counts > 0).sum())

        def read(wanted: bool) -> Callable[[], Iterator[Block]]:
            def blocks() -> Iterator[Block]:
                # Rows are counted per label across the blocks, so the split does not depend on the blocks.
                seen = np.zeros(len(counts), np.int64)
                for rows, targets in self.read():
                    index = seen[targets] + _index_within_label(targets)
                    seen += np.bincount(targets, minlength=len(counts))
                    mask = ((index % stride == offset) & ((index > 0) | first)) == wanted
                    if mask.any():
                        yield rows[mask], targets[mask]

            return blocks

        others = replace(self, read=read(False), count=self.count - taken, array=None)
        return others, replace(others, read=read(True), count=taken)

    def to_features(self, rows: Vectors) -> Floats:
        """Return the features of some rows, float32 [n,D]."""
        return np.asarray(rows, np.float32) if self.scaling is None else self.scaling.features(rows)


def _index_within_label(targets: Ints) -> Ints:
    """Return for each row how many rows of its label come before it."""
    order = np.argsort(targets, kind="stable")
    ordered = targets[order]
    starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
    indices = np.empty(len(targets), np.int64)
    indices[order] = np.arange(len(targets)) - np.repeat(starts, np.diff(np.append(starts, len(targets))))
    return indices


class ShuffledRows:
    """Rows in random order, for stochastic gradient descent in mini-batches.

    Rows that do not fit in memory are distributed to files at random once, and read back file by file
    in every epoch. Without that, mini-batches would have the order of the folder, label by label.

    Args:
        blocks: features, or embeddings with their scaling.
        seed: seed of the distribution to files.
        directory: directory of the files; None if the blocks are in memory (`Blocks.load_features`).
    """

    def __init__(self, blocks: Blocks, seed: int, directory: str | Path | None = None) -> None:
        self.count = blocks.count
        self._blocks = blocks
        self._memory = [blocks.gather()] if directory is None else []
        buckets = min(-(-blocks.count // _BUCKET), _MOST_BUCKETS)
        self._paths = [Path(directory, f"{index}") for index in range(buckets)] if directory else []
        if not self._paths:
            return
        random = np.random.default_rng(seed)
        for rows, targets in blocks.read():
            bucket = random.integers(0, buckets, len(targets))
            self._dtype = rows.dtype
            for index in np.unique(bucket):
                with self._paths[index].open("ab") as file:
                    rows[bucket == index].tofile(file)
                with self._paths[index].with_suffix(".labels").open("ab") as file:
                    targets[bucket == index].tofile(file)

    def batches(self, size: int, random: np.random.Generator) -> Iterator[tuple[Floats, Ints]]:
        """Yield all rows once, at most `size` at a time: features float32 [n,D] and labels int64 [n]."""
        for rows, targets in self._chunks(random):
            order = random.permutation(len(targets))
            for start in range(0, len(order), size):
                chosen = order[start : start + size]
                yield self._blocks.to_features(rows[chosen]), targets[chosen]

    def _chunks(self, random: np.random.Generator) -> Iterator[Block]:
        """Yield the rows in memory, or file by file in random order."""
        yield from self._memory
        for index in random.permutation(len(self._paths)):
            path = self._paths[index]
            if path.exists():
                rows: Any = np.fromfile(path, self._dtype).reshape(-1, self._blocks.dimension)
                yield rows, np.fromfile(path.with_suffix(".labels"), np.int64)
