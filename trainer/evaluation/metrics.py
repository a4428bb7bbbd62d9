"""Evaluation metrics of a head on photos that it has not seen, each with its N and 95 % interval.

Proportions of photos have the Wilson score interval. Figures without a closed form (F1, averages over
labels, log-loss) have a percentile bootstrap interval: the photos are resampled with replacement from
a fixed seed, so that the same photos always give the same figures.

Calibration is the expected calibration error of the best label's probability (Naeini et al. 2015;
Guo et al. 2017, "On Calibration of Modern Neural Networks") in bins of equal mass, which Nixon et
al. 2019 ("Measuring Calibration in Deep Learning") find steadier than bins of equal width. That
error is biased: a perfectly calibrated model does not have an error of 0, but the error that chance
leaves in its bins. The error is therefore reported beside the band of perfectly calibrated models with
the same probabilities, whose outcomes are drawn from them (Bröcker and Smith 2007; Vaicenavicius et al.
2019, "Evaluating model calibration in classification"; Widmann et al. 2019, "Calibration tests in
multi-class classification").
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.heads import Doubles, Floats, Ints, log_losses

TOP_K = (1, 3, 5)
"""The k of the top-k accuracies; only those below the number of labels are reported."""

RESAMPLES = 1000
"""Number of resamples of a bootstrap interval."""

CALIBRATION_DRAWS = 4000
"""Simulated calibrated models of a band: with 1,000 its ends move by several percent with the seed."""

MAX_BINS = 15
"""Bins of the calibration error, as in Guo et al. 2017."""

MIN_PER_BIN = 20
"""Photos that each bin needs; with fewer photos there are fewer bins."""

_SEED = 1927
Z = 1.959964
"""The 97.5 % quantile of the standard normal distribution."""

_TAILS = (2.5, 97.5)
"""Percentiles that bound a 95 % bootstrap interval."""


@dataclass(frozen=True)
class Proportion:
    """A fraction of N photos with its 95 % interval.

    Attributes:
        value: fraction of the n photos, 0 to 1; NaN where n is 0.
        n: number of photos.
        low, high: Wilson score interval (Wilson 1927), which holds for small n and near 0 and 1.
    """

    value: float
    n: int
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.1%} (N={self.n}, 95 % interval {self.low:.1%} to {self.high:.1%})"


def proportion(right: int, n: int) -> Proportion:
    """Return `right` / `n` with its 95 % Wilson score interval."""
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
        value: the figure; NaN where it is undefined.
        low, high: percentile bootstrap interval over the photos, unless stated otherwise.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} (95 % interval {self.low:.3f} to {self.high:.3f})"


@dataclass(frozen=True)
class Bin:
    """A point of the reliability diagram: photos of about the same best probability.

    Attributes:
        confidence: mean of their best probabilities.
        accuracy: fraction of them whose best label is right.
    """

    confidence: float
    accuracy: Proportion


@dataclass(frozen=True)
class Calibration:
    """Agreement of the best label's probability with how often that label is right.

    Attributes:
        error: expected calibration error: the mean over photos of `|confidence - accuracy|` of
            their bin, bins of equal mass.
        low, high: range of the error of 95 % of perfectly calibrated models with these probabilities.
        p_value: fraction of such models with an error at least as large.
        bins: points of the reliability diagram, in ascending order of confidence.
    """

    error: float
    low: float
    high: float
    p_value: float
    bins: tuple[Bin, ...]

    @property
    def within_band(self) -> bool:
        """True if the error is within the range of perfectly calibrated models."""
        return self.low <= self.error <= self.high

    def __str__(self) -> str:
        return f"{self.error:.3f} (95 % of perfectly calibrated models {self.low:.3f} to {self.high:.3f})"


@dataclass(frozen=True)
class MacroAverages:
    """Macro averages: unweighted means over the labels that have photos.

    Attributes:
        precision: mean precision; that of a label that is never predicted counts as 0.
        recall: mean recall.
        f1: mean F1.
    """

    precision: Estimate
    recall: Estimate
    f1: Estimate


@dataclass(frozen=True)
class Evaluation:
    """Evaluation metrics on one set of N photos with K labels.

    Attributes:
        accuracy: fraction of photos whose best label is right.
        top_3: top-3 accuracy: fraction of photos whose label is among the best three.
        top: top-k accuracy by k, for those of TOP_K that K exceeds.
        log_loss: mean negative natural log-likelihood; NaN without photos.
        log_loss_interval: its 95 % bootstrap interval.
        recall: by label, the fraction of its photos that are predicted as it.
        precision: by label, the fraction of the photos predicted as it that have it.
        f1: by label, the harmonic mean of precision and recall.
        macro: macro averages of precision, recall and F1.
        calibration: calibration of the best label's probability; None without photos.
        labels: K labels in the order of the confusion matrix.
        confusion: confusion matrix [K,K]: [i][j] counts photos of label i whose best label is j.
    """

    accuracy: Proportion
    top_3: Proportion
    top: dict[int, Proportion]
    log_loss: float
    log_loss_interval: tuple[float, float]
    recall: dict[str, Proportion]
    precision: dict[str, Proportion]
    f1: dict[str, Estimate]
    macro: MacroAverages
    calibration: Calibration | None
    labels: tuple[str, ...]
    confusion: tuple[tuple[int, ...], ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the metrics as JSON values, as stored in hubhead.json: None in place of NaN.

        The confusion matrix is {label: {best label: photos}} without its zeros, since K may be large.
        """
        record = asdict(self)
        del record["labels"]
        record["confusion"] = {
            label: {self.labels[column]: count for column, count in enumerate(counts) if count}
            for label, counts in zip(self.labels, self.confusion, strict=True)
        }
        record["top"] = {str(k): share for k, share in record["top"].items()}
        return nan_to_none(record)


