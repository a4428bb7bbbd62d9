"""Open-set evaluation of the novelty score: how many photos of labels hidden from training are rejected.

Photos of a hidden label are what the model was not trained on, so how many of them are rejected
measures `trainer.evaluation.novelty` without any photos from elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from serving.errors import InputError
from trainer import heads
from trainer.evaluation.metrics import Estimate, Proportion, bootstrap_mean_interval, proportion
from trainer.evaluation.novelty import Novelty
from trainer.heads import Floats, Ints

Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class RejectionRate:
    """Rejection of unseen photos at one threshold.

    Attributes:
        wanted: fraction of known photos that the threshold was chosen to keep.
        kept: fraction of unseen photos of known labels that are accepted.
        refused: fraction of photos of hidden labels that are rejected.
        by_label: for each label, the fraction of its photos rejected where it was hidden.
    """

    wanted: float
    kept: Proportion
    refused: Proportion
    by_label: dict[str, float]


@dataclass(frozen=True)
class OpenSetResult:
    """How well photos of hidden labels are separated from those of known labels.

    Attributes:
        auroc: probability that a hidden photo's score exceeds a known one's: mean over the draws, with
            a bootstrap interval over them.
        rates: one for each fraction kept, over all draws; n is the number of distinct photos.
    """

    auroc: Estimate
    rates: tuple[RejectionRate, ...]

    def __str__(self) -> str:
        rates = (f"{rate.refused.value:.1%} rejected at {rate.kept.value:.1%} kept" for rate in self.rates)
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
) -> OpenSetResult:
    """Hide labels, fit everything on the rest, and count how many unseen photos are rejected.

    Each draw hides some labels, every label about as often, and one fold of the photos of the rest.
    Head, novelty score and threshold see neither.

    Args:
        embeddings: float32 [N,D].
        targets: int64 [N], classes.
        labels: K label names.
        hidden: number of labels to hide at a time; two must be left.
        draws: number of draws; each fits a head and its novelty score.
        shares: fractions of known photos to keep.
        seed: seed of the draws and folds.

    Raises:
        InputError: fewer than two labels would be left, or a fraction is out of range.
    """
    if not 0 < hidden <= len(labels) - 2:
        raise InputError(
            f"{hidden} of {len(labels)} labels cannot be hidden.", remedy="Hide one or more, and leave two."
        )
    areas, accepted, rejected, shown = [], [], [], []
    for draw, unknown in enumerate(draw_hidden_classes(len(labels), hidden, draws, seed)):
        is_hidden = np.isin(targets, unknown)
        rows = np.flatnonzero(~is_hidden)
        # Known classes are renumbered without gaps, as the head needs them.
        names, known = np.unique(targets[rows], return_inverse=True)
        folds = list(heads.stratified_folds(known, heads.FOLDS, seed + draw))
        rest, held = folds[draw % len(folds)]
        seen = embeddings[rows[rest]], known[rest]
        model, selection = heads.fit(*seen, len(names), seed=seed)
        novelty = Novelty.fit(model, selection, *seen, seed=seed)
        known_scores = novelty.score(embeddings[rows[held]])
        unknown_scores = novelty.score(embeddings[is_hidden])
        areas.append(auroc(known_scores, unknown_scores))
        thresholds = np.array([[novelty.with_kept(share).threshold] for share in shares])
        accepted.append(known_scores <= thresholds)
        rejected.append(unknown_scores > thresholds)
        shown.append(targets[is_hidden])
    of_shares = zip(shares, np.hstack(accepted), np.hstack(rejected), strict=True)
    return OpenSetResult(
        Estimate(float(np.mean(areas)), *bootstrap_mean_interval(np.array(areas))),
        tuple(_measure_rate(*of_share, np.concatenate(shown), targets, labels) for of_share in of_shares),
    )


def auroc(known: Floats, unknown: Floats) -> float:
    """Return the area under the ROC curve: how often an unknown score [M] exceeds a known one [N].

    A tie counts as half.
    """
    ordered = np.sort(known)
    below = np.searchsorted(ordered, unknown, side="left")
    not_above = np.searchsorted(ordered, unknown, side="right")
    return float((below + not_above).mean() / (2 * len(known)))


def draw_hidden_classes(classes: int, size: int, draws: int, seed: int) -> Iterator[Ints]:
    """Yield `size` distinct classes for each draw; over the draws every class is hidden about as often."""
    random = np.random.default_rng(seed)
    times = np.zeros(classes)
    for _ in range(draws):
        # The least often hidden ones come first; the random part is below 1, so it only breaks ties.
        chosen = np.argsort(times + random.random(classes) / 2)[:size]
        times[chosen] += 1
        yield np.sort(chosen)


def _measure_rate(
    wanted: float, accepted: Bools, rejected: Bools, hidden: Ints, targets: Ints, labels: Sequence[str]
) -> RejectionRate:
    """Return the rates over all draws.

    Args:
        wanted: fraction of known photos to keep.
        accepted: bool [n], True for each held-out known photo that is accepted.
        rejected: bool [m], True for each photo of a hidden label that is rejected.
        hidden: int64 [m], classes of these.
        targets: int64 [N], classes of all photos.
        labels: K label names.
    """
    times = np.bincount(hidden, minlength=len(labels))
    counts = np.bincount(hidden, rejected, minlength=len(labels))
    return RejectionRate(
        wanted,
        _scale_to_photos(float(accepted.mean()), min(len(accepted), len(targets))),
        _scale_to_photos(float(rejected.mean()), int(np.isin(targets, hidden).sum())),
        {label: float(counts[own] / times[own]) for own, label in enumerate(labels) if times[own]},
    )


def _scale_to_photos(value: float, n: int) -> Proportion:
    """Return a mean over draws with the interval of `n` distinct photos, as repeated draws add none."""
    return replace(proportion(round(value * n), n), value=value)
