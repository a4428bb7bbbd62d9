"""Open-set evaluation of the novelty score: how many photos of labels hidden from training are rejected.

Photos of a hidden label are what the model was not trained on, so how many of them are rejected
measures `trainer.evaluation.novelty` without any photos from elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.errors import InputError
from trainer import heads
from trainer.evaluation.metrics import Estimate, Proportion, bootstrap_mean_interval, proportion
from trainer.evaluation.novelty import Novelty, check_kept
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
        hidden: number of labels hidden at a time.
        draws: number of draws.
        auroc: probability that a hidden photo's score exceeds a known one's: mean over the draws, with
            a bootstrap interval over them.
        rates: one for each fraction kept, over all draws; n is the number of distinct photos.
    """

    hidden: int
    draws: int
    auroc: Estimate
    rates: tuple[RejectionRate, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)

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
    for share in shares:
        check_kept(share)
    areas = []
    counters = [_RateCounter(len(labels)) for _ in shares]
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
        for share, counter in zip(shares, counters, strict=True):
            threshold = novelty.with_kept(share).threshold
            counter.add(known_scores <= threshold, unknown_scores > threshold, targets[is_hidden])
    return OpenSetResult(
        hidden,
        draws,
        Estimate(float(np.mean(areas)), *bootstrap_mean_interval(np.array(areas))),
        tuple(counter.rate(share, targets, labels) for share, counter in zip(shares, counters, strict=True)),
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


class _RateCounter:
    """Counts of photos accepted and rejected at one threshold, over the draws."""

    def __init__(self, classes: int) -> None:
        self._kept: list[float] = []
        self._refused, self._shown = np.zeros(classes), np.zeros(classes)

    def add(self, kept: Bools, refused: Bools, hidden: Ints) -> None:
        """Add one draw: `kept` of the held-out known photos, `refused` of photos with classes `hidden`."""
        self._kept.extend(kept)
        self._refused += np.bincount(hidden, refused, minlength=len(self._refused))
        self._shown += np.bincount(hidden, minlength=len(self._shown))

    def rate(self, wanted: float, targets: Ints, labels: Sequence[str]) -> RejectionRate:
        """Return the rates over all draws."""
        photos = np.bincount(targets, minlength=len(labels))[self._shown > 0].sum()
        return RejectionRate(
            wanted,
            _scale_to_photos(float(np.mean(self._kept)), min(len(self._kept), len(targets))),
            _scale_to_photos(float(self._refused.sum() / self._shown.sum()), int(photos)),
            {
                label: float(refused / shown)
                for label, refused, shown in zip(labels, self._refused, self._shown, strict=True)
                if shown
            },
        )


def _scale_to_photos(value: float, n: int) -> Proportion:
    """Return a mean over draws with the interval of `n` distinct photos, as repeated draws add none."""
    return replace(proportion(round(value * n), n), value=value)
