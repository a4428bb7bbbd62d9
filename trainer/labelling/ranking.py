"""Order in which photos are asked for, on arrays alone.

The default strategy, `mixed`, is the greedy maximisation of a weighted coverage (facility location): the next
photo is the one whose choice increases

    sum over j of max over the chosen i of  s(i, j) u(i) u(j),    s = max(0, cosine of centred embeddings)^2

the most, where u is 1 minus the best calibrated probability. Without a model u is 1, which is the strategy
`diverse`. The sum is submodular, so the greedy order is within 1 - 1/e of the best one (Nemhauser, Wolsey and
Fisher 1978), and gains only decrease, so that most of them need not be computed again (Minoux 1978).

Of many photos, CANDIDATES are considered, half of them the most uncertain ones and half of them random ones,
and SAMPLE random photos stand for all in the sum. So time is linear in the number of photos, which are read
once, in blocks, for the predictions.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from batch.embeddings.half_floats import to_float32
from serving.process import cores, map_ahead
from trainer.heads import Floats, Ints, Vectors, single_blas_thread
from trainer.labelling.types import Strategy

_BLOCK = 256
"""Rows that a thread works on at a time: 1.3 MB of 1,280 float32 numbers, which the cache of a core holds."""

Bools = NDArray[np.bool_]

CANDIDATES = 4096
"""Maximum number of photos that the greedy order chooses from."""

SAMPLE = 4096
"""Maximum number of photos that stand for all in the sum of the coverage."""

QUEUE = 512
"""Default number of photos that are ranked."""


@dataclass(frozen=True)
class Predictions:
    """Predictions for N photos, without the probabilities of all labels.

    Attributes:
        best: int32 [N], label with the highest probability.
        top: float32 [N], that probability.
        margin: float32 [N], difference to the second highest probability.
    """

    best: NDArray[np.int32]
    top: Floats
    margin: Floats

    def select(self, rows: Ints) -> Predictions:
        """Return the predictions for some of the photos."""
        return Predictions(self.best[rows], self.top[rows], self.margin[rows])


class Covering(NamedTuple):
    """Photos that cover those near them.

    Attributes:
        embeddings: float32 or float16 [M,D].
        uncertainty: float32 [M], 1 minus their best probabilities; None for ones.
    """

    embeddings: Vectors
    uncertainty: Floats | None = None


def predict(embeddings: Vectors, probabilities: Callable[[Floats], Floats]) -> Predictions:
    """Return the predictions for embeddings float32 or float16 [N,D], block by block on all cores.

    Args:
        embeddings: rows, in memory or mapped from a file.
        probabilities: function from float32 or float16 [n,D] to calibrated probabilities float32 [n,K].
    """
    count = len(embeddings)
    found = Predictions(np.zeros(count, np.int32), np.zeros(count, np.float32), np.zeros(count, np.float32))

    def predict_block(start: int) -> None:
        places = slice(start, start + _BLOCK)
        rows: Any = embeddings[places]
        block = probabilities(to_float32(rows) if rows.dtype == np.float16 else rows)
        best = block.argmax(axis=1)
        top = block[np.arange(len(block)), best]
        second = np.partition(block, -2, axis=1)[:, -2] if block.shape[1] > 1 else np.zeros_like(top)
        found.best[places], found.top[places], found.margin[places] = best, top, top - second

    _run_blocks(predict_block, count)
    return found


def rank(
    strategy: Strategy,
    embeddings: Vectors,
    *,
    predictions: Predictions | None = None,
    novelty: Floats | None = None,
    available: Bools | None = None,
    labelled: Covering | None = None,
    count: int = QUEUE,
    seed: int = 0,
) -> Ints:
    """Return the rows to ask for next, int64 [n] with n at most `count`, first one first.

    Args:
        strategy: `uncertain` is by margin, `diverse` by coverage, `mixed` by coverage weighted with
            uncertainty, `novel` by coverage among the most novel photos, `random` by a random order. Without
            predictions `uncertain` and `mixed` are `diverse`; without novelty, `novel` is `mixed`.
        embeddings: float32 or float16 [N,D], in memory or mapped from a file.
        predictions: predictions of the current model for all photos; None for none.
        novelty: float32 [N], novelty scores, higher for photos that are less like the known ones.
        available: bool [N], photos that may be asked for; None for all.
        labelled: photos that have an answer, which cover the photos near them; None for none.
        count: maximum number of rows.
        seed: seed of everything that is random.

    Raises:
        ValueError: the strategy is `suspects`, whose order comes from the labels.
    """
    if strategy is Strategy.SUSPECTS:
        raise ValueError("suspects are ranked by trainer.evaluation.label_errors")
    random = np.random.default_rng(seed)
    rows = np.arange(len(embeddings)) if available is None else np.flatnonzero(available)
    if strategy is Strategy.RANDOM:
        return random.permutation(rows)[:count]
    if strategy is Strategy.UNCERTAIN and predictions is not None:
        return rows[_smallest(predictions.margin[rows], count)]
    uncertainty: Floats | None = None
    preference: Floats | None = None
    if strategy is Strategy.NOVEL and novelty is not None:
        rows = rows[_smallest(-novelty[rows], max(CANDIDATES // 2, 4 * count))]
    elif strategy is not Strategy.DIVERSE and predictions is not None:
        uncertainty = 1 - predictions.top
        preference = uncertainty
    chosen = _choose_candidates(rows, preference, random)
    sample = np.sort(random.permutation(rows)[:SAMPLE])
    order = greedy_coverage(
        embeddings[chosen],
        embeddings[sample],
        weights=None if uncertainty is None else uncertainty[chosen],
        sample_weights=None if uncertainty is None else uncertainty[sample],
        covering=labelled.embeddings if labelled else None,
        covering_weights=labelled.uncertainty if labelled else None,
        count=count,
    )
    return chosen[order]


def greedy_coverage(
    candidates: Vectors,
    sample: Vectors,
    *,
    weights: Floats | None = None,
    sample_weights: Floats | None = None,
    covering: Vectors | None = None,
    covering_weights: Floats | None = None,
    count: int = QUEUE,
) -> Ints:
    """Return rows of the candidates in the greedy order of the coverage, int64 [n].

    Args:
        candidates: embeddings [M,D] to choose from.
        sample: embeddings [S,D] to cover; their mean is the centre of all embeddings.
        weights: u of the candidates, float32 [M]; None for ones.
        sample_weights: u of the sample, float32 [S]; None for ones.
        covering: embeddings [L,D] that are chosen already; None for none.
        covering_weights: u of these, float32 [L]; None for ones.
        count: maximum number of rows.
    """
    if not len(candidates) or not len(sample):
        return np.zeros(0, np.int64)
    centre = sample.mean(axis=0, dtype=np.float32)
    covered = _normalize(sample, centre)
    sample_u = np.ones(len(sample), np.float32) if sample_weights is None else sample_weights
    value = np.zeros(len(sample), np.float32)
    if covering is not None:
        for start in range(0, len(covering), CANDIDATES):
            part = slice(start, start + CANDIDATES)
            u = None if covering_weights is None else covering_weights[part]
            found = _similarities(_normalize(covering[part], centre), covered, u, sample_u)
            np.maximum(value, found.max(axis=0), out=value)
    similarities = _similarities(_normalize(candidates, centre), covered, weights, sample_u)
    return np.array(list(_iter_greedy(similarities, value, min(count, len(candidates)))), np.int64)


def _iter_greedy(similarities: Floats, value: Floats, count: int) -> Iterator[int]:
    """Yield `count` rows of similarities [M,S] in greedy order; `value` [S] is the coverage before."""
    gains = np.concatenate(
        [
            np.maximum(similarities[start : start + 512] - value, 0).sum(axis=1)
            for start in range(0, len(similarities), 512)
        ]
    )
    # A gain can only have decreased since it was computed. So if the largest entry stays the largest when
    # it is computed again, it is the best of all. Ties go to the lower row, which makes the order stable.
    heap = [(-float(gain), row) for row, gain in enumerate(gains)]
    heapq.heapify(heap)
    current = value.copy()
    for _ in range(count):
        while True:
            _, row = heapq.heappop(heap)
            gain = float(np.maximum(similarities[row] - current, 0).sum())
            if not heap or (-gain, row) <= heap[0]:
                break
            heapq.heappush(heap, (-gain, row))
        np.maximum(current, similarities[row], out=current)
        yield row


def _similarities(rows: Floats, columns: Floats, weights: Floats | None, column_weights: Floats) -> Floats:
    """Return max(0, cosine)^2 u u of normalised rows [M,D] and columns [S,D], float32 [M,S]."""
    found = np.empty((len(rows), len(columns)), np.float32)

    def fill(start: int) -> None:
        block = found[start : start + _BLOCK]
        np.matmul(rows[start : start + _BLOCK], columns.T, out=block)
        np.maximum(block, 0, out=block)
        np.square(block, out=block)
        block *= column_weights
        if weights is not None:
            block *= weights[start : start + _BLOCK, None]

    _run_blocks(fill, len(rows))
    return found


def _run_blocks(work: Callable[[int], None], count: int) -> None:
    """Call a function for the first row of each block of rows, on all cores.

    The threads are not those of BLAS: these would double the time, and have another priority than the caller
    (fitting.NICENESS).
    """
    with single_blas_thread():
        for _ in map_ahead(work, range(0, count, _BLOCK), cores(), cores()):
            pass


def _normalize(embeddings: Vectors, centre: Floats) -> Floats:
    rows = np.subtract(embeddings, centre, dtype=np.float32)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return np.asarray(rows, np.float32)


def _choose_candidates(rows: Ints, preference: Floats | None, random: np.random.Generator) -> Ints:
    """Return at most CANDIDATES rows, ascending: half of the highest preference, the others random."""
    if len(rows) <= CANDIDATES:
        return rows
    first = np.zeros(0, np.int64)
    if preference is not None:
        first = rows[_smallest(-preference[rows], CANDIDATES // 2)]
        rows = np.setdiff1d(rows, first, assume_unique=True)
    return np.sort(np.concatenate([first, random.permutation(rows)[: CANDIDATES - len(first)]]))


def _smallest(values: Floats, count: int) -> Ints:
    """Return the positions of the smallest values, ascending by value and then by position."""
    count = min(count, len(values))
    whole = count == len(values)
    kept = np.arange(count) if whole else np.sort(np.argpartition(values, count)[:count])
    return kept[np.argsort(values[kept], kind="stable")]
