"""How good a head is on photos it has not seen: every figure with its N and interval.

Shares of photos have the Wilson score interval. Figures without a closed form (F1, averages over
labels, log-loss) have a percentile bootstrap interval: the photos are drawn again, with
replacement, from a fixed seed, so that the same photos always give the same figures.

Calibration is the expected calibration error of the best label's probability (Naeini et al. 2015;
Guo et al. 2017, "On Calibration of Modern Neural Networks") in bins of equal mass, which Nixon et
al. 2019 ("Measuring Calibration in Deep Learning") find steadier than bins of equal width. That
error is biased: a perfectly calibrated model does not show 0 but what chance leaves in its bins.
So it stands beside the band that such a model shows on as many photos with the same probabilities,
by drawing the outcomes from them (Bröcker and Smith 2007; Vaicenavicius et al. 2019, "Evaluating
model calibration in classification"; Widmann et al. 2019, "Calibration tests in multi-class
classification").
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.heads import Floats, Ints, log_loss

Doubles = NDArray[np.float64]

TOP = (1, 3, 5)
"""The k of the top-k accuracies; those that are below the number of labels are told."""

RESAMPLES = 1000
"""Of a bootstrap interval."""

CALIBRATED = 4000
"""Calibrated models that a band is taken from: with 1,000 its ends move by several percent with the seed."""

MAX_BINS = 15
MIN_PER_BIN = 20
"""Bins of the calibration error: Guo's 15, and fewer where a bin would hold too few photos to tell much."""

_SEED = 1927
Z = 1.959964
"""Standard deviations of a normal distribution that hold 95 % of it."""

_TAILS = (2.5, 97.5)


@dataclass(frozen=True)
class Proportion:
    """A share of N photos with its 95 % interval.

    Attributes:
        value: right of n, 0 to 1; NaN where n is 0.
        n: photos.
        low, high: Wilson score interval (Wilson 1927), which holds for small n and near 0 and 1.
    """

    value: float
    n: int
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.1%} (N={self.n}, 95 % interval {self.low:.1%} to {self.high:.1%})"


def proportion(right: int, n: int) -> Proportion:
    """`right` of `n` with the Wilson score interval at 95 %."""
    if n == 0:
        return Proportion(math.nan, 0, 0.0, 1.0)
    share = right / n
    centre = (share + Z * Z / (2 * n)) / (1 + Z * Z / n)
    reach = Z / (1 + Z * Z / n) * math.sqrt(share * (1 - share) / n + Z * Z / (4 * n * n))
    return Proportion(share, n, max(0.0, centre - reach), min(1.0, centre + reach))


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval.

    Attributes:
        value: the figure; NaN where no photo says anything.
        low, high: percentile bootstrap over the photos, unless it is said otherwise.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} (95 % interval {self.low:.3f} to {self.high:.3f})"


@dataclass(frozen=True)
class Bin:
    """Photos of about the same best probability: a point of the reliability diagram.

    Attributes:
        confidence: mean of their best probabilities.
        accuracy: the share whose best label is right.
    """

    confidence: float
    accuracy: Proportion


@dataclass(frozen=True)
class Calibration:
    """Whether photos with a best probability of p are right as often as p says.

    Attributes:
        error: expected calibration error: the mean over photos of |confidence - accuracy| of
            their bin, bins of equal mass.
        low, high: what 95 % of perfectly calibrated models with these probabilities show.
        p_value: the share of such models with an error at least as large.
        bins: for a reliability diagram, by rising confidence.
    """

    error: float
    low: float
    high: float
    p_value: float
    bins: tuple[Bin, ...]

    @property
    def inside(self) -> bool:
        """Whether the error is one that a perfectly calibrated model would show."""
        return self.low <= self.error <= self.high

    def __str__(self) -> str:
        return f"{self.error:.3f} (95 % of perfectly calibrated models {self.low:.3f} to {self.high:.3f})"


