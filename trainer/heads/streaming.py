"""Rows in blocks: photos that need not fit in memory, gone through as often as a fit needs."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from trainer.heads.head import Floats, Ints, Scaling, Vectors

Block = tuple[Vectors, Ints]
Result = TypeVar("Result")

ROWS = 2048
"""Rows of a block made of an array: 10 MB of 1280 float32 numbers, which an allocator hands out again."""

_WORKERS = 4
"""Blocks worked on at once, at most; each holds memory."""

_BUCKET = 16_384
_MOST_BUCKETS = 256


@dataclass(frozen=True)
class Blocks:
    """Embeddings with their labels, in blocks, that can be gone through more than once.

    Attributes:
        read: begins anew at every call, and gives the same blocks each time: float16 or float32
            [n,D] and int64 [n].
        count: N, the rows of all blocks.
        dimension: D.
        scaling: makes features of the rows on the way; None where they are features.
        whole: the rows in one piece, where they were made of such.
    """

    read: Callable[[], Iterable[Block]]
    count: int
    dimension: int
    scaling: Scaling | None = None
    whole: Block | None = None

    @classmethod
    def of(cls, rows: Vectors, targets: Ints, size: int = ROWS, *, chosen: Ints | None = None) -> Blocks:
        """An array [N,D], in memory or mapped from a file, cut into blocks.

        Args:
            rows: of all photos.
            targets: int64 [N].
            size: rows of a block.
            chosen: int64 [n], the rows that are meant and their order; None for all.
        """
        if chosen is not None:
            order = chosen

            def read_chosen() -> Iterator[Block]:
                for start in range(0, len(order), size):
                    at = order[start : start + size]
                    yield rows[at], targets[at]

            return cls(read_chosen, len(order), rows.shape[1])

        def read() -> Iterator[Block]:
            for start in range(0, len(targets), size):
                yield rows[start : start + size], targets[start : start + size]

        return cls(read, len(targets), rows.shape[1], whole=(rows, targets))

    def scaled(self, scaling: Scaling) -> Blocks:
        """The features of these embeddings."""
        return replace(self, scaling=scaling)

    def then(self, other: Blocks) -> Blocks:
        """The rows of both."""

        def read() -> Iterator[Block]:
            yield from self.read()
            yield from other.read()

        if self.scaling is not other.scaling:
            raise ValueError("blocks scaled differently cannot be chained")
        return replace(self, read=read, count=self.count + other.count, whole=None)

    def each(self, work: Callable[[Floats, Ints], Result]) -> Iterator[Result]:
        """What `work` says of the features of each block, in order; blocks are worked on in parallel.

        The results are the same to the bit however many threads there are.
        """

        def done(block: Block) -> Result:
            rows, targets = block
            return work(_features(rows, self.scaling), targets)

        workers = min(_WORKERS, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1)
        if self.count <= ROWS or workers == 1:
            yield from map(done, self.read())
            return
        with ThreadPoolExecutor(workers) as pool:
            pending: deque[Future[Result]] = deque()
            for block in self.read():
                pending.append(pool.submit(done, block))
                if len(pending) > workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()

    def gather(self) -> Block:
        """All rows as they were read."""
        if self.whole is not None:
            return self.whole
        blocks = list(self.read())
        if not blocks:
            return np.zeros((0, self.dimension), np.float32), np.zeros(0, np.int64)
        return np.concatenate([rows for rows, _ in blocks]), np.concatenate([part for _, part in blocks])

    def cached(self) -> Blocks:
        """Their features in one array."""
        features = np.empty((self.count, self.dimension), np.float32)
        targets = np.empty(self.count, np.int64)
        start = 0
        for rows, labels in self.each(lambda rows, labels: (rows, labels)):
            features[start : start + len(labels)], targets[start : start + len(labels)] = rows, labels
            start += len(labels)
        return Blocks.of(features, targets)

    def parted(self, counts: Ints, stride: int, seed: int, *, first: bool = False) -> tuple[Blocks, Blocks]:
        """(the others, every stride-th row of each label), by the rows' order.

        Args:
            counts: int64 [K], rows of each label.
            stride: at least 2.
            seed: which row is the first one taken.
            first: take each label's first row, so that none goes missing among those taken; else
                that row is never taken, so that none goes missing among the others.
        """
        offset = 0 if first else seed % stride
        # Those taken are the rows 0 to n-1 that leave the offset when divided, but for row 0.
        taken = sum((int(count) - 1 - offset) // stride + 1 for count in counts if count > offset)
        if offset == 0 and not first:
            taken -= int((counts > 0).sum())

        def read(wanted: bool) -> Callable[[], Iterator[Block]]:
            def blocks() -> Iterator[Block]:
                seen = np.zeros(len(counts), np.int64)
                for rows, targets in self.read():
                    place = seen[targets] + _places(targets)
                    seen += np.bincount(targets, minlength=len(counts))
                    mask = ((place % stride == offset) & ((place > 0) | first)) == wanted
                    if mask.any():
                        yield rows[mask], targets[mask]

            return blocks

        others = replace(self, read=read(False), count=self.count - taken, whole=None)
        return others, replace(others, read=read(True), count=taken)


def _features(rows: Vectors, scaling: Scaling | None) -> Floats:
    return np.asarray(rows, np.float32) if scaling is None else scaling.features(rows)


def _places(targets: Ints) -> Ints:
    """Which one of its label each row is, counted from 0."""
    order = np.argsort(targets, kind="stable")
    ordered = targets[order]
    starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
    places = np.empty(len(targets), np.int64)
    places[order] = np.arange(len(targets)) - np.repeat(starts, np.diff(np.append(starts, len(targets))))
    return places


class Shuffled:
    """Rows in random order, for steps on a few rows each.

    What does not fit in memory is dealt out to files at random once, and read back a file at a
    time: the order in a folder is that of the labels, of which steps would learn one after another.

    Args:
        blocks: features, or embeddings with their scaling.
        seed: of the dealing.
        directory: for the files; None where the blocks are in memory (Blocks.cached).
    """

    def __init__(self, blocks: Blocks, seed: int, directory: Path | None) -> None:
        self.count = blocks.count
        self._scaling = blocks.scaling
        self._dimension = blocks.dimension
        self._paths: list[Path] = []
        self._dtype: np.dtype[Any] = np.dtype(np.float32)
        if directory is None:
            self._memory = [blocks.gather()]
            return
        self._memory = []
        buckets = min(-(-blocks.count // _BUCKET), _MOST_BUCKETS)
        self._paths = [directory / f"{index}" for index in range(buckets)]
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
        """All rows once, `size` or fewer at a time: features float32 [n,D], labels int64 [n]."""
        for rows, targets in self._chunks(random):
            order = random.permutation(len(targets))
            for start in range(0, len(order), size):
                chosen = order[start : start + size]
                yield _features(rows[chosen], self._scaling), targets[chosen]

    def _chunks(self, random: np.random.Generator) -> Iterator[Block]:
        yield from self._memory
        for index in random.permutation(len(self._paths)):
            path = self._paths[index]
            if path.exists():
                rows: Vectors = np.fromfile(path, self._dtype).reshape(-1, self._dimension)
                yield rows, np.fromfile(path.with_suffix(".labels"), np.int64)
