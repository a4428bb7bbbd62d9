"""Configuration and result types of a training run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from batch.embeddings import default_root
from serving.bundle import Bundle
from trainer.backbones import DEFAULT as DEFAULT_BACKBONE
from trainer.backbones import InputOptions
from trainer.dataset import Columns, SplitSettings
from trainer.dataset.download import cache_directory
from trainer.dataset.near_duplicates import THRESHOLD, DuplicateReport
from trainer.evaluation.abstention import Threshold
from trainer.evaluation.cross_validation import CrossValidation
from trainer.evaluation.metrics import Evaluation, Proportion
from trainer.evaluation.suspects import Suspects
from trainer.evaluation.training_record import PhotoPrediction
from trainer.evaluation.version_changes import LiveComparison
from trainer.export.tflite import Quantize
from trainer.heads import HeadSettings
from trainer.preprocessing import Augmentation, Preprocessing
from trainer.training.fine_tune_types import FineTuneSettings


class NearDuplicatesOption(StrEnum):
    """Treatment of near-duplicates: report them, keep them in one set, or ignore them."""

    REPORT = "report"
    TOGETHER = "together"
    IGNORE = "ignore"


@dataclass(frozen=True, kw_only=True)
class EmbeddingSettings:
    """How photos become embeddings.

    Attributes:
        tfhub_module: alias, directory or Hub handle of the backbone.
        embedding_store: directory or address of the embedding store, which `hubhead score` shares.
        cache: directory of downloads and of what is derived from them.
        backbone_input: image size and value range of the backbone's input, as stated by the user.
        preprocessing: aspect and limits of the preprocessing; the image size is the backbone's.
        augmentation: how much random views differ from their photos; the default makes no views.
        views: number of random views of each photo.
        engine: what runs the backbone, one of serving.contract.ENGINES.
    """

    tfhub_module: str = DEFAULT_BACKBONE
    embedding_store: str = field(default_factory=default_root)
    cache: Path = field(default_factory=cache_directory)
    backbone_input: InputOptions = field(default_factory=InputOptions)
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    augmentation: Augmentation = field(default_factory=Augmentation)
    views: int = 4
    engine: str = "auto"


@dataclass(frozen=True, kw_only=True)
class DivisionSettings:
    """How photos are divided into sets.

    Attributes:
        split: how photos are split into training, validation and test set.
        near_duplicates: what to do with photos that are nearly the same.
        near_threshold: cosine similarity of embeddings from which photos count as nearly the same.
    """

    split: SplitSettings = field(default_factory=SplitSettings)
    near_duplicates: NearDuplicatesOption = NearDuplicatesOption.REPORT
    near_threshold: float = THRESHOLD


@dataclass(frozen=True, kw_only=True)
class AnswerSettings:
    """Content of an answer, and when the model abstains.

    Attributes:
        top_k: number of labels in an answer.
        precision: precision that the answers are to have on the held-out photos; the model abstains from
            the others. None answers always.
        keep_known: fraction of the photos of known labels that the novelty score is to accept; the model
            abstains from the others. None accepts all.
    """

    top_k: int = 5
    precision: float | None = None
    keep_known: float | None = None


@dataclass(frozen=True, kw_only=True)
class OutputSettings:
    """Files beside the bundle's own.

    Attributes:
        output_labels: additional file for the labels; None for none.
        report: add a report to the bundle; it contains thumbnails of training photos.
        summaries_dir: directory of TensorBoard logs; None for none.
        tflite: type of the weights of a TensorFlow Lite file to add to the bundle; None for no file.
        tflite_output_file: additional path for that file; None for none.
        configuration: options of the command, as in a configuration file, for hubhead.json.
    """

    output_labels: Path | None = None
    report: bool = True
    summaries_dir: Path | None = None
    tflite: Quantize | None = None
    tflite_output_file: Path | None = None
    configuration: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ComparisonSettings:
    """Comparison with the live version.

    Attributes:
        compare_with: the live version: a version directory or the base path above it, "" for the newest
            version in saved_model_dir, "none" for no comparison.
        assert_not_worse_than_live: percentage points of accuracy by which the new version may be worse than
            the live one, or nothing is published; None for no limit. Has no effect while no version is live.
    """

    compare_with: str | Path = ""
    assert_not_worse_than_live: float | None = None


@dataclass(frozen=True)
class TrainSettings(EmbeddingSettings, DivisionSettings, AnswerSettings, ComparisonSettings, OutputSettings):
    """Configuration of a training run. The steps of a training take the parts that they need.

    Attributes:
        image_dir: directory with one sub-directory of photos per label, or a dataset manifest; a str
            for an address on another storage.
        saved_model_dir: `<models>/<name>`; the next version is published below it.
        columns: column names of a dataset manifest.
        manifest: dataset manifest of photos that are used besides those of image_dir; None for none.
        corrections: dataset manifest of photos whose labels replace the listed ones; None for none.
        fine_tune: settings for fine-tuning the last layers of the backbone, from a head fitted on its
            embeddings; None leaves the backbone as it is.
        head_settings: kind of the head, weights of the labels, memory limit.
        assert_accuracy_at_least: test accuracy below which nothing is published, 0 to 1.
        seed: seed of the cross-validation's folds.
        cross_validate: number of folds of an additional cross-validation; None for none.
        cross_validate_repeats: number of repeats of it, each with other folds.
        split_files: directory with lists of the photos of image_dir by set; None for none.
    """

    image_dir: str | Path
    saved_model_dir: Path
    columns: Columns = field(default_factory=Columns)
    corrections: str | Path | None = None
    manifest: str | Path | None = None
    fine_tune: FineTuneSettings | None = None
    head_settings: HeadSettings = field(default_factory=HeadSettings)
    assert_accuracy_at_least: float | None = None
    seed: int = 0
    cross_validate: int | None = None
    cross_validate_repeats: int = 1
    split_files: str | Path | None = None


@dataclass(frozen=True)
class TrainResult:
    """Result of a training run.

    Attributes:
        bundle: the published version.
        test: metrics on the test photos; None where there are none.
        held_out: metrics of the cross-validation, or on the validation photos, that chose the settings.
        method: how the settings were chosen: "cross-validation" or "validation".
        threshold: threshold for the requested precision; None where the model always answers.
        known_kept: fraction of known photos that the novelty score accepts; None without a novelty score.
        subsets: number of photos in each set.
        labels: number of photos of each label, over all sets.
        left_out: (path, reason) of each file that could not be used.
        duplicates: exact and near duplicates.
        test_photos: (path, label) of each test photo.
        misclassified: (path, label, predicted label, its probability) of misclassified test photos.
        suspects: photos whose labels may be wrong, the most suspicious one first.
        seconds: wall time in seconds by step.
        comparison: comparison with the live version; None where there is none, or no photo to compare on.
        cross_validation: result of the additional cross-validation; None where it was not requested.
    """

    bundle: Bundle
    test: Evaluation | None
    held_out: Evaluation
    method: str
    threshold: Threshold | None
    known_kept: Proportion | None
    subsets: dict[str, int]
    labels: dict[str, int]
    left_out: tuple[tuple[str, str], ...]
    duplicates: DuplicateReport
    test_photos: tuple[tuple[str, str], ...]
    misclassified: tuple[PhotoPrediction, ...]
    suspects: Suspects
    seconds: dict[str, float]
    comparison: LiveComparison | None = None
    cross_validation: CrossValidation | None = None
