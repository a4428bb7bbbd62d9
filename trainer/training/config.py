"""What a training is told, and what comes out."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from batch.embeddings import default_root
from serving.bundle import Bundle
from trainer.backbones import DEFAULT as DEFAULT_BACKBONE
from trainer.backbones import InputOptions
from trainer.dataset import Columns, SplitSettings
from trainer.dataset import near_duplicates as duplicates
from trainer.dataset.download import cache_directory
from trainer.dataset.near_duplicates import DuplicateReport
from trainer.evaluation.abstention import Threshold
from trainer.evaluation.cross_validation import CrossValidation
from trainer.evaluation.metrics import Evaluation, Proportion
from trainer.evaluation.version_changes import LiveComparison
from trainer.export.tflite import Quantize
from trainer.heads import HeadSettings
from trainer.preprocessing import Augmentation, Preprocessing
from trainer.training.fine_tuning import FineTuneSettings
from trainer.training.live_comparison import Tolerance


class NearDuplicatesOption(StrEnum):
    """What is done about photos that are nearly the same."""

    REPORT = "report"
    TOGETHER = "together"
    IGNORE = "ignore"


@dataclass(frozen=True)
class TrainSettings:
    """What `hubhead train` is told.

    Attributes:
        image_dir: one directory of photos a label, or a manifest of photo and label; an address on
            another storage as a str.
        saved_model_dir: `<models>/<name>`; the next version is published below it.
        tfhub_module: the backbone's alias, directory or Hub handle.
        embedding_store: shared with `hubhead score`.
        cache: downloads and what is made of them.
        columns: of a manifest.
        backbone_input: what is stated of photos as the backbone takes them.
        preprocessing: aspect and limits of the graph; the size is the backbone's.
        output_labels: a second place for the labels file, None for none.
        augmentation: how much random views of the training photos differ from them; as it comes, no
            views are made.
        views: of each photo.
        fine_tune: train the last layers of the backbone on, from a head on its embeddings, and go on
            with that backbone; None leaves it as it is.
        head_settings: the head's kind, the weights of the labels, memory.
        split: how photos are divided.
        near_duplicates: what is done about photos that are nearly the same.
        near_threshold: cosine of embeddings from which they count as that.
        top_k: labels an answer names.
        precision: answers are to be right this often, as the held-out photos tell; the others get no
            label. None answers always.
        keep_known: the share of photos of the known labels that are to pass as such, while others
            get no label. None lets all pass.
        assert_accuracy_at_least: publish only where the test accuracy reaches this share.
        seed: of the cross-validation's folds.
        report: put a report into the bundle; it holds small pictures of training photos.
        summaries_dir: where TensorBoard looks, None for no summaries.
        compare_with: the live version: a version directory or the base path above it, "" for the newest
            version in saved_model_dir, "none" for no comparison.
        assert_not_worse_than_live: publish only where the new version is not worse than the live one by
            more than that; None publishes anyway. Where there is no live version yet, it is published.
        cross_validate: judge by a cross-validation of so many folds too.
        cross_validate_repeats: how often, each time with other folds.
        tflite: put a TensorFlow Lite file into the bundle too, its weights kept so; None leaves it out.
        tflite_output_file: a second place for that file, None for none.
    """

    image_dir: str | Path
    saved_model_dir: Path
    tfhub_module: str = DEFAULT_BACKBONE
    embedding_store: str = field(default_factory=default_root)
    cache: Path = field(default_factory=cache_directory)
    columns: Columns = field(default_factory=Columns)
    backbone_input: InputOptions = field(default_factory=InputOptions)
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    output_labels: Path | None = None
    augmentation: Augmentation = field(default_factory=Augmentation)
    views: int = 4
    fine_tune: FineTuneSettings | None = None
    head_settings: HeadSettings = field(default_factory=HeadSettings)
    split: SplitSettings = field(default_factory=SplitSettings)
    near_duplicates: NearDuplicatesOption = NearDuplicatesOption.REPORT
    near_threshold: float = duplicates.THRESHOLD
    top_k: int = 5
    precision: float | None = None
    keep_known: float | None = None
    assert_accuracy_at_least: float | None = None
    seed: int = 0
    report: bool = True
    summaries_dir: Path | None = None
    compare_with: str | Path = ""
    assert_not_worse_than_live: Tolerance | None = None
    cross_validate: int | None = None
    cross_validate_repeats: int = 1
    tflite: Quantize | None = None
    tflite_output_file: Path | None = None


@dataclass(frozen=True)
class TrainResult:
    """What came out.

    Attributes:
        bundle: the published version.
        test: on the untouched test photos; None where none were held out.
        held_out: of the cross-validation (or on the validation photos) that chose the settings.
        method: how they were chosen.
        answering: the threshold for --precision, None where it always answers.
        known_kept: the share of known photos that the novelty score lets pass, None where all pass.
        subsets: photos in each set.
        labels: photos of each label, the sets together.
        left_out: (path, reason) of the files that could not be used.
        duplicates: what is there more than once.
        test_photos: (path, label) of the photos held out for the test.
        misclassified: (path, label, predicted label, its probability) of test photos.
        seconds: wall time by step.
        comparison: with the live version; None where there is none, or nothing to compare by.
        cross_validation: where it was asked for.
    """

    bundle: Bundle
    test: Evaluation | None
    held_out: Evaluation
    method: str
    answering: Threshold | None
    known_kept: Proportion | None
    subsets: dict[str, int]
    labels: dict[str, int]
    left_out: tuple[tuple[str, str], ...]
    duplicates: DuplicateReport
    test_photos: tuple[tuple[str, str], ...]
    misclassified: tuple[tuple[str, str, str, float], ...]
    seconds: dict[str, float]
    comparison: LiveComparison | None = None
    cross_validation: CrossValidation | None = None
