"""What a run saw, small and mergeable, and how much two runs differ in it.

Kept are the counts of labels, a histogram of the best scores, and the first two moments of the
embeddings. A difference is told beside what chance makes of two samples of one population,
since a hundred photos always differ and a million differ significantly by nothing worth knowing.

* Labels and scores: the population stability index, the symmetric Kullback-Leibler divergence of
  Jeffreys (1946). Times 1/(1/n + 1/m) it is chi-squared with B-1 degrees of freedom where nothing
  changed (Yurdakul and Naranjo, Statistical properties of the population stability index, 2020).
  Up to 0.1 is held to be stable, above 0.25 to be another population (Siddiqi, Credit risk
  scorecards, 2006).
* Embeddings: the distance of the means in units of the photos' own spread, the square root of the
  trace of their covariance: Cohen's d in many dimensions. Where nothing changed the square of it is
  1/n + 1/m on average (Bai and Saranadasa, Effect of high dimension, 1996). The moments are those of
  a random projection to 64 dimensions by signs, which keeps distances to some 18 % (Achlioptas,
  Database-friendly random projections, 2003), so that those of a shard take 2 KB and not 25.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

BINS = 20
"""Of equal width, over scores from 0 to 1."""

PROJECTION_DIMENSIONS = 64
"""Dimensions that embeddings are projected to."""

MODERATE_PSI, LARGE_PSI = 0.1, 0.25
"""From where on a population stability index is worth a look, and another population."""

MODERATE_SHIFT, LARGE_SHIFT = 0.2, 0.5
"""The same of means of embeddings: what Cohen (1988) calls a small and a medium effect."""

ABSTAINED = ""
"""Stands for rows without a label among labels; no label is empty."""

_CHANCE_SIGMAS = 3.0
"""What chance may make: exceeded once in some 740 runs where nothing changed."""

_PACKED = "<f4"

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Moments:
    """Count, mean and scatter of projected embeddings.

    Attributes:
        count: embeddings.
        mean: float64 [PROJECTION_DIMENSIONS].
        scatter: float64 [PROJECTION_DIMENSIONS], sums of squared deviations from the mean.
    """

    count: int = 0
    mean: Floats = field(default_factory=lambda: np.zeros(PROJECTION_DIMENSIONS))
    scatter: Floats = field(default_factory=lambda: np.zeros(PROJECTION_DIMENSIONS))

    @classmethod
    def from_embeddings(cls, vectors: NDArray[np.floating[Any]]) -> Self:
        """Those of embeddings [N,D]."""
        if not len(vectors):
            return cls()
        projected = (vectors.astype(np.float32) @ _projection(vectors.shape[1])).astype(np.float64)
        mean = projected.mean(axis=0)
        return cls(len(vectors), mean, np.square(projected - mean).sum(axis=0))

    def __add__(self, other: Moments) -> Moments:
        """Chan, Golub and LeVeque, Algorithms for computing the sample variance, 1983."""
        count = self.count + other.count
        if not count:
            return self
        apart = other.mean - self.mean
        weight = other.count / count
        return Moments(
            count,
            self.mean + apart * weight,
            self.scatter + other.scatter + np.square(apart) * self.count * weight,
        )

    @property
    def total_variance(self) -> float:
        """Square of the photos' own spread: the trace of the covariance."""
        return float(self.scatter.sum()) / max(1, self.count - 1)

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "count": self.count,
            "mean": _encode_floats(self.mean),
            "scatter": _encode_floats(self.scatter),
        }

    @classmethod
    def from_json(cls, said: Mapping[str, Any]) -> Self:
        """Read what `to_json` gave.

        Raises:
            ValueError, TypeError, KeyError, AttributeError: it is something else.
        """
        mean, scatter = (
            np.frombuffer(base64.b64decode(said[name], validate=True), _PACKED).astype(np.float64)
            for name in ("mean", "scatter")
        )
        if not mean.shape == scatter.shape == (PROJECTION_DIMENSIONS,):
            raise ValueError(f"not {PROJECTION_DIMENSIONS} moments")
        return cls(int(said["count"]), mean, scatter)


@cache
def _projection(dimension: int) -> NDArray[np.float32]:
    """Signs [D,PROJECTION_DIMENSIONS] by a hash, not by numpy's generators, whose streams may change."""
    bits = hashlib.shake_256(f"hubhead.drift {dimension}".encode()).digest(
        dimension * PROJECTION_DIMENSIONS // 8
    )
    signs = np.unpackbits(np.frombuffer(bits, np.uint8)).reshape(dimension, PROJECTION_DIMENSIONS)
    return ((2.0 * signs - 1.0) / math.sqrt(PROJECTION_DIMENSIONS)).astype(np.float32)


def _encode_floats(values: Floats) -> str:
    """Base64, so that they are no hundred lines of run.json."""
    return base64.b64encode(values.astype(_PACKED).tobytes()).decode()