@dataclass(frozen=True)
class Averages:
    """Means over the labels that have photos, each label counting the same.

    Attributes:
        precision: of a label that is never answered it counts as 0.
        recall: of each label's photos.
        f1: of both.
    """

    precision: Estimate
    recall: Estimate
    f1: Estimate


@dataclass(frozen=True)
class Evaluation:
    """Figures on one set of N photos with K labels.

    Attributes:
        accuracy: the best label is right.
        top_3: the right label is among the best three.
        top: k -> the right label is among the best k, for those of TOP that K exceeds.
        log_loss: mean negative natural log-likelihood; NaN without photos.
        log_loss_interval: its 95 % bootstrap interval.
        recall: for each label, the share of its photos that are found.
        precision: for each label, the share of the photos answered with it that are of it.
        f1: for each label, the harmonic mean of the two.
        macro: the three averaged over the labels.
        calibration: of the best label's probability; None without photos.
        labels: K labels in the order of the confusion.
        confusion: [K,K] photos, [i][j] those of label i whose best label is j.
    """

    accuracy: Proportion
    top_3: Proportion
    top: dict[int, Proportion]
    log_loss: float
    log_loss_interval: tuple[float, float]
    recall: dict[str, Proportion]
    precision: dict[str, Proportion]
    f1: dict[str, Estimate]
    macro: Averages
    calibration: Calibration | None
    labels: tuple[str, ...]
    confusion: tuple[tuple[int, ...], ...]

    def record(self) -> dict[str, Any]:
        """For hubhead.json, which as JSON knows no NaN: None for a figure without photos.

        The confusion is {label: {best label: photos}} without its zeros, since K may be large.
        """
        record = asdict(self)
        del record["labels"]
        record["confusion"] = {
            label: {self.labels[column]: count for column, count in enumerate(counts) if count}
            for label, counts in zip(self.labels, self.confusion, strict=True)
        }
        record["top"] = {str(k): share for k, share in record["top"].items()}
        return finite(record)


