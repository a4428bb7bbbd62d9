"""K-fold cross-validation: figures of all photos, each held against a head that knows nothing of it.

With few photos a test set says little: 45 photos leave an interval of 25 points. Here every photo is
held out once a repeat, and everything that is chosen (regularisation, temperature, what the settings
leave open) is chosen inside the training folds, which gives the honest figure (Varma and Simon 2006,
"Bias in error estimation when using cross-validation for model selection"). Photos that belong
together stay in one fold, since one of them would foretell the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from serving.errors import InputError
from trainer import heads
from trainer.evaluation.features import probabilities_of
from trainer.evaluation.metrics import Evaluation, Proportion, evaluate, finite, proportion
from trainer.heads import Blocks, Floats, HeadSettings, Ints, Vectors


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

    def __str__(self) -> str:
        repeats = f", {len(self.runs)} repeats" if len(self.runs) > 1 else ""
        calibration = self.runs[0].calibration
        return (
            f"{self.folds}-fold cross-validation{repeats}: {self.accuracy}, top 3 {self.top_3.value:.1%}, "
            f"log-loss {self.log_loss:.3f}, calibration error {calibration}"
        )

    def record(self) -> dict[str, Any]:
        """For hubhead.json: the means, and the first repeat in full."""
        return dict(
            finite(
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
    embeddings: Vectors,
    targets: Ints,
    labels: Sequence[str],
    *,
    folds: int = heads.FOLDS,
    repeats: int = 1,
    settings: HeadSettings | None = None,
    views: Sequence[Vectors] = (),
    groups: Ints | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> CrossValidation:
    """Fit a head on all folds but one, hold it against that one, and so on for each, several times.

    Each head is fitted as `head.fit` fits the final one, with the same settings; what they leave open
    it chooses by the training folds alone.

    Args:
        embeddings: float32 or float16 [N,D].
        targets: int64 [N].
        labels: K.
        folds: 2 or more.
        repeats: each with other folds.
        settings: of the head.
        views: other embeddings of the same photos, each [N,D]; heads are fitted on them, not judged.
        groups: int64 [N]; photos of one number stay in one fold. None: each photo is by itself.
        seed: of the folds, and of the fits.
        progress: called after each fit with the fits done and all of them.

    Raises:
        InputError: the photos of a label all belong together, or there are fewer than two folds or no
            repeats.
    """
    if folds < 2 or repeats < 1:
        raise InputError(
            f"{folds} folds and {repeats} repeats are no cross-validation.",
            remedy="Give 2 folds or more and 1 repeat or more.",
        )
    check_groups(targets, labels, groups)
    runs = np.zeros((repeats, len(targets), len(labels)), np.float32)
    done = 0
    for repeat in range(repeats):
        for fold in _folds(targets, groups, folds, seed + repeat):
            held = np.zeros(len(targets), bool)
            held[fold] = True
            rest = np.flatnonzero(~held)
            model, _ = heads.fit_blocks(
                Blocks.of(embeddings, targets, chosen=rest),
                len(labels),
                views=[Blocks.of(view, targets, chosen=rest) for view in views],
                settings=settings,
                seed=seed + repeat,
            )
            runs[repeat, held] = probabilities_of(model, embeddings, np.flatnonzero(held))
            done += 1
            if progress:
                progress(done, repeats * folds)
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


def check_groups(targets: Ints, labels: Sequence[str], groups: Ints | None = None) -> None:
    """Refuse labels of which some fold of training photos would have none.

    Args:
        targets: int64 [N].
        labels: K.
        groups: int64 [N], as for `cross_validate`.

    Raises:
        InputError: with a label and its photos.
    """
    numbers = np.arange(len(targets)) if groups is None else groups
    pairs = np.unique(np.stack([targets, numbers]), axis=1)
    counts = np.bincount(pairs[0], minlength=len(labels))
    if counts.min() < 2:
        least = int(counts.argmin())
        photos = int((targets == least).sum())
        alike = ", which belong together" if photos > 1 else ""
        raise InputError(
            f"The label {labels[least]!r} has {photos} photo(s){alike}, so a head of the cross-validation "
            "would have to know it from none.",
            remedy="Give each label two photos or more that do not belong together.",
        )


def _folds(targets: Ints, groups: Ints | None, folds: int, seed: int) -> list[Ints]:
    """The rows of each fold: every label spread evenly, the photos of a group in one.

    Groups of several photos come first, the largest at the head, each into the fold that has fewest of
    its labels' photos; then single photos fill up what is uneven.
    """
    if groups is None or len(np.unique(groups)) == len(targets):
        return [held for _, held in heads.stratified_folds(targets, folds, seed)]
    random = np.random.default_rng(seed)
    order = random.permutation(len(targets))
    _, unit_of, sizes = np.unique(groups[order], return_inverse=True, return_counts=True)
    members = np.split(order[np.argsort(unit_of, kind="stable")], np.cumsum(sizes)[:-1])
    drawn = random.permutation(len(members))
    placed = np.zeros((folds, int(targets.max()) + 1), np.int64)
    held: list[list[Ints]] = [[] for _ in range(folds)]
    for unit in sorted(drawn.tolist(), key=lambda unit: -len(members[unit])):
        rows = members[unit]
        found, counts = np.unique(targets[rows], return_counts=True)
        crowded = placed[:, found] @ counts
        fold = int(np.lexsort((placed.sum(axis=1), crowded))[0])
        placed[fold, found] += counts
        held[fold].append(rows)
    return [np.sort(np.concatenate(rows)) if rows else np.empty(0, np.int64) for rows in held]


def _spread(values: Sequence[float]) -> Spread:
    return Spread(float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else math.nan)


def _mean_proportion(shares: Sequence[Proportion]) -> Proportion:
    """The mean of shares of the same n photos, with the interval of the nearest whole number of photos."""
    n = shares[0].n
    return proportion(round(sum(share.value * n for share in shares) / len(shares)) if n else 0, n)
