"""Outputs of a training: checked before any work, published at its end."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
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
from trainer.training.config import TrainSettings
from trainer.training.steps import read_as_sent

PARITY_PHOTOS = 8
"""Test photos on which the exported bundle is compared with the training path."""


@dataclass(frozen=True)
class Outputs:
    """What a training writes.

    Attributes:
        model_dir: base path of the model, below which the version is published.
        labels: second place of the labels file; None for none.
        summaries: directory of TensorBoard's logs; None for none.
        tflite: weights of the TensorFlow Lite file in the bundle; None for no such file.
        tflite_file: second place of that file; None for none.
        report: True to put report.html into the bundle.
        top_k: labels that the model's answers name.
    """

    model_dir: Path
    labels: Path | None
    summaries: Path | None
    tflite: Quantize | None
    tflite_file: Path | None
    report: bool
    top_k: int

    @classmethod
    def from_settings(cls, settings: TrainSettings) -> Outputs:
        """Return the outputs that the user asked for."""
        return cls(
            settings.saved_model_dir,
            settings.output_labels,
            settings.summaries_dir,
            settings.tflite,
            settings.tflite_output_file,
            settings.report,
            settings.top_k,
        )

    def check_writable(self) -> None:
        """Check before any work that all of them can be written.

        Raises:
            OutputError: one of them cannot.
        """
        for flag, target in (("output_labels", self.labels), ("tflite_output_file", self.tflite_file)):
            if target and (target.is_dir() or not os.access(target.parent, os.W_OK)):
                raise OutputError(
                    f"--{flag} {target} cannot be written.", remedy="Give a file in a directory that exists."
                )
        with bundle.staging(self.model_dir):
            pass
        if self.summaries:
            files.check_writable(str(self.summaries))

    def publish(self, base: Bundle, record: TrainingRecord) -> Bundle:
        """Export the bundle with its records and its report, and copy what the user wants elsewhere too.

        Args:
            base: headless bundle of the backbone.
            record: what the training found out.

        Raises:
            BundleError: the bundle did not pass its checks; nothing was published.
            OutputError: an output cannot be written.
        """
        data, fitted = record.data, record.fitted
        page = report.compose(record) if self.report else None
        asked_for = ("split", "seed", "augmentation", "views")
        part = HeadExport(
            fitted.head,
            data.labels,
            threshold=fitted.threshold.value if fitted.threshold else 0.0,
            novelty=fitted.novelty,
            top_k=self.top_k,
            settings=fitted.selection.settings,
            report=(lambda path: report.write(path, page)) if page else None,
            tflite=_make_tflite_options(data, self.tflite),
            metrics=record.metrics(),
            data=data.to_dict() | {name: record.settings[name] for name in asked_for},
            trained_on=data.training_digests(),
            test_photos=data.test_photos(),
        )
        tested = data.rows(Subset.TESTING)
        checked = (tested if len(tested) else np.arange(len(data.targets)))[:PARITY_PHOTOS]
        sent = read_as_sent(data.examples, checked)
        published = export(
            base,
            part,
            self.model_dir,
            photos=list(sent.values()),
            probabilities=fitted.head.probabilities(data.embeddings[list(sent)]),
        )
        if self.labels:
            write_labels(data.labels, self.labels)
        if self.tflite_file:
            shutil.copyfile(published.path / tflite.BUNDLE_FILE, self.tflite_file)
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
    """Write the labels, one per line, in the order of the model's outputs."""
    path.write_text("".join(f"{label}\n" for label in labels), encoding="utf-8")
