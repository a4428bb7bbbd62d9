"""HTML page of the training report: one file with its style, charts and thumbnails, without scripts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from serving import html
from serving.contract import Status
from serving.photos.thumbnails import make_thumbnails
from serving.storage import files
from trainer.dataset import Subset
from trainer.evaluation.cross_validation import CrossValidation
from trainer.evaluation.metrics import Evaluation, proportion
from trainer.evaluation.training_record import TrainingRecord
from trainer.evaluation.version_changes import LabelChange
from trainer.report import charts
from trainer.report.contents import MAX_CHANGED, MAX_LABEL_ROWS, Report, pick_group_uris

SIDE = 192
"""Width and height of a thumbnail in pixels: twice its size on the page, for screens of high density."""

MAX_MATRIX = 30
"""Labels up to which the confusion matrix is shown; with more, as many pairs, those confused most often."""

MAX_ROWS = 100
"""Largest number of rows in the list of files that could not be used."""

MAX_CHANGED_LABELS = 30
"""Largest number of labels in the comparison; those that changed most are listed."""


def write(path: Path, report: Report) -> None:
    """Make the thumbnails and write the page.

    Args:
        path: file to write, in an existing directory.
        report: contents of the report.

    Raises:
        OutputError: the file cannot be written.
    """
    page = render(report, make_thumbnails(report.pictured, SIDE))
    files.write(str(path), page.encode())


def render(report: Report, pictures: Mapping[str, bytes]) -> str:
    """Return the page as HTML.

    Args:
        report: contents of the report.
        pictures: thumbnails (JPEG) by path; a photo without one is shown as text.
    """
    record = report.record
    top = record.source.rstrip("/")
    roots = (f"{top}/", f"{files.absolute(top)}/") if top else ()

    def shorten_path(uri: str) -> str:
        """Return the path of a photo relative to the folder of photos."""
        return next((uri.removeprefix(root) for root in roots if uri.startswith(root)), uri)

    return html.render(
        "trainer.report",
        report=report,
        record=record,
        fitted=record.fitted,
        pictures=pictures,
        side=SIDE,
        charts=charts,
        sets=_list_sets(record),
        counts={subset.value: sum(row.photos.get(subset, 0) for row in report.labels) for subset in Subset},
        changed_labels=_select_changed(record.comparison.labels) if record.comparison else (),
        max_changed=MAX_CHANGED,
        pairs=None if len(report.by_label.labels) <= MAX_MATRIX else _list_confused(report.by_label),
        max_pairs=MAX_MATRIX,
        max_rows=MAX_ROWS,
        max_labels=MAX_LABEL_ROWS,
        batch_right=sum(photo.predicted == photo.label for photo in report.batch),
        seconds={step: f"{taken:.2f}" for step, taken in record.seconds.items()},
        meanings={status.value: status.meaning for status in Status},
        log=math.log,
        proportion=proportion,
        pick_group_uris=pick_group_uris,
        shorten_path=shorten_path,
    )


def _list_sets(record: TrainingRecord) -> list[tuple[str, Evaluation, CrossValidation | None]]:
    """Return the name and the evaluation of each set, and the repeats of the K-fold cross-validation."""
    crossed = record.fitted.selection.method == "cross-validation"
    chosen = "Cross-validation that chose C" if crossed else "Validation photos"
    sets: list[tuple[str, Evaluation, CrossValidation | None]] = [(chosen, record.fitted.held_out, None)]
    if record.fitted.test:
        sets.insert(0, ("Test photos", record.fitted.test, None))
    if repeated := record.cross_validation:
        sets.append((f"{repeated.folds}-fold cross-validation", repeated.runs[0], repeated))
    return sets


def _select_changed(labels: Sequence[LabelChange]) -> list[LabelChange]:
    """Return the MAX_CHANGED_LABELS labels that changed most, the largest decrease of recall first."""
    most = sorted(labels, key=lambda change: -(change.gained + change.lost))[:MAX_CHANGED_LABELS]
    return sorted(most, key=lambda change: (change.difference.value, -change.lost))


def _list_confused(shown: Evaluation) -> list[tuple[int, int, str, str]]:
    """Return (photos, photos of the label, label, predicted label) of each pair; the most frequent first."""
    pairs = [
        (count, sum(counts), label, predicted)
        for label, counts in zip(shown.labels, shown.confusion, strict=True)
        for predicted, count in zip(shown.labels, counts, strict=True)
        if count and predicted != label
    ]
    return sorted(pairs, key=lambda pair: (-pair[0], -pair[0] / pair[1], pair[2:]))
