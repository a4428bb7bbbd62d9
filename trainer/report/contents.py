"""Contents of the training report, taken from the results of a training; no photo is read here."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from batch.monitoring.engines import describe_engines
from serving.errors import InputError
from serving.process import get_cpu_model, get_package_versions
from trainer.dataset import Subset
from trainer.dataset.near_duplicates import DuplicateGroup
from trainer.evaluation.abstention import Threshold, threshold_for_precision
from trainer.evaluation.metrics import Evaluation
from trainer.evaluation.suspects import Suspect
from trainer.evaluation.training_record import PhotoPrediction, TrainingData, TrainingRecord
from trainer.export.templates import PACKAGES
from trainer.heads import Floats, Ints

MAX_PICTURES = 60
"""Largest number of thumbnails, so that the page stays below 2 MB; each takes some 12 KB."""

MAX_MISCLASSIFIED = 18
"""Largest number of misclassified photos shown."""

MAX_SUSPECTS = 18
"""Largest number of suspected label errors shown."""

MAX_BATCH = 12
"""Largest number of test photos that are drawn at random."""

MAX_LABEL_ROWS = 30
"""Rows of the table of labels that are shown at first; the others are collapsed."""

MAX_LEAST_CONFIDENT = 6
"""Largest number of lowest-confidence correct predictions shown."""

MAX_CHANGED = 6
"""Largest number of newly right photos shown, and of newly wrong ones."""

MAX_GROUPS = 8
"""Largest number of groups of duplicates shown, each by two photos at most."""

PRECISIONS = (0.8, 0.9, 0.95, 0.99)
"""Precisions for which a threshold is reported."""

_CURVE_POINTS = 120
"""Points of the risk-coverage curve."""


@dataclass(frozen=True)
class LabelRow:
    """A row of the table of labels.

    Attributes:
        label: name of the label.
        photos: number of its photos in each set.
        sample: path of the training photo with the highest probability of the label; None without photos.
    """

    label: str
    photos: Mapping[Subset, int]
    sample: str | None


@dataclass(frozen=True)
class RiskCoverageCurve:
    """Accuracy of the answers if only the most confident ones are given.

    Attributes:
        points: (coverage, accuracy of the answers), in ascending order of coverage.
        thresholds: threshold for each of PRECISIONS, None where no threshold reaches it.
        photos: number of held-out photos.
    """

    points: tuple[tuple[float, float], ...]
    thresholds: Mapping[float, Threshold | None]
    photos: int


@dataclass(frozen=True)
class Report:
    """Contents of the report.

    Attributes:
        record: results of the training. The paths of photos are shown relative to its source.
        risk_coverage: risk-coverage curve of the held-out photos.
        labels: rows of the table of labels, in the order of the model's outputs.
        misclassified: misclassified test photos, the most confident ones first.
        least_confident: correctly predicted test photos, the least confident ones first.
        batch: test photos drawn at random, in random order.
        misclassified_count: number of all misclassified test photos.
        suspects: photos whose labels are suspected, the most suspicious ones first.
        settings, engines, versions: settings, engines with their CPUs, and package versions of the run.
        created: date and time of the run.
    """

    record: TrainingRecord
    risk_coverage: RiskCoverageCurve
    labels: tuple[LabelRow, ...]
    misclassified: tuple[PhotoPrediction, ...]
    least_confident: tuple[PhotoPrediction, ...]
    batch: tuple[PhotoPrediction, ...]
    misclassified_count: int
    suspects: tuple[Suspect, ...]
    settings: Mapping[str, str]
    engines: Mapping[str, str]
    versions: Mapping[str, str]
    created: str

    @property
    def by_label(self) -> Evaluation:
        """Evaluation for the figures by label: the K-fold one if there is one, else that of most photos."""
        test, held_out = self.record.fitted.test, self.record.fitted.held_out
        if self.record.cross_validation:
            return self.record.cross_validation.runs[0]
        return test if test and test.accuracy.n > held_out.accuracy.n else held_out

    @property
    def by_label_photos(self) -> str:
        """Description of the photos of `by_label`."""
        if self.record.cross_validation:
            return f"photos of the {self.record.cross_validation.folds}-fold cross-validation"
        return "test photos" if self.by_label is self.record.fitted.test else "held-out photos"

    @property
    def hardest_first(self) -> tuple[LabelRow, ...]:
        """Rows of the table of labels in ascending order of F1; labels without photos come last."""
        f1 = self.by_label.f1
        return tuple(sorted(self.labels, key=lambda row: np.nan_to_num(f1[row.label].value, nan=2.0)))

    @property
    def duplicate_groups(self) -> tuple[DuplicateGroup, ...]:
        """At most MAX_GROUPS groups of duplicates, the most harmful ones first."""
        found = self.record.data.duplicates
        ordered = (
            *found.label_conflicts,
            *found.across_sets,
            *found.near_label_conflicts,
            *found.near,
            *found.exact,
        )
        return tuple(dict.fromkeys(ordered))[:MAX_GROUPS]

    @property
    def pictured(self) -> tuple[str, ...]:
        """Paths of the photos to show, the most important ones first, at most MAX_PICTURES."""
        wanted = [photo.uri for photo in self.misclassified]
        wanted += [suspect.uri for suspect in self.suspects]
        wanted += [photo.uri for photo in (*self.batch, *self.least_confident)]
        if comparison := self.record.comparison:
            for changed in (comparison.newly_wrong, comparison.newly_right):
                wanted += [change.uri for change in changed[:MAX_CHANGED]]
        for group in self.duplicate_groups:
            wanted += pick_group_uris(group)
        wanted += [row.sample for row in self.hardest_first[:MAX_LABEL_ROWS] if row.sample]
        return tuple(dict.fromkeys(wanted))[:MAX_PICTURES]


def pick_group_uris(group: DuplicateGroup) -> list[str]:
    """Return the paths of the photos that represent a group: one if all have the same bytes, else two.

    Two photos are of different sets if the group has photos of different sets.
    """
    first = group.pictures[0]
    if all(picture.similarity == 1 for picture in group.pictures):
        return [first.uri]
    others = [picture for picture in group.pictures[1:] if picture.subset is not first.subset]
    return [first.uri, (others or group.pictures[1:])[0].uri]


def compose(record: TrainingRecord) -> Report:
    """Compose the contents of a report from the record of a training."""
    selection = record.fitted.selection
    # In ascending order of confidence: the wrong ones are shown from the end, the right ones from the start.
    tested = sorted(record.test_predictions(), key=lambda photo: photo.score)
    wrong = tuple(photo for photo in reversed(tested) if photo.predicted != photo.label)
    right = tuple(photo for photo in tested if photo.predicted == photo.label)
    return Report(
        record,
        risk_coverage=_compute_risk_coverage(selection.probabilities, selection.targets),
        labels=_make_label_rows(record.data, record.fitted.predictions.own),
        misclassified=wrong[:MAX_MISCLASSIFIED],
        least_confident=right[:MAX_LEAST_CONFIDENT],
        batch=_draw_batch(tested),
        misclassified_count=len(wrong),
        suspects=record.suspects.photos[:MAX_SUSPECTS],
        settings=dict(_flatten_settings(record.settings)),
        engines=describe_engines(get_cpu_model(), record.engines),
        versions=get_package_versions(PACKAGES),
        created=time.strftime("%d %B %Y, %H:%M UTC", time.gmtime()),
    )


def _draw_batch(tested: Sequence[PhotoPrediction]) -> tuple[PhotoPrediction, ...]:
    """Return at most MAX_BATCH of the test photos at random; the same ones for the same photos."""
    drawn = np.random.default_rng(0).permutation(len(tested))[:MAX_BATCH]
    return tuple(tested[row] for row in drawn.tolist())


def _make_label_rows(data: TrainingData, own: Floats) -> tuple[LabelRow, ...]:
    """Return the row of each label; `own` float32 [N] is the probability of each photo's true label."""
    photos: list[Counter[Subset]] = [Counter() for _ in data.labels]
    samples: dict[int, int] = {}
    for row, (example, subset) in enumerate(zip(data.examples, data.subsets, strict=True)):
        photos[example.label][subset] += 1
        if subset is Subset.TRAINING:
            sample = samples.setdefault(example.label, row)
            samples[example.label] = row if own[row] > own[sample] else sample
    return tuple(
        LabelRow(label, photos[index], data.examples[samples[index]].uri if index in samples else None)
        for index, label in enumerate(data.labels)
    )