@dataclass
class DecisionCounts:
    """What one model said, over the photos that it was asked about.

    Attributes:
        labels: rows by decided label.
        abstained: rows of photos with an embedding, and no label.
        scores: those of both by best score, in BINS.
    """

    labels: Counter[str] = field(default_factory=Counter)
    abstained: int = 0
    scores: list[int] = field(default_factory=lambda: [0] * BINS)

    @staticmethod
    def histogram(scores: NDArray[np.floating[Any]]) -> list[int]:
        """How many of these best scores are in each of BINS."""
        return np.histogram(scores, BINS, (0, 1))[0].tolist()

    def __add__(self, other: DecisionCounts) -> DecisionCounts:
        scores = [a + b for a, b in zip(self.scores, other.scores, strict=True)]
        return DecisionCounts(self.labels + other.labels, self.abstained + other.abstained, scores)

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        labels = dict(sorted(self.labels.items()))
        return {"labels": labels, "abstained": self.abstained, "scores": self.scores}

    @classmethod
    def from_json(cls, said: Mapping[str, Any]) -> Self:
        """Read what `to_json` gave.

        Raises:
            ValueError, TypeError, KeyError, AttributeError: it is something else.
        """
        if len(said["scores"]) != BINS:
            raise ValueError(f"not {BINS} bins")
        return cls(Counter(said["labels"]), int(said["abstained"]), list(said["scores"]))


# --- Differences ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Change:
    """How much something differs between two runs.

    Attributes:
        value: the measure, 0 where there is no difference.
        chance: up to which it may come from chance alone.
        moderate, large: from where on it matters.
    """

    value: float
    chance: float
    moderate: float
    large: float

    @property
    def level(self) -> str:
        """`none`, `moderate` or `large`; what may be chance is none."""
        if self.value <= self.chance or self.value < self.moderate:
            return "none"
        return "moderate" if self.value < self.large else "large"

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {"value": self.value, "chance": self.chance, "level": self.level}


def population_stability_index(now: Sequence[int], before: Sequence[int]) -> Change | None:
    """The population stability index of two histograms of B bins; None where one is empty.

    Half a count is added to every bin that either has, so that an empty one is no infinity.
    """
    counts = np.array([now, before], np.float64)
    counts = counts[:, counts.sum(axis=0) > 0]
    sizes = counts.sum(axis=1)
    if not sizes.all():
        return None
    bins = counts.shape[1]
    shares = (counts + 0.5) / (sizes + 0.5 * bins)[:, None]
    index = float(((shares[0] - shares[1]) * np.log(shares[0] / shares[1])).sum())
    chance = float((1 / sizes).sum()) * _chi_squared(bins - 1)
    return Change(index, chance, MODERATE_PSI, LARGE_PSI)


def embedding_shift(now: Moments, before: Moments) -> Change | None:
    """The distance of two means in units of the photos' own spread; None where that is not known."""
    if min(now.count, before.count) < 2:
        return None
    pooled = (float(now.scatter.sum()) + float(before.scatter.sum())) / (now.count + before.count - 2)
    if not pooled:
        return None
    distance = float(np.linalg.norm(now.mean - before.mean)) / math.sqrt(pooled)
    # Of one dimension, which is the widest that chance can be: chi-squared with one degree of freedom.
    chance = _CHANCE_SIGMAS * math.sqrt(1 / now.count + 1 / before.count)
    return Change(distance, chance, MODERATE_SHIFT, LARGE_SHIFT)


def list_label_counts(now: DecisionCounts, before: DecisionCounts) -> list[tuple[str, int, int]]:
    """(label, rows now, rows before) of every label that either has, the most frequent first.

    ABSTAINED is the last one, where there are rows without a label.
    """
    names = sorted({*now.labels, *before.labels}, key=lambda name: (-now.labels[name], name))
    counts = [(name, now.labels[name], before.labels[name]) for name in names]
    abstained = (ABSTAINED, now.abstained, before.abstained)
    return [*counts, abstained] if any(abstained) else counts


def compare_counts(now: DecisionCounts, before: DecisionCounts) -> dict[str, Change]:
    """The differences of labels and of scores, as far as they are known."""
    counts = list_label_counts(now, before)
    found = {
        "labels": population_stability_index([row[1] for row in counts], [row[2] for row in counts]),
        "scores": population_stability_index(now.scores, before.scores),
    }
    return {name: change for name, change in found.items() if change is not None}


def _chi_squared(degrees: int) -> float:
    """The quantile at _CHANCE_SIGMAS of chi-squared (Wilson and Hilferty, 1931)."""
    if not degrees:
        return 0.0
    part = 2 / (9 * degrees)
    return degrees * (1 - part + _CHANCE_SIGMAS * math.sqrt(part)) ** 3
