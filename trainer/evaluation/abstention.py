"""When to answer "none of these": the best probability is too low, or the photo is unlike all known ones.

The two ask different things. `threshold_for_precision` bounds how often an answer is wrong among
photos of the known labels (selective classification: Chow 1970, "On optimum recognition error and
reject tradeoff"; Geifman and El-Yaniv 2017). `Novelty` refuses photos of something else, which no
precision on known photos says anything of. `leave_labels_out` measures it: labels are hidden
from training, their photos then are what the model was not trained on.

Of the scores tried on the sample photos, hiding 3 (2) of the 10 labels at a time in 20 draws each,
known photos out of fold; the shares are those of hidden photos refused:

| score | AUROC | at 95 % kept | at 90 % kept |
|---|---|---|---|
| best probability (Hendrycks and Gimpel 2017) | .73 (.73) | 16 % (16 %) | 28 % (27 %) |
| energy: logsumexp of the logits (Liu et al. 2020) | .77 (.76) | 21 % (21 %) | 35 % (34 %) |
| largest logit (Hendrycks et al. 2022) | .76 (.75) | 19 % (19 %) | 31 % (32 %) |
| Mahalanobis of features, shrunken covariance (Lee et al. 2018) | .75 (.74) | 29 % (28 %) | 38 % (36 %) |
| the same on the discriminant's K-1 directions | .69 (.70) | 11 % (10 %) | 23 % (22 %) |
| relative Mahalanobis of features (Ren et al. 2021) | .75 (.75) | 21 % (22 %) | 35 % (33 %) |
| 10 nearest neighbours of features (Sun et al. 2022) | .74 (.73) | 28 % (28 %) | 38 % (36 %) |
| residual of features outside 32 principal directions | .74 (.73) | 31 % (30 %) | 38 % (37 %) |
| energy and Mahalanobis of features | .78 (.77) | 29 % (28 %) | 41 % (40 %) |
| energy and residual of features | .78 (.77) | 30 % (30 %) | 42 % (40 %) |
| energy and Mahalanobis of embeddings of length one | .79 (.78) | 28 % (29 %) | 41 % (40 %) |
| energy and 10 nearest neighbours of the same | .79 (.78) | 25 % (26 %) | 39 % (40 %) |
| energy and residual of the same: **taken** | .79 (.78) | 29 % (29 %) | 41 % (41 %) |

The energy sees photos that excite no label, a distance those that excite one and lie elsewhere;
their sum beats each. Which distance is taken makes no difference among foods, but it does for
pictures of nothing at all: grey, white, black and noise pass by the features, which are relative
to the known photos' mean and deviation, and not by the embeddings of length one. The residual is
the distance that costs least in a graph. The sum is that of ViM (Wang et al. 2022, "ViM:
Out-Of-Distribution with Virtual-logit Matching"); here both terms are in units of their standard
deviation over known photos out of fold, so that nothing is tuned on unknown ones.

The hidden labels are foods as the known ones are, the hardest kind of unknown photo, and a score
of this kind tells them apart about as well as the head tells the known ones (Vaze et al. 2022,
"Open-Set Recognition: a Good Closed-Set Classifier is All You Need?").
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.errors import InputError
from trainer import heads as head
from trainer.evaluation.metrics import Doubles, Estimate, Proportion, mean_interval, proportion
from trainer.heads import Blocks, Floats, Head, HeadSettings, Ints, Selection, Vectors

Bools = NDArray[np.bool_]

CONFIDENCE = 0.95
"""Of the one-sided lower bound that a precision is held to."""

DIRECTIONS = 32
"""Principal directions of the known photos: 16 see a little less on the sample photos, 64 nothing more."""

MAX_DIRECTIONS = 256
"""With many labels there are as many directions as labels, since their means lie apart; up to this."""

FOLDS = 10
"""Parts of the known photos, to place the threshold by.

