"""What a report tells, taken from what a training knows. No photo is read here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from serving.errors import InputError
from trainer.dataset import Example, Subset
from trainer.dataset.near_duplicates import DuplicateGroup, DuplicateReport
from trainer.evaluation.abstention import Threshold, threshold_for_precision
from trainer.evaluation.cross_validation import CrossValidation
from trainer.evaluation.features import HeadPredictions
from trainer.evaluation.metrics import Evaluation
from trainer.evaluation.version_changes import LiveComparison
from trainer.heads import Floats, Ints, Selection

PICTURES = 60
"""Photos shown, so that the page stays below 2 MB; each takes some 12 KB."""

MISCLASSIFIED = 18
UNSURE = 6
CHANGED = 6
"""Photos shown that are newly right or newly wrong, of each."""

GROUPS = 8
"""Of duplicates, contradictions first; two photos of each are shown."""

PRECISIONS = (0.8, 0.9, 0.95, 0.99)
"""The precisions that a threshold is told for."""

_POINTS = 120
"""Of the curve of coverage and precision."""


@dataclass(frozen=True)
class Answers:
    """What was answered for one photo.

    Attributes:
        uri: its path.
        label: its own.
        predicted: the best label.
        score: the best label's probability.
    """

    uri: str
    label: str
    predicted: str
    score: float


@dataclass(frozen=True)
class LabelRow:
    """What is known of one label.

    Attributes:
        label: its name.
        photos: in each set.
        sample: the training photo that the head is surest of.
    """

    label: str
    photos: Mapping[Subset, int]
    sample: str | None


@dataclass(frozen=True)
class Coverage:
    """How often the answers are right where only the surest are given.

    Attributes:
        points: (share answered, share of these that are right), from the surest on.
        thresholds: for each of PRECISIONS the threshold, None where none reaches it.
        photos: held out.
    """

    points: tuple[tuple[float, float], ...]
    thresholds: Mapping[float, Threshold | None]
    photos: int


@dataclass(frozen=True)
class Report:
    """What the page tells.

    Attributes:
        title: the model's name.
        top: the folder of the photos; paths below it are shown relative to it.
        test: on the untouched test photos, None where none were held out.
        held_out: of the cross-validation or the validation photos that chose the settings.
        method: "validation" or "cross-validation".
        strength: the C taken.
        losses: log-loss for each candidate C.
        coverage: of the held-out photos.
        labels: in the order of the model's outputs.
        misclassified: test photos, the surest first.
        unsure: test photos that are right, the least sure first.
        misclassified_count: of all of them.
        left_out: (path, reason).
        duplicates: what is there more than once.
        settings, seconds, versions: of the run.
        created: when, for people.
        comparison: with the live version, None where there is none.
        cross_validation: of K folds, None where none was asked for.
    """

    title: str
    top: str
    test: Evaluation | None
    held_out: Evaluation
    method: str
    strength: float
    losses: Mapping[float, float]
    coverage: Coverage
    labels: tuple[LabelRow, ...]
    misclassified: tuple[Answers, ...]
    unsure: tuple[Answers, ...]
    misclassified_count: int
    left_out: tuple[tuple[str, str], ...]
    duplicates: DuplicateReport
    settings: Mapping[str, str] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    created: str = ""
    comparison: LiveComparison | None = None
    cross_validation: CrossValidation | None = None

    @property
    def by_label(self) -> Evaluation:
        """The evaluation with most photos, which tells most of each label; a K-fold one flatters least."""
        if self.cross_validation:
            return self.cross_validation.runs[0]
        if self.test and self.test.accuracy.n > self.held_out.accuracy.n:
            return self.test
        return self.held_out

    @property
    def judged_by(self) -> str:
        """What the photos of `by_label` are."""
        if self.cross_validation:
            return f"photos of the {self.cross_validation.folds}-fold cross-validation"
        return "test photos" if self.by_label is self.test else "held-out photos"

    @property
    def hardest_first(self) -> tuple[LabelRow, ...]:
        """The labels by rising F1; those that nothing is known of last."""
        f1 = self.by_label.f1
        return tuple(sorted(self.labels, key=lambda row: np.nan_to_num(f1[row.label].value, nan=2.0)))

    @property
    def groups(self) -> tuple[DuplicateGroup, ...]:
        """Photos that are there more than once, those that do most harm first, at most GROUPS."""
        found = self.duplicates
        ordered = (
            *found.label_conflicts,
            *found.across_sets,
            *found.near_label_conflicts,
            *found.near,
            *found.exact,
        )
        return tuple(dict.fromkeys(ordered))[:GROUPS]

    @property
    def pictured(self) -> tuple[str, ...]:
        """The paths of the photos to show, at most PICTURES, the most telling first."""
        wanted = [answer.uri for answer in (*self.misclassified, *self.unsure)]
        if self.comparison:
            for changed in (self.comparison.newly_wrong, self.comparison.newly_right):
                wanted += [change.uri for change in changed[:CHANGED]]
        for group in self.groups:
            wanted += shown_of(group)
        wanted += [row.sample for row in self.hardest_first if row.sample]
        return tuple(dict.fromkeys(wanted))[:PICTURES]


def shown_of(group: DuplicateGroup) -> list[str]:
    """The paths of the photos that stand for a group: one where all have the same bytes, else two.

    Of two, one is held out and one trained on where the group has such.
    """
    first = group.pictures[0]
    if all(picture.similarity == 1 for picture in group.pictures):
        return [first.uri]
    others = [picture for picture in group.pictures[1:] if picture.subset is not first.subset]
    return [first.uri, (others or group.pictures[1:])[0].uri]


def compose(
    title: str,
    labels: Sequence[str],
    examples: Sequence[Example],
    subsets: Sequence[Subset],
    verdicts: HeadPredictions,
    *,
    selection: Selection,
    held_out: Evaluation,
    test: Evaluation | None,
    duplicates: DuplicateReport,
    comparison: LiveComparison | None = None,
    cross_validation: CrossValidation | None = None,
    left_out: Sequence[tuple[str, str]] = (),
    top: str = "",
    settings: Mapping[str, Any] | None = None,
    seconds: Mapping[str, float] | None = None,
    versions: Mapping[str, str] | None = None,
    created: str = "",
) -> Report:
    """Take what is to be told.

    Args:
        title: the model's name.
        labels: K.
        examples: the N distinct photos.
        subsets: N, their sets.
        verdicts: what the head says of them.
        selection: how the head's settings were chosen.
        held_out: on the photos that they were chosen by.
        test: on the test photos, None where there are none.
        duplicates: see trainer.dataset.near_duplicates.
        comparison: with the live version.
        cross_validation: of K folds.
        left_out: (path, reason).
        top: the folder of the photos.
        settings: of the run; nested ones become names with dots.
        seconds: by step.
        versions: by package.
        created: when, for people.
    """
    targets = np.array([example.label for example in examples], np.int64)
    best, score = verdicts.best, verdicts.score
    tested = np.flatnonzero([subset is Subset.TESTING for subset in subsets])
    tested = tested[np.argsort(score[tested], kind="stable")]
    wrong = tested[best[tested] != targets[tested]][::-1]
    right = tested[best[tested] == targets[tested]]

    def answers(rows: Ints) -> tuple[Answers, ...]:
        return tuple(
            Answers(examples[row].uri, labels[targets[row]], labels[best[row]], float(score[row]))
            for row in rows.tolist()
        )

    return Report(
        title=title,
        top=top,
        test=test,
        held_out=held_out,
        method=selection.method,
        strength=selection.strength,
        losses=dict(selection.losses),
        coverage=_coverage(selection.probabilities, selection.targets),
        labels=_label_rows(labels, examples, subsets, verdicts.own),
        misclassified=answers(wrong[:MISCLASSIFIED]),
        unsure=answers(right[:UNSURE]),
        misclassified_count=len(wrong),
        left_out=tuple(left_out),
        duplicates=duplicates,
        settings=dict(_flat(settings or {})),
        seconds=dict(seconds or {}),
        versions=dict(versions or {}),
        created=created,
        comparison=comparison,
        cross_validation=cross_validation,
    )


def _label_rows(
    labels: Sequence[str], examples: Sequence[Example], subsets: Sequence[Subset], own: Floats
) -> tuple[LabelRow, ...]:
    """Each label with its photos, `own` being the probability [N] of each photo's own label."""
    photos: list[Counter[Subset]] = [Counter() for _ in labels]
    samples: dict[int, int] = {}
    for row, (example, subset) in enumerate(zip(examples, subsets, strict=True)):
        photos[example.label][subset] += 1
        if subset is Subset.TRAINING:
            surest = samples.setdefault(example.label, row)
            samples[example.label] = row if own[row] > own[surest] else surest
    return tuple(
        LabelRow(label, photos[index], examples[samples[index]].uri if index in samples else None)
        for index, label in enumerate(labels)
    )


def _coverage(probabilities: Floats, targets: Ints) -> Coverage:
    count = len(targets)
    order = np.argsort(-probabilities.max(axis=1), kind="stable") if count else np.empty(0, np.int64)
    right = np.cumsum(probabilities.argmax(axis=1)[order] == targets[order]) if count else order
    # A share of a handful of photos jumps about and says nothing.
    places = np.unique(np.linspace(min(9, count - 1), count - 1, _POINTS).astype(int)) if count else order
    return Coverage(
        tuple(((place + 1) / count, float(right[place]) / (place + 1)) for place in places.tolist()),
        {wanted: _threshold(probabilities, targets, wanted) for wanted in PRECISIONS},
        count,
    )


def _threshold(probabilities: Floats, targets: Ints, wanted: float) -> Threshold | None:
    try:
        return threshold_for_precision(probabilities, targets, wanted)
    except InputError:
        return None


def _flat(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for name, value in settings.items():
        if isinstance(value, Mapping):
            found += _flat(value, f"{prefix}{name}.")
        elif value is not None:
            found.append((f"{prefix}{name}", str(value)))
    return found
