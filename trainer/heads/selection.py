"""Selection of the regularisation strength and the shrinkage by held-out log-loss.

Every candidate is fitted on the training part of each fold and evaluated on the photos held out. The
logits of all folds are put together and calibrated, and the candidate with the lowest log-loss wins.
Candidates are tried in ascending order, since each descent begins at the previous minimum.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from serving.bundle.sections import HeadRecord
from trainer.heads.calibration import Mixture, fit_mixture
from trainer.heads.fitter import Fitter
from trainer.heads.head import Floats, Ints, Linear
from trainer.heads.linear import Moments
from trainer.heads.settings import HeadSettings, Selection

STRENGTHS = (3.0, 10.0, 30.0, 100.0)
"""Candidates for C, the weight of the summed loss relative to half the squared weights.

Features of length one need far larger values than standardised ones do; on the sample photos the
minimum lies between 10 and 30. If the best candidate is at the edge, the next of STRENGTH_LADDER is tried.
"""

STRENGTH_LADDER = (0.1, 0.3, 1.0, *STRENGTHS, 300.0, 1000.0)

SHRINKAGES = (0.5, 0.2, 0.05, 0.01)
"""Candidates for the discriminant's shrinkage on many photos; on few photos it is SHRINKAGE."""

FOLDS = 5

_MIN_GAIN = 1e-3
"""Decrease of the log-loss below which the search beyond the first candidates stops."""


@dataclass(frozen=True)
class Fold:
    """Photos held out, and the fitter for the other photos.

    Attributes:
        fitter: fitter on the training part.
        held: features of the photos held out, float32 [n,D].
        places: rows of these photos among all photos held out, int64 [n].
    """

    fitter: Fitter
    held: Floats
    places: Ints


@dataclass(frozen=True)
class BestStrength:
    """Result of the selection of a strength.

    Attributes:
        strength: best C or scale.
        linears: classifiers of each fold at this strength.
        mixture: calibrated mixture of their held-out logits.
        losses: candidate -> held-out log-loss.
    """

    strength: float
    linears: list[list[Linear]]
    mixture: Mixture
    losses: dict[float, float]


def select_strength(folds: Sequence[Fold], targets: Ints, weights: Floats) -> BestStrength:
    """Return the C with the lowest held-out log-loss.

    Args:
        folds: folds that together hold out every one of the photos of `targets` once.
        targets: labels of the photos held out, int64 [N].
        weights: their weights in the log-loss, float32 [N].
    """
    tried: dict[float, tuple[list[list[Linear]], Mixture]] = {}

    def evaluate(strength: float) -> None:
        linears = [fold.fitter.fit(strength) for fold in folds]
        # One array of logits per classifier of the head, filled fold by fold.
        logits = [np.empty((len(targets), linears[0][0][1].shape[0]), np.float32) for _ in linears[0]]
        for fold, of_fold in zip(folds, linears, strict=True):
            for whole, found in zip(logits, compute_logits(of_fold, fold.held), strict=True):
                whole[fold.places] = found
        tried[strength] = linears, fit_mixture(logits, targets, weights)

    for strength in STRENGTHS:
        evaluate(strength)
    best = min(tried, key=lambda strength: tried[strength][1].loss)
    # The minimum may lie beyond the candidates: go on along the ladder while the loss decreases.
    step = {STRENGTHS[0]: -1, STRENGTHS[-1]: 1}.get(best, 0)
    beyond = STRENGTH_LADDER[STRENGTH_LADDER.index(best) + step :: step] if step else ()
    for strength in beyond:
        evaluate(strength)
        if tried[strength][1].loss > tried[best][1].loss - _MIN_GAIN:
            break
        best = strength
    linears, mixture = tried[best]
    losses = {strength: tried[strength][1].loss for strength in sorted(tried)}
    return BestStrength(best, linears, mixture, losses)


def select_shrinkage(moments: Moments, held: Floats, targets: Ints, weights: Floats) -> float:
    """Return the discriminant's shrinkage with the lowest held-out log-loss after calibration.

    Args:
        moments: moments of the training part.
        held: features of the photos held out, float32 [N,D].
        targets: their labels, int64 [N].
        weights: their weights in the log-loss, float32 [N].
    """
    losses = [
        fit_mixture(compute_logits([moments.discriminant(shrinkage)], held), targets, weights).loss
        for shrinkage in SHRINKAGES
    ]
    return SHRINKAGES[int(np.argmin(losses))]


def stratified_folds(targets: Ints, folds: int, seed: int) -> Iterator[tuple[Ints, Ints]]:
    """Yield (rows to fit on, rows held out) of each fold, with each label spread evenly over the folds."""
    random = np.random.default_rng(seed)
    fold_of = np.empty(len(targets), np.int64)
    # The offset continues from label to label, so that the folds have equal sizes too.
    offset = 0
    for label in np.unique(targets):
        rows = random.permutation(np.flatnonzero(targets == label))
        fold_of[rows] = (np.arange(len(rows)) + offset) % folds
        offset += len(rows)
    for fold in range(folds):
        yield np.flatnonzero(fold_of != fold), np.flatnonzero(fold_of == fold)


def compute_logits(linears: Sequence[Linear], features: Floats) -> list[Floats]:
    """Return the logits float32 [N,K] of each classifier."""
    return [features @ kernel + bias for kernel, bias in linears]


def record_selection(
    method: str,
    best: BestStrength,
    targets: Ints,
    settings: HeadSettings,
    *,
    shrinkage: float,
    streamed: bool,
) -> Selection:
    """Return the record of a selection: everything that `refit` needs to fit such a head again.

    Args:
        method: "validation" or "cross-validation".
        best: selected strength.
        targets: labels of the photos held out, int64 [N].
        settings: settings of the head.
        shrinkage: selected shrinkage.
        streamed: true if the features did not fit in memory.
    """
    chosen: HeadRecord = {
        "kind": settings.kind,
        "class_weight": settings.class_weight,
        "strength": best.strength,
        "shares": [float(weight) for weight in best.mixture.weights],
        "temperature": best.mixture.temperature,
        "held_out": len(targets),
        "streamed": streamed,
        "shrinkage": shrinkage,
    }
    return Selection(method, best.strength, best.losses, best.mixture.probabilities, targets, dict(chosen))