def finite(value: Any) -> Any:
    """The same with None for each NaN, which JSON does not know."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def evaluate(probabilities: Floats, targets: Ints, labels: Sequence[str]) -> Evaluation:
    """Hold probabilities float32 [N,K] against the true classes int64 [N].

    Where probabilities tie, the earlier label is the better.
    """
    order = np.argsort(-probabilities, axis=1, kind="stable")
    hits = order == targets[:, None]
    count, classes = len(targets), len(labels)
    found = order[:, 0] if count else targets
    confusion = count_pairs(targets, found, classes)
    right, of_label, answered = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    f1, macro = _averages(confusion)
    within = {k: proportion(int(hits[:, :k].sum()), count) for k in TOP}
    losses = -np.log(np.maximum(probabilities[np.arange(count), targets], 1e-15)).astype(np.float64)
    return Evaluation(
        accuracy=within[1],
        top_3=within[3],
        top={k: within[k] for k in TOP if k == 1 or k < classes},
        log_loss=log_loss(probabilities, targets) if count else math.nan,
        log_loss_interval=mean_interval(losses),
        recall={
            label: proportion(int(r), int(n)) for label, r, n in zip(labels, right, of_label, strict=True)
        },
        precision={
            label: proportion(int(r), int(n)) for label, r, n in zip(labels, right, answered, strict=True)
        },
        f1=dict(zip(labels, f1, strict=True)),
        macro=macro,
        calibration=calibrate(probabilities.max(axis=1), hits[:, 0]) if count else None,
        labels=tuple(labels),
        confusion=tuple(tuple(row) for row in confusion.tolist()),
    )


def count_pairs(targets: Ints, found: Ints, classes: int) -> Ints:
    """The confusion int64 [K,K]: photos of class i (row) that are taken for class j (column)."""
    cells = np.bincount(targets * classes + found, minlength=classes * classes)
    return np.asarray(cells.reshape(classes, classes), np.int64)


def _averages(confusion: Ints) -> tuple[list[Estimate], Averages]:
    """F1 of each label and the averages over labels, with bootstrap intervals.

    Photos of one cell of the confusion are alike, so drawing N photos again is drawing the
    counts of the cells from a multinomial distribution.
    """
    total = int(confusion.sum())
    rows, columns = np.nonzero(confusion)
    counts = confusion[rows, columns]
    random = np.random.default_rng(_SEED)
    draws = [counts, *(random.multinomial(total, counts / total) for _ in range(RESAMPLES if total else 0))]
    right, of_label, answered = (
        np.stack([np.bincount(place, drawn * weight, minlength=len(confusion)) for drawn in draws])
        for place, weight in ((rows, rows == columns), (rows, 1), (columns, 1))
    )
    f1 = _divide(2 * right, of_label + answered)
    seen = of_label > 0
    macro = [
        _divide((np.nan_to_num(_divide(right, parts)) * seen).sum(axis=1), seen.sum(axis=1))
        for parts in (answered, of_label, (of_label + answered) / 2)
    ]
    return [_estimate(column) for column in f1.T], Averages(*(_estimate(column) for column in macro))


def _divide(parts: NDArray[Any], wholes: NDArray[Any]) -> Doubles:
    """Quotients, NaN where there is nothing to divide by."""
    result = np.full(wholes.shape, np.nan)
    np.divide(parts, wholes, out=result, where=wholes > 0)
    return result


def _estimate(drawn: Doubles) -> Estimate:
    """The first of these figures, with the interval that the others span; those that are NaN say nothing."""
    told = drawn[1:][~np.isnan(drawn[1:])]
    if math.isnan(drawn[0]) or not len(told):
        return Estimate(math.nan, math.nan, math.nan)
    low, high = np.percentile(told, _TAILS)
    return Estimate(float(drawn[0]), float(low), float(high))


def mean_interval(values: Doubles) -> tuple[float, float]:
    """The 95 % percentile bootstrap interval of the mean of float64 [N]."""
    if not len(values):
        return math.nan, math.nan
    random = np.random.default_rng(_SEED)
    means = [values[random.integers(0, len(values), len(values))].mean() for _ in range(RESAMPLES)]
    low, high = np.percentile(means, _TAILS)
    return float(low), float(high)


def calibrate(confidence: Floats, right: NDArray[np.bool_], bins: int | None = None) -> Calibration:
    """Hold best probabilities float32 [N], N > 0, against whether the best label is right, bool [N].

    The band: a photo's label drawn from its probabilities is the best one with exactly the best
    probability, so right or wrong is drawn CALIBRATED times and the error computed from each.

    Args:
        confidence: the best probability of each photo.
        right: whether its label is the true one.
        bins: how many; None chooses by N (MAX_BINS, MIN_PER_BIN).
    """
    count = len(confidence)
    bins = min(bins or max(1, min(MAX_BINS, count // MIN_PER_BIN)), count)
    order = np.argsort(confidence, kind="stable")
    sure, correct = confidence[order].astype(np.float64), right[order]
    starts = np.arange(bins) * count // bins
    sizes = np.diff(np.append(starts, count))
    expected = np.add.reduceat(sure, starts)

    def error(outcome: NDArray[np.bool_]) -> float:
        return float(np.abs(np.add.reduceat(outcome.astype(np.float64), starts) - expected).sum() / count)

    found = error(correct)
    random = np.random.default_rng(_SEED)
    errors = np.array([error(random.random(count) < sure) for _ in range(CALIBRATED)])
    low, high = np.percentile(errors, _TAILS)
    hits = np.add.reduceat(correct.astype(np.int64), starts)
    return Calibration(
        error=found,
        low=float(low),
        high=float(high),
        p_value=float((errors >= found).mean()),
        bins=tuple(
            Bin(float(total / size), proportion(int(hit), int(size)))
            for total, hit, size in zip(expected, hits, sizes, strict=True)
        ),
    )
