"""Photos of a session that may still be asked for, in the order of the strategies."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from trainer.heads import Floats, Ints, Vectors
from trainer.labelling.candidates import Candidates
from trainer.labelling.ranking import Bools, Covering, Predictions, rank
from trainer.labelling.types import Strategy

_QUICK = 1024
"""Photos that are ranked while a browser waits; the background ranks all."""

_BLOCK = 64
"""Photos that are compared with the answered ones at a time."""

_HASH_RANGE = float(1 << 64)


class AnsweredVectors:
    """Embeddings of length one of the answered photos, to find photos that nearly equal one of them.

    Args:
        embeddings: embeddings of all photos.
        threshold: cosine similarity from which two photos are nearly equal.
    """

    def __init__(self, embeddings: Vectors, threshold: float) -> None:
        self._embeddings, self._threshold = embeddings, threshold
        self._rows: list[int] = []
        self._vectors = np.zeros((64, embeddings.shape[1]), np.float32)

    def normalize(self, rows: Iterable[int]) -> Floats:
        """Return the embeddings of photos, scaled to length one."""
        found = np.asarray(self._embeddings[np.fromiter(rows, np.int64)], np.float32)
        found /= np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
        return np.asarray(found, np.float32)

    def add(self, row: int) -> None:
        """Add an answered photo."""
        if len(self._rows) == len(self._vectors):
            self._vectors = np.concatenate([self._vectors, np.zeros_like(self._vectors)])
        self._vectors[len(self._rows)] = self.normalize([row])[0]
        self._rows.append(row)

    def remove(self, row: int) -> None:
        """Remove a photo whose answer was taken back."""
        place, last = self._rows.index(row), len(self._rows) - 1
        self._vectors[place] = self._vectors[last]
        self._rows[place] = self._rows[last]
        del self._rows[last]

    def find_near(self, rows: Sequence[int]) -> list[int | None]:
        """Return for each photo an answered one that it nearly equals; None if there is none."""
        if not self._rows or not len(rows):
            return [None] * len(rows)
        cosines = self.normalize(rows) @ self._vectors[: len(self._rows)].T
        best = cosines.argmax(axis=1)
        near = cosines[np.arange(len(rows)), best] >= self._threshold
        return [self._rows[at] if found else None for at, found in zip(best, near, strict=True)]

    def are_near(self, vector: Floats, rows: list[int]) -> bool:
        """Return whether a photo nearly equals one of some photos."""
        return bool(rows) and bool((self.normalize(rows) @ vector >= self._threshold).any())


class Pool:
    """Which photos are open, which are reserved for the test set, and the queue of the strategy.

    A part of the photos, by the hash of their content, is reserved: the strategies do not choose from it, so
    that the photos that `random` draws from it are a random sample of all, whatever was answered before.

    Args:
        candidates: the photos.
        near_threshold: cosine similarity from which a photo is not asked for beside an answered one.
        test_percentage: percentage that is reserved.
        suspects: rows in the order of the strategy `suspects`.
        seed: seed of what is random in the ranking.

    Attributes:
        open: bool [N], photos without an answer that nearly equal no answered one.
        reserved: bool [N].
        near: photo -> answered photo that it nearly equals.
        predictions: predictions of the current classifier; None for none.
        novelty: novelty scores of all photos; None for none.
    """

    def __init__(
        self,
        candidates: Candidates,
        *,
        near_threshold: float,
        test_percentage: float,
        suspects: Ints,
        seed: int,
    ) -> None:
        count = len(candidates)
        self.candidates, self.suspects, self._seed = candidates, suspects, seed
        self.open: Bools = np.ones(count, bool)
        # Digests are random numbers already; their first eight bytes decide, whatever the other photos are.
        words = np.frombuffer(candidates.digests.tobytes(), ">u8").reshape(count, -1)
        self.reserved: Bools = words[:, 0].astype(np.float64) < test_percentage / 100 * _HASH_RANGE
        self._random_order = np.lexsort((words[:, 1], ~self.reserved))
        self.near: dict[int, int] = {}
        self.predictions: Predictions | None = None
        self.novelty: Floats | None = None
        self._answered = AnsweredVectors(candidates.embeddings, near_threshold)
        self._answered_rows: dict[int, None] = {}
        self._queue: Ints = np.zeros(0, np.int64)
        self._queue_strategy: Strategy | None = None

    @property
    def answered(self) -> list[int]:
        """Rows that have an answer."""
        return list(self._answered_rows)

    def set_answered(self, row: int, answered: bool) -> None:
        """Note that a photo has an answer, or that it has none any more."""
        if answered == (row in self._answered_rows):
            return
        if answered:
            self._answered_rows[row] = None
            self._answered.add(row)
            self.near.pop(row, None)
            self.open[row] = False
            return
        del self._answered_rows[row]
        self._answered.remove(row)
        self.open[row] = True
        for other in [other for other, cause in self.near.items() if cause == row]:
            del self.near[other]
            self.open[other] = True

    def select(self, strategy: Strategy, skipped: Iterable[int]) -> Bools:
        """Return the photos that a strategy may choose, bool [N]; skipped ones if there are no others."""
        wanted = self.open.copy()
        if strategy is Strategy.SUSPECTS:
            inside = np.zeros(len(wanted), bool)
            inside[self.suspects] = True
            wanted &= inside
        elif strategy is not Strategy.RANDOM:
            wanted &= ~self.reserved
        others = wanted.copy()
        others[np.fromiter(skipped, np.int64)] = False
        return others if others.any() else wanted

    def count_open(self, strategy: Strategy) -> int:
        """Return the number of photos that may still be asked for."""
        return int(self.open[self.suspects].sum() if strategy is Strategy.SUSPECTS else self.open.sum())

    def count_queue(self, strategy: Strategy) -> int:
        """Return the number of open photos in the queue of a strategy."""
        return int(self.open[self._queue].sum()) if self._queue_strategy is strategy else 0

    def install(self, strategy: Strategy, queue: Ints) -> None:
        """Replace the queue by a new ranking of a strategy."""
        self._queue, self._queue_strategy = queue, strategy

    def iter_rows(
        self, strategy: Strategy, skipped: Iterable[int], is_free: Callable[[int], bool]
    ) -> Iterator[int]:
        """Yield photos that are free, best ones first, that nearly equal neither answered nor each other.

        Args:
            strategy: the strategy.
            skipped: photos to leave to the end.
            is_free: returns whether no browser holds a photo.
        """
        wanted = self.select(strategy, skipped)
        if strategy is Strategy.RANDOM:
            yield from self.filter(self._random_order[wanted[self._random_order]], is_free)
            return
        if strategy is Strategy.SUSPECTS:
            # Near-duplicates under two labels are what this strategy looks for.
            yield from (int(row) for row in self.suspects if wanted[row] and is_free(int(row)))
            return
        if self._queue_strategy is strategy:
            yield from self.filter(self._queue[wanted[self._queue]], is_free)
        visited = np.zeros(len(wanted), bool)
        while True:
            left = np.flatnonzero(wanted & self.open & ~visited)
            if not len(left):
                return
            if len(left) > _QUICK:
                left = np.sort(np.random.default_rng(self._seed).choice(left, _QUICK, replace=False))
            visited[left] = True
            # Kept until the background has ranked all, so that the next photo needs no ranking.
            self.install(strategy, self._rank_some(strategy, left))
            yield from self.filter(self._queue, is_free)

    def iter_grid(self, label: int, is_free: Callable[[int], bool]) -> Iterator[int]:
        """Yield photos that the classifier takes for a label, the most confident one first."""
        if self.predictions is not None:
            rows = np.flatnonzero(self.open & ~self.reserved & (self.predictions.best == label))
            order = np.argsort(-self.predictions.top[rows], kind="stable")
            yield from self.filter(rows[order], is_free)

    def count_grid_photos(self, labels: int) -> Ints:
        """Return the number of open photos that the classifier takes for each label, int64 [labels]."""
        if self.predictions is None:
            return np.zeros(labels, np.int64)
        return np.bincount(self.predictions.best[self.open & ~self.reserved], minlength=labels)

    def filter(self, rows: Ints, is_free: Callable[[int], bool]) -> Iterator[int]:
        """Yield the rows that are open, free and not nearly equal to an answered photo, which are closed."""
        start, size = 0, 1
        while start < len(rows):
            # The first photo is good as a rule. Where many nearly equal an answered one, blocks are faster.
            part = [row for row in rows[start : start + size].tolist() if self.open[row] and is_free(row)]
            for row, near in zip(part, self._answered.find_near(part), strict=True):
                if near is not None:
                    self.open[row] = False
                    self.near[row] = near
                elif is_free(row):
                    yield row
            start, size = start + size, min(2 * size, _BLOCK)

    def are_near(self, row: int, rows: list[int]) -> bool:
        """Return whether a photo nearly equals one of some photos."""
        return self._answered.are_near(self._answered.normalize([row])[0], rows)

    def _rank_some(self, strategy: Strategy, rows: Ints) -> Ints:
        """Rank a few photos at once, while a browser waits."""
        predictions = self.predictions
        answered = np.array(self.answered[-_QUICK:], np.int64)
        uncertainty = None if predictions is None else 1 - predictions.top[answered]
        order = rank(
            strategy,
            self.candidates.embeddings[rows],
            predictions=None if predictions is None else predictions.select(rows),
            novelty=None if self.novelty is None else self.novelty[rows],
            labelled=Covering(self.candidates.embeddings[answered], uncertainty) if len(answered) else None,
            count=len(rows),
            seed=self._seed,
        )
        return rows[order]
