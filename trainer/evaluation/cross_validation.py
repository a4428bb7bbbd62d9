"""K-fold cross-validation: every photo is evaluated by a head that was fitted without it.

With few photos a test set is imprecise: 45 photos leave an interval of 25 points. Here every photo is
held out once in each repeat. Everything that is chosen (regularisation, temperature, what the settings
leave open) is chosen inside the training folds, so that the estimate is unbiased (Varma and Simon 2006,
"Bias in error estimation when using cross-validation for model selection"). Photos of one group stay in
one fold, since a head that has seen one of them predicts the others too well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from serving.errors import InputError
from trainer import heads
from trainer.evaluation.features import predict_probabilities
from trainer.evaluation.metrics import Evaluation, Proportion, evaluate, nan_to_none, proportion
from trainer.heads import Blocks, Floats, HeadSettings, Ints, Vectors


@dataclass(frozen=True)
class CrossValidationScheme:
    """Folds of a cross-validation.

    Attributes:
        folds: number of folds, 2 or more.
        repeats: number of repeats, 1 or more, each with other folds.
        seed: seed of the folds and of the fits.
    """

    folds: int = heads.FOLDS
    repeats: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.folds < 2 or self.repeats < 1:
            raise InputError(
                f"A cross-validation with {self.folds} folds and {self.repeats} repeats is not possible.",
                remedy="Give 2 folds or more and 1 repeat or more.",
            )


@dataclass(frozen=True)
class RepeatSummary:
    """Mean and spread of a figure over the repeats of a cross-validation.

    Attributes:
        mean: mean over the repeats.
        deviation: standard deviation over the repeats. It is due to other folds, not to other photos;
            NaN for one repeat.
    """

    mean: float
    deviation: float


@dataclass(frozen=True)
class CrossValidation:
    """Metrics of heads on photos that they were not fitted on.

    Attributes:
        folds: number of folds, each held out once in each repeat.
        runs: one evaluation for each repeat, on all N photos.
        figures: accuracy, top_3, log_loss, macro_f1 and calibration_error over the repeats.
        probabilities: float32 [repeats,N,K], out of fold.
    """

    folds: int
    runs: tuple[Evaluation, ...]
    figures: dict[str, RepeatSummary]
    probabilities: Floats = field(compare=False, repr=False)

    @property
    def accuracy(self) -> Proportion:
        """Mean accuracy over the repeats, with the interval of N photos, as repeats add none."""
        return _average_proportions([run.accuracy for run in self.runs])

    @property
    def top_3(self) -> Proportion:
        """Mean top-3 accuracy over the repeats, with the interval of N photos."""
        return _average_proportions([run.top_3 for run in self.runs])

    @property
    def log_loss(self) -> float:
        """Mean log-loss over the repeats."""
        return self.figures["log_loss"].mean

    @property
    def recall(self) -> dict[str, Proportion]:
        """Mean recall over the repeats, by label."""
        labels = self.runs[0].labels
        return {label: _average_proportions([run.recall[label] for run in self.runs]) for label in labels}

    def __str__(self) -> str:
        repeats = f", {len(self.runs)} repeats" if len(self.runs) > 1 else ""
        calibration = self.runs[0].calibration
        return (
            f"{self.folds}-fold cross-validation{repeats}: {self.accuracy}, top 3 {self.top_3.value:.1%}, "
            f"log-loss {self.log_loss:.3f}, calibration error {calibration}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values, as stored in hubhead.json: the means, and the first repeat in full."""
        record = {
            "folds": self.folds,
            "repeats": len(self.runs),
            "accuracy": asdict(self.accuracy),
            "top_3": asdict(self.top_3),
            "log_loss": self.log_loss,
            "recall": {label: asdict(share) for label, share in self.recall.items()},
            "figures": {name: asdict(summary) for name, summary in self.figures.items()},
            "first": self.runs[0].to_dict(),
        }
        return dict(nan_to_none(record))


