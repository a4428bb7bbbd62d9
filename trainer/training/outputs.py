"""Outputs of a training: checked before any work, published at its end."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from serving import bundle
from serving.bundle import Bundle
from serving.errors import OutputError
from serving.storage import files
from trainer import report
from trainer.dataset import Subset
from trainer.evaluation.training_record import TrainingData, TrainingRecord
from trainer.export import tflite
from trainer.export.bundle import HeadExport, export
from trainer.export.tflite import Quantize, TfliteOptions
from trainer.heads import Ints
from trainer.training.config import OutputSettings
from trainer.training.steps import read_as_sent

PARITY_PHOTOS = 8
"""Test photos on which the exported bundle is compared with the training path."""


def check_writable(settings: OutputSettings, model_dir: Path) -> None:
    """Check before any work that all outputs can be written.

    Args:
        settings: which outputs there are.
        model_dir: base path of the bundle.

    Raises:
        OutputError: one of them cannot.
    """
    for flag in ("output_labels", "tflite_output_file"):
        target: Path | None = getattr(settings, flag)
        if target and (target.is_dir() or not os.access(target.parent, os.W_OK)):
            raise OutputError(
                f"--{flag} {target} cannot be written.", remedy="Give a file in a directory that exists."
            )
    with bundle.staging(model_dir):
        pass
    if settings.summaries_dir:
        files.check_writable(str(settings.summaries_dir))


def publish(
    settings: OutputSettings, base: Bundle, record: TrainingRecord, model_dir: Path, top_k: int
) -> Bundle:
    """Export the bundle with its records and its report, and copy what the user wants elsewhere too.

    Args:
        settings: which outputs there are.
        base: headless bundle of the backbone.
        record: what the training found out.
        model_dir: base path of the bundle.
        top_k: number of labels in an answer.

    Raises:
        BundleError: the bundle did not pass its checks; nothing was published.
        OutputError: an output cannot be written.
    """
    data, fitted = record.data, record.fitted
    page = report.compose(record) if settings.report else None
    asked_for = ("split", "seed", "augmentation", "views")
    part = HeadExport(
        fitted.head,
        data.labels,
        threshold=fitted.threshold.value if fitted.threshold else 0.0,
        novelty=fitted.novelty,
        top_k=top_k,
        settings=fitted.selection.settings,
        report=(lambda path: report.write(path, page)) if page else None,
        tflite=_make_tflite_options(data, settings.tflite),
        metrics=record.metrics(),
        data={**data.to_dict(), **{name: record.settings[name] for name in asked_for}},
        engines=record.engines,
        configuration=settings.configuration,
        trained_on=data.training_digests(),
        test_photos=data.test_photos(),
    )
    tested = data.rows(Subset.TESTING)
    checked = (tested if len(tested) else np.arange(len(data.targets)))[:PARITY_PHOTOS]
    sent = read_as_sent(data.examples, checked)
    published = export(
        base,
        part,
        model_dir,
        photos=list(sent.values()),
        probabilities=fitted.head.probabilities(data.embeddings[list(sent)]),
    )
    if settings.output_labels:
        write_labels(data.labels, settings.output_labels)
    if settings.tflite_output_file:
        with files.output_errors(str(settings.tflite_output_file)):
            shutil.copyfile(published.path / tflite.BUNDLE_FILE, settings.tflite_output_file)
    return published


def _make_tflite_options(data: TrainingData, quantize: Quantize | None) -> TfliteOptions | None:
    """Return the options of the TensorFlow Lite file, with test photos for its check; None for no file."""
    if quantize is None:
        return None
    testing = data.rows(Subset.TESTING)
    rows = testing if len(testing) else data.rows(Subset.TRAINING)
    photos = read_as_sent(data.examples, _pick_evenly(rows, tflite.MAX_PHOTOS))
    return TfliteOptions(quantize, list(photos.values()))


def _pick_evenly(rows: Ints, count: int) -> Ints:
    """Return at most `count` rows, evenly spaced, so that all labels are among them."""
    return rows[np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(np.int64))]


def write_labels(labels: Sequence[str], path: Path) -> None:
    """Write the labels, one per line, in the order of the model's outputs.

    Raises:
        OutputError: the file cannot be written.
    """
    with files.output_errors(str(path)):
        path.write_text("".join(f"{label}\n" for label in labels), encoding="utf-8")