A score fitted on fewer photos finds an unseen one more novel. On the sample photos a threshold that
is to keep 95 % then keeps 97 % with 5 folds, 96 % with 10 and 95 % with 20.
"""

KEPT = 0.95
"""Share of known photos that the novelty score lets pass."""

ENOUGH_HELD_OUT = 2000
"""Known photos out of fold that place a threshold, at 95 % kept to within a percent; then folds end."""


@dataclass(frozen=True)
class Threshold:
    """A best probability below which the model says nothing.

    Attributes:
        value: answer where the best probability is at least this; 0 answers always.
        wanted: the precision asked for.
        bound: the one-sided 95 % lower confidence bound (Clopper and Pearson 1934) of the precision.
        precision: of the answers on the held-out photos, with the two-sided interval.
        coverage: the share of the held-out photos that are answered.
    """

    value: float
    wanted: float
    bound: float
    precision: Proportion
    coverage: Proportion

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.value:.3f}: answers {self.coverage}, right {self.precision}"


def threshold_for_precision(
    probabilities: Floats, targets: Ints, precision: float, *, point_estimate: bool = False
) -> Threshold:
    """The lowest threshold at which the answers to held-out photos are right as often as stated.

    By default the lower confidence bound of the precision must reach it, so that on new photos of
    the same kind it is missed in about one case of twenty (measured in tests/test_abstain.py:
    taking the lowest of all thresholds that pass costs nothing noticeable, as they pass or fail
    together). With `point_estimate` the share counted must reach it, and new photos miss it in
    about every second case.

    The value lies midway between the last probability answered and the next, so that float
    arithmetic that differs in the last bits decides alike.

    Args:
        probabilities: float32 [N,K], calibrated, of photos that the head has not seen
            (head.Selection, or CrossValidation of trainer.evaluation.cross_validation).
        targets: int64 [N].
        precision: above 0, at most 1.
        point_estimate: take the share instead of its bound.

    Raises:
        InputError: the precision is no share, there are no photos, or no threshold reaches it.
    """
    from scipy.special import betaincinv

    if not 0 < precision <= 1:
        raise InputError(f"A precision of {precision:g} is no share.", remedy="Give one between 0 and 1.")
    count = len(targets)
    if not count:
        raise InputError(
            "A threshold cannot be chosen without held-out photos.",
            remedy="Give photos the head has not seen.",
        )
    best = probabilities.max(axis=1)
    order = np.argsort(-best, kind="stable")
    sure = best[order]
    right = np.cumsum(probabilities.argmax(axis=1)[order] == targets[order])
    answered = np.arange(1, count + 1)
    bounds = np.where(right > 0, betaincinv(np.maximum(right, 1), answered - right + 1, 1 - CONFIDENCE), 0.0)
    reached = (right / answered if point_estimate else bounds) >= precision
    last = np.append(sure[1:] < sure[:-1], True)  # equal probabilities are answered together
    passing = np.flatnonzero(reached & last)
    if not len(passing):
        raise InputError(
            _unreached(precision, right / answered, bounds, last, point_estimate), remedy=_REMEDY
        )
    place = int(passing[-1])
    return Threshold(
        value=_between(sure, place),
        wanted=precision,
        bound=float(bounds[place]),
        precision=proportion(int(right[place]), place + 1),
        coverage=proportion(place + 1, count),
    )


_REMEDY = "Ask for a lower precision, or give more photos of each label."


def _unreached(precision: float, shares: Doubles, bounds: Doubles, last: Bools, point_estimate: bool) -> str:
    figures = np.where(last, shares if point_estimate else bounds, 0.0)
    place = int(figures.argmax())
    kind = "share of right answers" if point_estimate else "95 % lower bound of the precision"
    return (
        f"No threshold reaches a precision of {precision:.1%} on {len(shares)} held-out photos: the highest "
        f"{kind} is {figures[place]:.1%}, where {place + 1} are answered."
    )


def _between(descending: Floats, place: int) -> float:
    """A float32 that `place` and all before it reach and what follows does not; 0 where nothing follows."""
    if place + 1 == len(descending):
        return 0.0
    here, next_one = descending[place], descending[place + 1]
    middle = np.float32((float(here) + float(next_one)) / 2)
    return float(middle if middle > next_one else here)


# --- Novelty ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Novelty:
    """How unlike the known photos a photo is, from its embedding.

    With e the embedding float32 [N,D] and the head's own mean, scale, kernel, bias and temperature:

        features = l2_normalize((e - mean) * scale)                                      # [N,D]
        energy   = logsumexp((features @ kernel + bias) / temperature, axis=1)           # [N]
                   # with a hidden layer its part of the logits too (trainer.heads.Head)
        off      = l2_normalize(e) - centre                                              # [N,D]
        residual = sqrt(max(sum(off**2, axis=1) - sum((off @ directions)**2, axis=1), 0))
        score    = residual_weight * residual - energy_weight * energy                   # [N]

    and the photo is refused where score > threshold. The logits are those that the head computes
    anyway, so the score costs one product with a matrix [D,R].

    Attributes:
        head: its scaling, kernel, bias and temperature are taken.
        centre: float32 [D], mean of the known photos' embeddings of length one.
        directions: float32 [D,R], their principal directions, orthonormal.
        residual_weight, energy_weight: one over the standard deviation of each, over known photos
            out of fold.
        threshold: the highest score that passes.
        known: float32 [M], ascending, scores of known photos out of fold, which `at` takes the
            threshold from.
    """

    head: Head
    centre: Floats
    directions: Floats
    residual_weight: float
    energy_weight: float
    threshold: float
    known: Floats = field(repr=False)

    @classmethod
    def fit(
        cls,
        fitted: Head,
        selection: Selection,
        embeddings: Vectors,
        targets: Ints,
        *,
        rows: Ints | None = None,
        kept: float = KEPT,
        settings: HeadSettings | None = None,
        seed: int = 0,
    ) -> Novelty:
        """Fit on the photos that the head was fitted on; weights and threshold come out of fold.

        For each fold a head with the same settings is fitted on the others, since a head is surer
        of the photos it has seen. Folds end when ENOUGH_HELD_OUT photos have been held out. Photos are
        gone through in blocks, so that they need not fit in memory.

        Args:
            fitted: the head, of all these photos.
            selection: how its settings were chosen.
            embeddings: float32 or float16 [N,D], in memory or mapped from a file.
            targets: int64 [N].
            rows: int64 [n], the photos that the head was fitted on; None for all.
            kept: the share of known photos that pass, above 0, at most 1.
            settings: of the head; memory and directory are taken from them.
            seed: of the folds.

        Raises:
            InputError: `kept` is no share.
        """
        check_share(kept)
        rows = np.arange(len(targets)) if rows is None else rows
        classes = len(fitted.bias)

        def blocks(chosen: Ints) -> Blocks:
            return Blocks.of(embeddings, targets, chosen=rows[chosen])

        with head.one_thread():
            parts = []
            for rest, held in _folds(targets[rows], seed):
                model = head.refit(blocks(rest), classes, selection, settings=settings)
                parts.append(_terms(model, *_principal(blocks(rest), classes), blocks(held)))
            centre, directions = _principal(blocks(np.arange(len(rows))), classes)
        residual, energy = np.concatenate(parts, axis=1)
        weights = _one_over_deviation(residual), _one_over_deviation(energy)
        known = np.sort(np.float32(weights[0]) * residual - np.float32(weights[1]) * energy)
        return cls(fitted, centre, directions, *weights, math.inf, known).at(kept)

    def at(self, kept: float) -> Novelty:
        """The same with the lowest threshold that lets this share of the known photos pass.

        Raises:
            InputError: `kept` is no share.
        """
        check_share(kept)
        place = math.ceil(kept * len(self.known) - 1e-9) - 1
        return replace(self, threshold=float(self.known[place]))

    @property
    def kept(self) -> Proportion:
        """The share of known photos out of fold that pass."""
        return proportion(int((self.known <= self.threshold).sum()), len(self.known))

    def score(self, embeddings: Vectors) -> Floats:
        """float32 [N] of embeddings float32 or float16 [N,D]; the higher, the less like the known photos."""
        blocks = Blocks.of(embeddings, np.zeros(len(embeddings), np.int64))
        residual, energy = _terms(self.head, self.centre, self.directions, blocks)
        return np.asarray(
            np.float32(self.residual_weight) * residual - np.float32(self.energy_weight) * energy, np.float32
        )

    def refused(self, embeddings: Vectors) -> Bools:
        """bool [N]: which photos are none of the known labels."""
        return self.score(embeddings) > np.float32(self.threshold)


def check_share(kept: float) -> None:
    """See that a share of photos to keep is one.

    Raises:
        InputError: it is not.
    """
    if not 0 < kept <= 1:
        raise InputError(f"{kept:g} is no share of photos to keep.", remedy="Give one such as 0.95.")


def _folds(targets: Ints, seed: int) -> Iterator[tuple[Ints, Ints]]:
    """Folds of the known photos, until enough of them have been held out."""
    held_out = 0
    for rest, held in head.stratified_folds(targets, FOLDS, seed):
        if held_out >= ENOUGH_HELD_OUT:
            return
        held_out += len(held)
        yield rest, held


def _terms(model: Head, centre: Floats, directions: Floats, embeddings: Blocks) -> Floats:
    """Residual and energy, float32 [2,N]."""

    def work(rows: Floats, _: Ints) -> Floats:
        logits = model.logits(rows)
        highest = logits.max(axis=1)
        energy = highest + np.log(np.exp(logits - highest[:, None]).sum(axis=1))
        off = _of_length_one(rows) - centre
        outside = (off**2).sum(axis=1) - ((off @ directions) ** 2).sum(axis=1)
        return np.stack([np.sqrt(np.maximum(outside, 0)), energy]).astype(np.float32)

    return np.concatenate([np.zeros((2, 0), np.float32), *embeddings.each(work)], axis=1)


def _of_length_one(embeddings: Floats) -> Floats:
    """Rows float32 [N,D] of length one; a row of zeros stays as it is."""
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    return np.asarray(embeddings / np.maximum(lengths, 1e-12), np.float32)


def _principal(embeddings: Blocks, classes: int) -> tuple[Floats, Floats]:
    """Mean [D] and principal directions [D,R] of embeddings, made of length one.

    R is DIRECTIONS or the number of labels, but at most MAX_DIRECTIONS, a quarter of the photos,
    which are to say something of the directions, and half of the dimensions, so that something is
    left outside.
    """
    from scipy.linalg import eigh

    count, dimension = embeddings.count, embeddings.dimension
    rank = max(1, min(max(DIRECTIONS, classes), MAX_DIRECTIONS, count // 4, dimension // 2))
    if count < dimension:
        points = _of_length_one(np.asarray(embeddings.gather()[0], np.float32))
        centre = points.mean(axis=0, dtype=np.float64).astype(np.float32)
        off = points - centre
        gram = (off @ off.T).astype(np.float64)
        _, vectors = eigh(gram, subset_by_index=(count - rank, count - 1))
        directions, _ = np.linalg.qr(off.T.astype(np.float64) @ vectors)
        return centre, np.ascontiguousarray(directions, np.float32)

    def work(rows: Floats, _: Ints) -> tuple[Doubles, Floats]:
        points = _of_length_one(rows)
        return points.sum(axis=0, dtype=np.float64), points.T @ points

    total, products = np.zeros(dimension), np.zeros((dimension, dimension))
    for of_block, squares in embeddings.each(work):
        total += of_block
        products += squares
    mean = total / count
    spread = products - count * np.outer(mean, mean)
    _, directions = eigh(spread, subset_by_index=(dimension - rank, dimension - 1))
    return mean.astype(np.float32), np.ascontiguousarray(directions, np.float32)


def _one_over_deviation(values: Floats) -> float:
    """0 where the values are all the same, since then they say nothing."""
    deviation = float(values.std(dtype=np.float64))
    return float(np.float32(1 / deviation)) if deviation > 1e-6 else 0.0


# --- What it refuses, measured ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Rate:
    """What became of unseen photos at one threshold.

    Attributes:
        wanted: the share of known photos that the threshold was chosen to keep.
        kept: the share of unseen photos of known labels that pass.
        refused: the share of photos of hidden labels that are refused.
        by_label: for each label, the share of its photos refused where it was hidden.
    """

    wanted: float
    kept: Proportion
    refused: Proportion
    by_label: dict[str, float]


@dataclass(frozen=True)
class Refusals:
    """How well photos of labels that were not trained on are told from others.

    Attributes:
        hidden: labels hidden at a time.
        draws: how often.
        auroc: how often a hidden photo's score exceeds a known one's: mean over the draws, with
            the interval that their spread gives.
        rates: at each share kept, over all draws; n is that of distinct photos.
    """

    hidden: int
    draws: int
    auroc: Estimate
    rates: tuple[Rate, ...]

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def __str__(self) -> str:
        rates = (
            f"{rate.refused.value:.1%} refused where {rate.kept.value:.1%} are kept" for rate in self.rates
        )
        return f"AUROC {self.auroc.value:.3f}, " + ", ".join(rates)


def leave_labels_out(
    embeddings: Floats,
    targets: Ints,
    labels: Sequence[str],
    *,
    hidden: int = 3,
    draws: int = 10,
    shares: Sequence[float] = (0.99, 0.95, 0.9, 0.8),
    seed: int = 0,
) -> Refusals:
    """Hide labels, fit everything on the rest, and count what is refused of unseen photos.

    Each draw hides some labels, every label about as often, and one fold of the rest's photos.
    Head, novelty score and threshold see neither.

    Args:
        embeddings: float32 [N,D].
        targets: int64 [N].
        labels: K.
        hidden: labels hidden at a time; two must be left.
        draws: how often. Each fits a head and its novelty score.
        shares: of known photos to keep.
        seed: of the draws and folds.

    Raises:
        InputError: fewer than two labels would be left, or a share is none.
    """
    if not 0 < hidden <= len(labels) - 2:
        raise InputError(
            f"{hidden} of {len(labels)} labels cannot be hidden.", remedy="Hide one or more, and leave two."
        )
    for share in shares:
        check_share(share)
    areas = []
    counts = [_Counts(len(labels)) for _ in shares]
    for draw, unknown in enumerate(_hidden(len(labels), hidden, draws, seed)):
        is_hidden = np.isin(targets, unknown)
        rows = np.flatnonzero(~is_hidden)
        names, known = np.unique(targets[rows], return_inverse=True)
        folds = list(head.stratified_folds(known, head.FOLDS, seed + draw))
        rest, held = folds[draw % len(folds)]
        seen = embeddings[rows[rest]], known[rest]
        model, selection = head.fit(*seen, len(names), seed=seed)
        novelty = Novelty.fit(model, selection, *seen, seed=seed)
        known_scores = novelty.score(embeddings[rows[held]])
        unknown_scores = novelty.score(embeddings[is_hidden])
        areas.append(auroc(known_scores, unknown_scores))
        for share, count in zip(shares, counts, strict=True):
            threshold = novelty.at(share).threshold
            count.add(known_scores <= threshold, unknown_scores > threshold, targets[is_hidden])
    return Refusals(
        hidden,
        draws,
        Estimate(float(np.mean(areas)), *mean_interval(np.array(areas))),
        tuple(count.rate(share, targets, labels) for share, count in zip(shares, counts, strict=True)),
    )


def auroc(known: Floats, unknown: Floats) -> float:
    """How often a score of the unknown [M] exceeds one of the known [N]; a tie is half."""
    ordered = np.sort(known)
    below = np.searchsorted(ordered, unknown, side="left")
    not_above = np.searchsorted(ordered, unknown, side="right")
    return float((below + not_above).mean() / (2 * len(known)))


def _hidden(classes: int, size: int, draws: int, seed: int) -> Iterator[Ints]:
    """Classes to hide in each draw: different ones, every class about as often as any other."""
    random = np.random.default_rng(seed)
    times = np.zeros(classes)
    for _ in range(draws):
        chosen = np.argsort(times + random.random(classes) / 2)[:size]
        times[chosen] += 1
        yield np.sort(chosen)


class _Counts:
    """Photos kept and refused at one threshold, over the draws."""

    def __init__(self, classes: int) -> None:
        self._kept: list[float] = []
        self._held = 0
        self._refused, self._shown = np.zeros(classes), np.zeros(classes)

    def add(self, kept: Bools, refused: Bools, hidden: Ints) -> None:
        self._kept.extend(kept)
        self._refused += np.bincount(hidden, refused, minlength=len(self._refused))
        self._shown += np.bincount(hidden, minlength=len(self._shown))

    def rate(self, wanted: float, targets: Ints, labels: Sequence[str]) -> Rate:
        photos = np.bincount(targets, minlength=len(labels))[self._shown > 0].sum()
        return Rate(
            wanted,
            _share(float(np.mean(self._kept)), min(len(self._kept), len(targets))),
            _share(float(self._refused.sum() / self._shown.sum()), int(photos)),
            {
                label: float(refused / shown)
                for label, refused, shown in zip(labels, self._refused, self._shown, strict=True)
                if shown
            },
        )


def _share(value: float, n: int) -> Proportion:
    """A mean share over draws, with the interval of as many distinct photos."""
    return replace(proportion(round(value * n), n), value=value)