def cross_validate(
    embeddings: Vectors,
    targets: Ints,
    labels: Sequence[str],
    *,
    scheme: CrossValidationScheme | None = None,
    settings: HeadSettings | None = None,
    views: Sequence[Vectors] = (),
    groups: Ints | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> CrossValidation:
    """Fit a head on all folds but one and evaluate it on that one, for each fold and repeat.

    Each head is fitted as `heads.fit_blocks` fits the final one, with the same settings; what they leave
    open is chosen by the training folds alone.

    Args:
        embeddings: float32 or float16 [N,D].
        targets: int64 [N], classes.
        labels: K label names.
        scheme: folds, repeats and seed; None for the defaults.
        settings: settings of the head.
        views: other embeddings of the same photos, each [N,D]; heads are fitted, not evaluated, on them.
        groups: int64 [N]; photos with the same number stay in one fold. None treats each photo alone.
        progress: called after each fit with the number of fits done and of all fits.

    Raises:
        InputError: the photos of a label all belong to one group.
    """
    scheme = scheme or CrossValidationScheme()
    check_groups(targets, labels, groups)
    runs = np.zeros((scheme.repeats, len(targets), len(labels)), np.float32)
    done = 0
    for repeat in range(scheme.repeats):
        for held in _make_folds(targets, groups, scheme.folds, scheme.seed + repeat):
            rest = np.setdiff1d(np.arange(len(targets)), held)
            model, _ = heads.fit_blocks(
                Blocks.from_array(embeddings, targets, chosen=rest),
                len(labels),
                views=[Blocks.from_array(view, targets, chosen=rest) for view in views],
                settings=settings,
                seed=scheme.seed + repeat,
            )
            runs[repeat, held] = predict_probabilities(model, embeddings, held)
            done += 1
            if progress:
                progress(done, scheme.repeats * scheme.folds)
    evaluations = tuple(evaluate(run, targets, labels) for run in runs)
    return CrossValidation(scheme.folds, evaluations, _summarize_repeats(evaluations), runs)


def _summarize_repeats(evaluations: Sequence[Evaluation]) -> dict[str, RepeatSummary]:
    """Return the mean and the standard deviation of the main metrics over the repeats."""
    values = {
        "accuracy": [run.accuracy.value for run in evaluations],
        "top_3": [run.top_3.value for run in evaluations],
        "log_loss": [run.log_loss for run in evaluations],
        "macro_f1": [run.macro.f1.value for run in evaluations],
        "calibration_error": [run.calibration.error for run in evaluations if run.calibration],
    }
    return {
        name: RepeatSummary(
            float(np.mean(figures)), float(np.std(figures, ddof=1)) if len(figures) > 1 else math.nan
        )
        for name, figures in values.items()
    }


def check_groups(targets: Ints, labels: Sequence[str], groups: Ints | None = None) -> None:
    """Check that each label has photos of two groups, so that every training fold has some of it.

    Args:
        targets: int64 [N], classes.
        labels: K label names.
        groups: int64 [N], as for `cross_validate`.

    Raises:
        InputError: a label has photos of one group alone.
    """
    numbers = np.arange(len(targets)) if groups is None else groups
    pairs = np.unique(np.stack([targets, numbers]), axis=1)
    counts = np.bincount(pairs[0], minlength=len(labels))
    if counts.min() < 2:
        least = int(counts.argmin())
        photos = int((targets == least).sum())
        has = f"{photos} photos, all of one group" if photos > 1 else f"{photos} photo"
        raise InputError(
            f"Label {labels[least]!r} has {has}; in a cross-validation a training fold would contain none.",
            remedy="Give each label photos of two groups or more, or leave --cross_validate out.",
        )


def _make_folds(targets: Ints, groups: Ints | None, folds: int, seed: int) -> list[Ints]:
    """Return the rows of each fold, stratified by label, with the photos of a group in one fold.

    The largest groups are placed first, each into the fold with the fewest photos of its labels; single
    photos come last and even out the sizes.
    """
    if groups is None or len(np.unique(groups)) == len(targets):
        return [held for _, held in heads.stratified_folds(targets, folds, seed)]
    random = np.random.default_rng(seed)
    # `members` holds the rows of each group, in random order.
    order = random.permutation(len(targets))
    _, unit_of, sizes = np.unique(groups[order], return_inverse=True, return_counts=True)
    members = np.split(order[np.argsort(unit_of, kind="stable")], np.cumsum(sizes)[:-1])
    drawn = random.permutation(len(members))
    placed = np.zeros((folds, int(targets.max()) + 1), np.int64)  # photos of each label in each fold
    held: list[list[Ints]] = [[] for _ in range(folds)]
    for unit in sorted(drawn.tolist(), key=lambda unit: -len(members[unit])):
        rows = members[unit]
        classes, counts = np.unique(targets[rows], return_counts=True)
        # Fewest photos of the group's labels first; a tie goes to the smallest fold.
        crowding = placed[:, classes] @ counts
        fold = int(np.lexsort((placed.sum(axis=1), crowding))[0])
        placed[fold, classes] += counts
        held[fold].append(rows)
    return [np.sort(np.concatenate(rows)) if rows else np.empty(0, np.int64) for rows in held]


def _average_proportions(shares: Sequence[Proportion]) -> Proportion:
    """Return the mean of proportions of the same n photos, with the interval of the nearest whole count."""
    n = shares[0].n
    return proportion(round(sum(share.value * n for share in shares) / len(shares)) if n else 0, n)
