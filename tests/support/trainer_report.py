"""Training reports of made-up photos and embeddings, for the tests of the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from tests.support.live_comparison import FINGERPRINT, sha, write_live_bundle
from trainer import heads, report
from trainer.dataset import Example, Subset, near_duplicates
from trainer.dataset.near_duplicates import DuplicateReport
from trainer.evaluation import metrics
from trainer.evaluation.cross_validation import CrossValidationScheme, cross_validate
from trainer.evaluation.features import Features, HeadPredictions
from trainer.evaluation.training_record import FittedHead, TrainingData, TrainingRecord
from trainer.training import live_comparison


@dataclass(frozen=True)
class ReportOfPhotos:
    """A report of made-up photos, and their folder."""

    report: report.Report
    top: Path


def make_report(
    top: Path,
    labels: Sequence[str],
    *,
    photos: int = 12,
    noise: float = 0.4,
    tested: bool = True,
    found: DuplicateReport | None = None,
    compared: bool = False,
) -> ReportOfPhotos:
    """Return the report of a head on random embeddings, whose small photos are written to `top`.

    Args:
        top: folder of the photos.
        labels: label names.
        photos: number of photos of each label.
        noise: standard deviation of the noise of the embeddings.
        tested: whether there are test photos.
        found: duplicates to report.
        compared: add a cross-validation, and a comparison with a live version that was fitted on noisier
            embeddings.
    """
    random = np.random.default_rng(0)
    classes = len(labels)
    targets = np.tile(np.arange(classes), photos)
    embeddings = np.eye(classes, classes + 4)[targets] + random.normal(0, noise, (len(targets), classes + 4))
    features = embeddings.astype(np.float32)
    subsets = [
        (Subset.TESTING if tested else Subset.TRAINING) if number // classes % 4 == 0 else Subset.TRAINING
        for number in range(len(targets))
    ]
    examples = []
    for number, target in enumerate(targets.tolist()):
        path = top / f"{number} <b>&amp;.jpg"
        if not path.exists():
            Image.new("RGB", (60, 40), ((37 * target) % 256, (11 * number) % 256, 90)).save(path)
        examples.append(Example(str(path), sha(number), target))
    is_tested = np.array([subset is Subset.TESTING for subset in subsets])
    fitted, selection = heads.fit(features[~is_tested], targets[~is_tested], classes)
    probabilities = fitted.probabilities(features)
    comparison, validated = None, None
    if compared:
        noisy = features + random.normal(0, noise, features.shape).astype(np.float32)
        other, _ = heads.fit(noisy[~is_tested], targets[~is_tested], classes)
        bundled = write_live_bundle(top / "live", other, [*labels[1:], "gone"], seen=[0])
        tested_rows = np.flatnonzero(is_tested)
        comparison = live_comparison.compare_with_live(
            bundled,
            FINGERPRINT,
            labels,
            [examples[row] for row in tested_rows.tolist()],
            features[tested_rows],
            probabilities[tested_rows],
            str(top / "store"),
        )
        validated = cross_validate(
            features, targets, labels, scheme=CrossValidationScheme(folds=2, repeats=2)
        )
    record = make_record(
        examples,
        subsets,
        labels,
        fitted,
        selection,
        probabilities,
        duplicates=found,
        is_tested=tested,
    )
    record = replace(record, source=str(top), comparison=comparison, cross_validation=validated)
    return ReportOfPhotos(report.compose(record), top)


def make_record(
    examples: Sequence[Example],
    subsets: Sequence[Subset],
    labels: Sequence[str],
    head: heads.Head,
    selection: heads.Selection,
    probabilities: heads.Floats,
    *,
    duplicates: DuplicateReport | None = None,
    is_tested: bool = True,
) -> TrainingRecord:
    """Return the record of a training with these photos and predictions."""
    count = len(examples)
    nothing = np.zeros((count, 0), np.float16)
    data = TrainingData(
        labels,
        Features(examples, nothing, examples, ()),
        subsets,
        duplicates or DuplicateReport((), (), near_duplicates.THRESHOLD, count, count),
        np.arange(count),
    )
    rows = data.rows(Subset.TESTING)
    tested = probabilities[rows]
    fitted = FittedHead(
        head,
        selection,
        HeadPredictions.from_probabilities(probabilities, data.targets),
        held_out=metrics.evaluate(selection.probabilities, selection.targets, labels),
        test_probabilities=tested,
        test=metrics.evaluate(tested, data.targets[rows], labels) if is_tested else None,
    )
    return TrainingRecord("made up", "", data, fitted)
