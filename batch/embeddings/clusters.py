"""Clusters of embeddings: spherical k-means on centred embeddings of length one.

The centres are fitted on a sample of the rows, and all rows are assigned to them in one pass in blocks: time
is linear in the number of rows, and memory does not depend on it. The mean is subtracted first, since all
embeddings of a backbone have a large part in common.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

SAMPLE = 20_000
"""Maximum number of rows that centres are fitted on."""

_ITERATIONS = 50

_STARTS = 4
"""Fits from different centres, of which the best one counts."""


@dataclass(frozen=True)
class Centres:
    """Centres of clusters.

    Attributes:
        mean: float32 [D], what is subtracted from embeddings.
        directions: float32 [K,D], of length one.
    """

    mean: Floats
    directions: Floats

    def assign(self, embeddings: NDArray[np.floating]) -> tuple[Ints, Floats]:
        """Return the nearest centre of each embedding [N,D], and the cosine with it."""
        found = _normalize(embeddings, self.mean) @ self.directions.T
        nearest = found.argmax(axis=1)
        return nearest, found[np.arange(len(found)), nearest]


def fit_centres(sample: NDArray[np.floating], count: int, seed: int = 0) -> Centres:
    """Fit the centres of at most `count` clusters to embeddings [N,D].

    Fewer are returned if there are fewer different embeddings. The largest cluster comes first.
    """
    mean = sample.mean(axis=0, dtype=np.float32)
    rows = _normalize(sample, mean)
    random = np.random.default_rng(seed)
    fits = [_fit_once(rows, min(count, len(rows)), random) for _ in range(_STARTS)]
    centres = max(fits, key=lambda fit: fit[1])[0]
    sizes = np.bincount((rows @ centres.T).argmax(axis=1), minlength=len(centres))
    order = np.argsort(-sizes, kind="stable")
    return Centres(mean, centres[order[sizes[order] > 0]])


def _fit_once(rows: Floats, count: int, random: np.random.Generator) -> tuple[Floats, float]:
    """Return centres float32 [K,D] from random initial ones, and the sum of all cosines."""
    centres = _choose_initial(rows, count, random)
    labels = np.full(len(rows), -1)
    for _ in range(_ITERATIONS):
        similarities = rows @ centres.T
        found = similarities.argmax(axis=1)
        if (found == labels).all():
            break
        labels = found
        members = np.zeros((len(rows), len(centres)), np.float32)
        members[np.arange(len(rows)), labels] = 1
        sums = members.T @ rows
        lengths = np.linalg.norm(sums, axis=1, keepdims=True)
        # An empty cluster keeps its centre.
        centres = np.divide(sums, lengths, out=centres.copy(), where=lengths > 1e-6)
    return centres, float((rows @ centres.T).max(axis=1).sum())


def _choose_initial(rows: Floats, count: int, random: np.random.Generator) -> Floats:
    """Return initial centres by k-means++: each one is drawn in proportion to 1 minus the largest cosine."""
    chosen = [int(random.integers(len(rows)))]
    distances = np.maximum(1 - rows @ rows[chosen[0]], 0)
    while len(chosen) < count and (total := float(distances.sum(dtype=np.float64))) > 1e-6 * len(rows):
        weights = distances.astype(np.float64) / total
        chosen.append(int(random.choice(len(rows), p=weights / weights.sum())))
        distances = np.minimum(distances, np.maximum(1 - rows @ rows[chosen[-1]], 0))
    return rows[chosen].copy()


def _normalize(embeddings: NDArray[np.floating], mean: Floats) -> Floats:
    rows = np.subtract(embeddings, mean, dtype=np.float32)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.maximum(lengths, 1e-12), np.float32)
