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
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.errors import InputError
from trainer import head
from trainer.head import Floats, Ints, log_loss

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
_Z = 1.959964
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
    centre = (share + _Z * _Z / (2 * n)) / (1 + _Z * _Z / n)
    reach = _Z / (1 + _Z * _Z / n) * math.sqrt(share * (1 - share) / n + _Z * _Z / (4 * n * n))
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
        return _finite(record)


def _finite(value: Any) -> Any:
    """The same with None for each NaN."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_finite(item) for item in value]
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


# --- Two models on the same photos ------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """A model held against another one, such as the live version, on the same N photos.

    Attributes:
        n: photos.
        gained: photos that this one gets right and the other does not.
        lost: the other way round.
        accuracy: difference of the accuracies, positive where this one is better; interval of
            Agresti and Min 2005 for matched pairs.
        log_loss: difference of the log-losses, negative where this one is better; paired bootstrap.
        p_value: McNemar's exact test: how likely so uneven a gain and loss is if neither is more accurate.
    """

    n: int
    gained: int
    lost: int
    accuracy: Estimate
    log_loss: Estimate
    p_value: float

    @property
    def better(self) -> bool:
        """Surely more accurate, or surely with a lower log-loss and not surely less accurate."""
        return self.accuracy.low > 0 or (self.log_loss.high < 0 and self.accuracy.high >= 0)

    @property
    def worse(self) -> bool:
        """Surely less accurate, or surely with a higher log-loss and not surely more accurate."""
        return self.accuracy.high < 0 or (self.log_loss.low > 0 and self.accuracy.low <= 0)

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return dict(_finite(asdict(self)))

    def __str__(self) -> str:
        return (
            f"accuracy {self.accuracy.value:+.1%} (95 % interval {self.accuracy.low:+.1%} to "
            f"{self.accuracy.high:+.1%}), log-loss {self.log_loss.value:+.3f} ({self.log_loss.low:+.3f} to "
            f"{self.log_loss.high:+.3f}), N={self.n}, {self.gained} gained, {self.lost} lost"
        )


def compare(probabilities: Floats, other: Floats, targets: Ints) -> Comparison:
    """Hold probabilities float32 [N,K] against those of another model for the same photos and labels.

    Where the models' labels differ, give both through `aligned`, and photos of labels that both
    know: a label that a model does not know has probability 0 there, which costs a log-loss of 34.5.

    Raises:
        InputError: there are no photos.
    """
    from scipy.special import bdtr

    count = len(targets)
    if not count:
        raise InputError(
            "Two models cannot be compared without photos.", remedy="Keep some photos for the test."
        )
    right, other_right = (rows.argmax(axis=1) == targets for rows in (probabilities, other))
    gained, lost = int((right & ~other_right).sum()), int((other_right & ~right).sum())
    picked = np.arange(count), targets
    losses, other_losses = (
        -np.log(np.maximum(rows[picked], 1e-15)).astype(np.float64) for rows in (probabilities, other)
    )
    difference = losses - other_losses
    # Half a photo is added to each of the four cells.
    centre = (gained - lost) / (count + 2)
    reach = _Z * math.sqrt(gained + lost + 1 - (gained - lost) ** 2 / (count + 2)) / (count + 2)
    discordant = gained + lost
    return Comparison(
        n=count,
        gained=gained,
        lost=lost,
        accuracy=Estimate((gained - lost) / count, max(-1.0, centre - reach), min(1.0, centre + reach)),
        log_loss=Estimate(float(difference.mean()), *mean_interval(difference)),
        p_value=min(1.0, 2 * float(bdtr(min(gained, lost), discordant, 0.5))) if discordant else 1.0,
    )


def aligned(probabilities: Floats, own: Sequence[str], labels: Sequence[str]) -> Floats:
    """Probabilities float32 [N,len(labels)] of a model whose columns are `own`; 0 for labels not its own."""
    column = {label: index for index, label in enumerate(own)}
    result = np.zeros((len(probabilities), len(labels)), np.float32)
    for index, label in enumerate(labels):
        if label in column:
            result[:, index] = probabilities[:, column[label]]
    return result


# --- Cross-validation -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spread:
    """A figure over the repeats of a cross-validation.

    Attributes:
        mean: over the repeats.
        deviation: standard deviation over the repeats, which other folds bring; it says nothing
            of other photos. NaN for one repeat.
    """

    mean: float
    deviation: float


@dataclass(frozen=True)
class CrossValidation:
    """Figures of heads that have not seen the photos they are held against.

    Attributes:
        folds: parts, each held out once a repeat.
        runs: one evaluation a repeat, each of all N photos.
        figures: accuracy, top_3, log_loss, macro_f1 and calibration_error over the repeats.
        probabilities: float32 [repeats,N,K], out of fold.
    """

    folds: int
    runs: tuple[Evaluation, ...]
    figures: dict[str, Spread]
    probabilities: Floats = field(compare=False, repr=False)

    @property
    def accuracy(self) -> Proportion:
        """The mean over the repeats. Its interval is for N photos: repeats bring no new ones."""
        return _mean_proportion([run.accuracy for run in self.runs])

    @property
    def top_3(self) -> Proportion:
        """As accuracy."""
        return _mean_proportion([run.top_3 for run in self.runs])

    @property
    def log_loss(self) -> float:
        """The mean over the repeats."""
        return self.figures["log_loss"].mean

    @property
    def recall(self) -> dict[str, Proportion]:
        """For each label the mean over the repeats."""
        return {label: _mean_proportion([run.recall[label] for run in self.runs]) for label in self.labels}

    @property
    def labels(self) -> tuple[str, ...]:
        """The K labels."""
        return self.runs[0].labels

    def record(self) -> dict[str, Any]:
        """For hubhead.json: the means, and the first repeat in full."""
        return dict(
            _finite(
                {
                    "folds": self.folds,
                    "repeats": len(self.runs),
                    "accuracy": asdict(self.accuracy),
                    "top_3": asdict(self.top_3),
                    "log_loss": self.log_loss,
                    "recall": {label: asdict(share) for label, share in self.recall.items()},
                    "figures": {name: asdict(spread) for name, spread in self.figures.items()},
                    "first": self.runs[0].record(),
                }
            )
        )


def cross_validate(
    embeddings: Floats,
    targets: Ints,
    labels: Sequence[str],
    *,
    folds: int = head.FOLDS,
    repeats: int = 1,
    seed: int = 0,
) -> CrossValidation:
    """Fit a head on all folds but one, hold it against that one, and so on for each, several times.

    C and the temperatures are chosen inside the training folds, by head.fit, so nothing of a photo
    is known to the head that it is held against.

    Args:
        embeddings: float32 [N,D].
        targets: int64 [N].
        labels: K.
        folds: 2 or more.
        repeats: each with other folds.
        seed: of the folds.

    Raises:
        InputError: a label has a single photo, or there are fewer than two folds or no repeats.
    """
    if folds < 2 or repeats < 1:
        raise InputError(
            f"{folds} folds and {repeats} repeats are no cross-validation.",
            remedy="Give 2 folds or more and 1 repeat or more.",
        )
    counts = np.bincount(targets, minlength=len(labels))
    if counts.min() < 2:
        raise InputError(
            f"The label {labels[int(counts.argmin())]!r} has {counts.min()} photo(s), so a head would have "
            f"to know it from none.",
            remedy="Give each label two photos or more.",
        )
    runs = np.zeros((repeats, len(targets), len(labels)), np.float32)
    for repeat in range(repeats):
        for fitted, held in head.stratified_folds(targets, folds, seed + repeat):
            model, _ = head.fit(embeddings[fitted], targets[fitted], len(labels), seed=seed + repeat)
            runs[repeat, held] = model.probabilities(embeddings[held])
    evaluations = tuple(evaluate(run, targets, labels) for run in runs)
    values = {
        "accuracy": [run.accuracy.value for run in evaluations],
        "top_3": [run.top_3.value for run in evaluations],
        "log_loss": [run.log_loss for run in evaluations],
        "macro_f1": [run.macro.f1.value for run in evaluations],
        "calibration_error": [run.calibration.error for run in evaluations if run.calibration],
    }
    return CrossValidation(
        folds, evaluations, {name: _spread(figures) for name, figures in values.items()}, runs
    )


def _spread(values: Sequence[float]) -> Spread:
    return Spread(float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else math.nan)


def _mean_proportion(shares: Sequence[Proportion]) -> Proportion:
    """The mean of shares of the same n photos, with the interval of the nearest whole number of photos."""
    n = shares[0].n
    return proportion(round(sum(share.value * n for share in shares) / len(shares)) if n else 0, n)