def nan_to_none(value: Any) -> Any:
    """Return a copy of nested dicts and lists with None for each NaN, which JSON cannot represent."""
    if isinstance(value, dict):
        return {key: nan_to_none(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [nan_to_none(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def evaluate(probabilities: Floats, targets: Ints, labels: Sequence[str]) -> Evaluation:
    """Evaluate probabilities float32 [N,K] against the true classes int64 [N].

    Ties are broken in favour of the earlier label.
    """
    order = np.argsort(-probabilities, axis=1, kind="stable")
    hits = order == targets[:, None]
    count, classes = len(targets), len(labels)
    best = order[:, 0] if count else targets
    confusion = confusion_matrix(targets, best, classes)

    def count_right(totals: Ints) -> dict[str, Proportion]:
        shares = map(proportion, np.diag(confusion).tolist(), totals.tolist())
        return dict(zip(labels, shares, strict=True))

    f1, macro = _estimate_f1(confusion)
    within = {k: proportion(int(hits[:, :k].sum()), count) for k in TOP_K}
    losses = log_losses(probabilities, targets)
    return Evaluation(
        accuracy=within[1],
        top_3=within[3],
        top={k: within[k] for k in TOP_K if k == 1 or k < classes},
        log_loss=float(losses.mean()) if count else math.nan,
        log_loss_interval=bootstrap_mean_interval(losses),
        recall=count_right(confusion.sum(axis=1)),
        precision=count_right(confusion.sum(axis=0)),
        f1=dict(zip(labels, f1, strict=True)),
        macro=macro,
        calibration=measure_calibration(probabilities.max(axis=1), hits[:, 0]) if count else None,
        labels=tuple(labels),
        confusion=tuple(tuple(row) for row in confusion.tolist()),
    )


def confusion_matrix(targets: Ints, predicted: Ints, classes: int) -> Ints:
    """Return the confusion matrix int64 [K,K]: photos of class i (row) predicted as class j (column)."""
    cells = np.bincount(targets * classes + predicted, minlength=classes * classes)
    return np.asarray(cells.reshape(classes, classes), np.int64)


def _estimate_f1(confusion: Ints) -> tuple[list[Estimate], MacroAverages]:
    """Return F1 by label and the macro averages, with bootstrap intervals.

    All photos of one cell of the confusion matrix count the same, so resampling N photos is drawing the
    counts of the cells from a multinomial distribution.
    """
    total = int(confusion.sum())
    rows, columns = np.nonzero(confusion)
    counts = confusion[rows, columns]
    random = np.random.default_rng(_SEED)
    # Row 0 holds the counts themselves, the other rows the resamples; `_summarize` tells them apart.
    draws = [counts, *(random.multinomial(total, counts / total) for _ in range(RESAMPLES if total else 0))]
    right, of_label, predicted = (
        np.stack([np.bincount(place, drawn * weight, minlength=len(confusion)) for drawn in draws])
        for place, weight in ((rows, rows == columns), (rows, 1), (columns, 1))
    )
    f1 = _divide(2 * right, of_label + predicted)
    seen = of_label > 0
    # The denominators of precision, recall and F1 in turn; labels without photos take no part.
    macro = [
        _divide((np.nan_to_num(_divide(right, parts)) * seen).sum(axis=1), seen.sum(axis=1))
        for parts in (predicted, of_label, (of_label + predicted) / 2)
    ]
    return [_summarize(column) for column in f1.T], MacroAverages(*(_summarize(column) for column in macro))


def _divide(numerators: NDArray[Any], denominators: NDArray[Any]) -> Doubles:
    """Return the quotients, NaN where the denominator is 0."""
    result = np.full(denominators.shape, np.nan)
    np.divide(numerators, denominators, out=result, where=denominators > 0)
    return result


def _summarize(drawn: Doubles) -> Estimate:
    """Return the first value with the interval of the others, its resamples; NaN resamples are dropped."""
    resamples = drawn[1:][~np.isnan(drawn[1:])]
    if math.isnan(drawn[0]) or not len(resamples):
        return Estimate(math.nan, math.nan, math.nan)
    low, high = np.percentile(resamples, _TAILS)
    return Estimate(float(drawn[0]), float(low), float(high))


def bootstrap_mean_interval(values: Doubles) -> tuple[float, float]:
    """Return the 95 % percentile bootstrap interval of the mean of float64 [N]; NaN without values."""
    if not len(values):
        return math.nan, math.nan
    random = np.random.default_rng(_SEED)
    means = [values[random.integers(0, len(values), len(values))].mean() for _ in range(RESAMPLES)]
    low, high = np.percentile(means, _TAILS)
    return float(low), float(high)


def measure_calibration(confidence: Floats, right: NDArray[np.bool_], bins: int | None = None) -> Calibration:
    """Measure how well the best probabilities of N > 0 photos agree with how often they are right.

    A label drawn from a photo's probabilities is its best label with exactly the best probability. For
    the band of calibrated models, right or wrong is therefore drawn CALIBRATION_DRAWS times for each
    photo, and the error computed from each draw.

    Args:
        confidence: float32 [N], best probability of each photo.
        right: bool [N], True where the best label is the true one.
        bins: number of bins; None chooses it by N (MAX_BINS, MIN_PER_BIN).
    """
    count = len(confidence)
    order = np.argsort(confidence, kind="stable")
    sorted_confidence, correct = confidence[order].astype(np.float64), right[order]
    starts = start_bins(count, bins)
    sizes = np.diff(np.append(starts, count))
    expected = np.add.reduceat(sorted_confidence, starts)

    def compute_error(outcome: NDArray[np.bool_]) -> float:
        return float(np.abs(np.add.reduceat(outcome.astype(np.float64), starts) - expected).sum() / count)

    error = compute_error(correct)
    random = np.random.default_rng(_SEED)
    errors = np.array(
        [compute_error(random.random(count) < sorted_confidence) for _ in range(CALIBRATION_DRAWS)]
    )
    low, high = np.percentile(errors, _TAILS)
    hits = np.add.reduceat(correct.astype(np.int64), starts)
    return Calibration(
        error=error,
        low=float(low),
        high=float(high),
        p_value=float((errors >= error).mean()),
        bins=tuple(
            Bin(float(total / size), proportion(int(hit), int(size)))
            for total, hit, size in zip(expected, hits, sizes, strict=True)
        ),
    )


def start_bins(count: int, bins: int | None = None) -> Ints:
    """Return the first row of each bin of equal mass, whose sizes differ by one photo at most.

    Args:
        count: number of photos, 1 or more, in ascending order of confidence.
        bins: number of bins; None chooses it by the number of photos (MAX_BINS, MIN_PER_BIN).
    """
    bins = min(bins or max(1, min(MAX_BINS, count // MIN_PER_BIN)), count)
    return np.arange(bins) * count // bins