def _compute_risk_coverage(probabilities: Floats, targets: Ints) -> RiskCoverageCurve:
    """Return the risk-coverage curve and the thresholds of held-out photos."""
    count = len(targets)
    if not count:
        return RiskCoverageCurve((), dict.fromkeys(PRECISIONS), 0)
    order = np.argsort(-probabilities.max(axis=1), kind="stable")
    right = np.cumsum(probabilities.argmax(axis=1)[order] == targets[order])
    # The accuracy of fewer than ten photos is too noisy to be drawn.
    places = np.unique(np.linspace(min(9, count - 1), count - 1, _CURVE_POINTS).astype(int))
    return RiskCoverageCurve(
        tuple(((place + 1) / count, float(right[place]) / (place + 1)) for place in places.tolist()),
        {wanted: _find_threshold(probabilities, targets, wanted) for wanted in PRECISIONS},
        count,
    )


def _find_threshold(probabilities: Floats, targets: Ints, wanted: float) -> Threshold | None:
    """Return the threshold for a precision, None where no threshold reaches it."""
    try:
        return threshold_for_precision(probabilities, targets, wanted)
    except InputError:
        return None


def _flatten_settings(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return (name, value) of all settings that are not None, nested names joined by dots."""
    flat: list[tuple[str, str]] = []
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat += _flatten_settings(value, f"{prefix}{name}.")
        elif value is not None:
            flat.append((f"{prefix}{name}", str(value)))
    return flat
