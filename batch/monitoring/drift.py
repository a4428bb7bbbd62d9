"""Drift between two runs: small, mergeable sketches of what a run saw, and how much two of them differ.

A sketch consists of label counts, a histogram of top scores, and the first two moments of the
embeddings. Each difference is reported beside the size that chance alone explains: samples of a
hundred photos always differ, and those of a million differ significantly even if the difference
does not matter.

* Labels and scores: population stability index (PSI), the symmetric Kullback-Leibler divergence of
  Jeffreys (1946). Divided by 1/n + 1/m it follows a chi-squared distribution with B-1 degrees of
  freedom if nothing changed (Yurdakul and Naranjo, Statistical properties of the population
  stability index, 2020). By convention, values up to 0.1 mean a stable population and values above
  0.25 another one (Siddiqi, Credit risk scorecards, 2006).
* Embeddings: distance of the means in units of the standard deviation, which is the square root of
  the trace of the covariance (Cohen's d in many dimensions). If nothing changed, its square is
  1/n + 1/m on average (Bai and Saranadasa, Effect of high dimension, 1996). The moments are those of
  a random sign projection to 64 dimensions, which preserves distances to within some 18 %
  (Achlioptas, Database-friendly random projections, 2003). So a shard's moments take 2 KB, not 25.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NotRequired, Self, TypedDict

import numpy as np
from numpy.typing import NDArray

from batch.monitoring.json_record import JsonRecord
from serving.storage.names import respell

BINS = 20
"""Number of equal bins of the score histogram, over scores from 0 to 1."""

PROJECTION_DIMENSIONS = 64
"""Number of dimensions that embeddings are projected to."""

MODERATE_PSI, LARGE_PSI = 0.1, 0.25
"""Thresholds of the population stability index for a moderate and a large change."""

MODERATE_SHIFT, LARGE_SHIFT = 0.2, 0.5
"""Thresholds of the embedding shift: small and medium effects as defined by Cohen (1988)."""

ABSTAINED = ""
"""Label that stands for rows without one; no real label is empty."""

_CHANCE_SIGMAS = 3.0
"""Standard deviations explained by chance, exceeded in about 1 of 740 runs if nothing changed."""

Floats = NDArray[np.float64]


class MomentsRecord(TypedDict):
    """Moments as JSON values, with the float32 vectors in base64.

    Attributes:
        count: number of embeddings.
        mean: mean of the projected embeddings.
        scatter: sums of squared deviations from the mean.
    """

    count: int
    mean: str
    scatter: str


class DecisionCountsRecord(TypedDict):
    """Decision counts as JSON values; early versions of hubhead wrote no scores.

    Attributes:
        labels: rows by predicted label.
        abstained: rows of photos that have an embedding but no label.
        scores: histogram of the top scores of both, in 20 equal bins from 0 to 1.
    """

    labels: dict[str, int]
    abstained: int
    scores: NotRequired[list[int]]


@dataclass(frozen=True)
class Moments(JsonRecord):
    """Count, mean and scatter of projected embeddings, mergeable by addition.

    Attributes:
        count: number of embeddings.
        mean: float64 [PROJECTION_DIMENSIONS].
        scatter: float64 [PROJECTION_DIMENSIONS], sums of squared deviations from the mean.
    """

    count: int = 0
    mean: Floats = field(default_factory=lambda: np.zeros(PROJECTION_DIMENSIONS))
    scatter: Floats = field(default_factory=lambda: np.zeros(PROJECTION_DIMENSIONS))

    def __post_init__(self) -> None:
        if not self.mean.shape == self.scatter.shape == (PROJECTION_DIMENSIONS,):
            raise ValueError(f"expected moments of {PROJECTION_DIMENSIONS} dimensions")

    @classmethod
    def from_embeddings(cls, vectors: NDArray[np.floating[Any]]) -> Self:
        """Return the moments of embeddings [N,D]."""
        if not len(vectors):
            return cls()
        projected = (vectors.astype(np.float32) @ _projection(vectors.shape[1])).astype(np.float64)
        mean = projected.mean(axis=0)
        return cls(len(vectors), mean, np.square(projected - mean).sum(axis=0))

    def __add__(self, other: Moments) -> Moments:
        """Merge two samples (Chan, Golub and LeVeque, Algorithms for computing the sample variance, 1983)."""
        count = self.count + other.count
        if not count:
            return self
        delta = other.mean - self.mean
        weight = other.count / count
        return Moments(
            count,
            self.mean + delta * weight,
            self.scatter + other.scatter + np.square(delta) * self.count * weight,
        )


@cache
def _projection(dimension: int) -> NDArray[np.float32]:
    """Return the sign matrix float32 [D,PROJECTION_DIMENSIONS] of the random projection.

    The signs come from a hash and not from numpy's generators, whose streams may change between
    versions: moments of different runs are only comparable under the same projection.
    """
    bits = hashlib.shake_256(f"hubhead.drift {dimension}".encode()).digest(
        dimension * PROJECTION_DIMENSIONS // 8
    )
    signs = np.unpackbits(np.frombuffer(bits, np.uint8)).reshape(dimension, PROJECTION_DIMENSIONS)
    return ((2.0 * signs - 1.0) / math.sqrt(PROJECTION_DIMENSIONS)).astype(np.float32)


@dataclass
class DecisionCounts(JsonRecord):
    """Counts of one model's decisions, mergeable by addition.

    Attributes:
        labels: rows by predicted label.
        abstained: rows of photos that have an embedding but no label.
        scores: histogram of the top scores of both, in BINS bins.
    """

    labels: Counter[str] = field(default_factory=Counter)
    abstained: int = 0
    scores: list[int] = field(default_factory=lambda: [0] * BINS)

    def __post_init__(self) -> None:
        if len(self.scores) != BINS:
            raise ValueError(f"expected a histogram of {BINS} bins")

    @staticmethod
    def histogram(scores: NDArray[np.floating[Any]]) -> list[int]:
        """Return the number of top scores in each of BINS bins."""
        return np.histogram(scores, BINS, (0, 1))[0].tolist()

    def __add__(self, other: DecisionCounts) -> DecisionCounts:
        scores = [a + b for a, b in zip(self.scores, other.scores, strict=True)]
        return DecisionCounts(self.labels + other.labels, self.abstained + other.abstained, scores)


# --- Differences ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Change:
    """A measured difference between two runs, with the thresholds that grade it.

    Attributes:
        value: size of the difference; 0 means none.
        chance: largest value that chance alone explains.
        moderate, large: smallest values that count as moderate and as large.
    """

    value: float
    chance: float
    moderate: float
    large: float

    @property
    def level(self) -> str:
        """`none`, `moderate` or `large`; a difference that chance explains is `none`."""
        if self.value <= self.chance or self.value < self.moderate:
            return "none"
        return "moderate" if self.value < self.large else "large"

    def to_json(self) -> dict[str, Any]:
        """Return the change as JSON values."""
        return {"value": self.value, "chance": self.chance, "level": self.level}


def population_stability_index(now: Sequence[int], before: Sequence[int]) -> Change | None:
    """Return the population stability index of two histograms; None if one is empty.

    Args:
        now: counts of the current run, one per bin.
        before: counts of the previous run, for the same bins.
    """
    counts = np.array([now, before], np.float64)
    counts = counts[:, counts.sum(axis=0) > 0]
    sizes = counts.sum(axis=1)
    if not sizes.all():
        return None
    bins = counts.shape[1]
    # Half a count is added to each bin: the logarithm of an empty one would be infinite.
    fractions = (counts + 0.5) / (sizes + 0.5 * bins)[:, None]
    index = float(((fractions[0] - fractions[1]) * np.log(fractions[0] / fractions[1])).sum())
    chance = float((1 / sizes).sum()) * _chi_squared_quantile(bins - 1)
    return Change(index, chance, MODERATE_PSI, LARGE_PSI)


def embedding_shift(now: Moments, before: Moments) -> Change | None:
    """Return the distance of two means in pooled standard deviations; None if these are unknown or zero."""
    if min(now.count, before.count) < 2:
        return None
    pooled = (float(now.scatter.sum()) + float(before.scatter.sum())) / (now.count + before.count - 2)
    if not pooled:
        return None
    distance = float(np.linalg.norm(now.mean - before.mean)) / math.sqrt(pooled)
    # The distance varies most if all variance lies in one dimension, so the bound assumes that case:
    # chi-squared with one degree of freedom.
    chance = _CHANCE_SIGMAS * math.sqrt(1 / now.count + 1 / before.count)
    return Change(distance, chance, MODERATE_SHIFT, LARGE_SHIFT)


def list_label_counts(now: DecisionCounts, before: DecisionCounts) -> list[tuple[str, int, int]]:
    """Return (label, rows now, rows before) of every label in either run, most frequent first.

    Rows without a label come last, under the label ABSTAINED, if there are any.
    """
    earlier = Counter(dict(zip(respell(before.labels, now.labels), before.labels.values(), strict=True)))
    names = sorted({*now.labels, *earlier}, key=lambda name: (-now.labels[name], name))
    counts = [(name, now.labels[name], earlier[name]) for name in names]
    abstained = (ABSTAINED, now.abstained, before.abstained)
    return [*counts, abstained] if any(abstained) else counts


def compare_counts(now: DecisionCounts, before: DecisionCounts) -> dict[str, Change]:
    """Return the changes of `labels` and of `scores`, where both runs have any."""
    counts = list_label_counts(now, before)
    found = {
        "labels": population_stability_index([row[1] for row in counts], [row[2] for row in counts]),
        "scores": population_stability_index(now.scores, before.scores),
    }
    return {name: change for name, change in found.items() if change is not None}


def _chi_squared_quantile(degrees: int) -> float:
    """Return the chi-squared quantile at _CHANCE_SIGMAS (approximation of Wilson and Hilferty, 1931)."""
    if not degrees:
        return 0.0
    part = 2 / (9 * degrees)
    return degrees * (1 - part + _CHANCE_SIGMAS * math.sqrt(part)) ** 3
