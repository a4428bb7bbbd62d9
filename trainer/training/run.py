"""A training run: scan, embed, split, fit the head, evaluate, compare with the live version, export."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from batch.monitoring.stats import Progress
from serving import bundle
from serving.bundle import Bundle
from serving.errors import BundleError, GateRejected, HubheadError, OutputError
from serving.storage import files
from trainer import dataset, report
from trainer.dataset import Subset
from trainer.dataset.download import no_progress
from trainer.evaluation import cross_validation
from trainer.evaluation.cross_validation import CrossValidation, CrossValidationScheme, cross_validate
from trainer.evaluation.metrics import Evaluation
from trainer.evaluation.training_record import FittedHead, TrainingData, TrainingRecord
from trainer.evaluation.version_changes import LiveComparison
from trainer.export import tflite
from trainer.export.bundle import HeadExport, export
from trainer.export.tflite import Quantize, TfliteOptions
from trainer.heads import Ints, Selection, Vectors
from trainer.preprocessing import Augmentation
from trainer.training import live_comparison, steps, tensorboard
from trainer.training.config import TrainResult, TrainSettings
from trainer.training.steps import Embedder, Reporter

PARITY_PHOTOS = 8
"""Test photos on which the exported bundle is compared with the training path."""


def train(
    settings: TrainSettings,
    *,
    say: Callable[[str], None] = no_progress,
    progress: Callable[[Progress], None] | None = None,
) -> TrainResult:
    """Train a head on labelled photos and publish the bundle.

    Args:
        settings: configuration of the run.
        say: function that is called with lines of text for the user.
        progress: function that is called as photos are listed and embedded.

    Raises:
        InputError: the photos or a setting cannot be used.
        OutputError: an output cannot be written.
        FetchError: the backbone cannot be downloaded.
        BundleError: the exported bundle did not pass its checks; nothing was published.
        GateRejected: the head is not accurate enough, or worse than the live version; nothing was
            published.
    """
    reporter, clock, embedder = Reporter(say, progress), _Clock(), _make_embedder(settings)
    is_cross_validated = settings.cross_validate is not None
    with clock.step("scan"):
        listing = dataset.scan(settings.image_dir, settings.columns, progress=progress)
        dataset.check_listing(listing, settings.split)
        check_outputs_writable(settings)
        live = _find_live_bundle(settings, say)
        for warning in listing.warnings:
            say(warning)
    with clock.step("backbone"):
        base = embedder.make_template(reporter)
    with clock.step("embed"):
        features = embedder.embed(listing, base, reporter)
    with clock.step("divide"):
        data = steps.split_photos(
            listing,
            features,
            settings.split,
            settings.image_dir,
            settings.near_duplicates,
            settings.near_threshold,
            reporter,
        )
        if is_cross_validated:
            cross_validation.check_groups(data.targets, data.labels, data.groups)
    if settings.fine_tune:
        with clock.step("fine-tune"):
            tuned = steps.fine_tune_backbone(embedder, data, settings.fine_tune, settings.seed, reporter)
            if tuned:
                embedder, base = tuned, tuned.make_template(reporter)
                data = replace(data, features=tuned.embed(listing, base, reporter))
    with clock.step("views"):
        # A cross-validation trains on every photo in turn, test photos included.
        used = data.rows(Subset.TRAINING, Subset.VALIDATION)
        viewed = np.arange(len(data.targets)) if is_cross_validated else used
        views = embedder.embed_views(
            listing, data.select(viewed), settings.augmentation, settings.views, reporter
        )
    with clock.step("fit"):
        training_views = [view[used] for view in views] if is_cross_validated else views
        head, selection = steps.fit_head(data, training_views, embedder.head_settings, settings.seed)
        fitted = steps.evaluate_head(
            data,
            head,
            selection,
            embedder.head_settings,
            precision=settings.precision,
            keep_known=settings.keep_known,
            seed=settings.seed,
        )
    check_accuracy(fitted.test or fitted.held_out, settings.assert_accuracy_at_least)
    record = TrainingRecord(
        settings.saved_model_dir.name,
        str(settings.image_dir),
        data,
        fitted,
        settings=describe_settings(settings, selection),
        seconds=clock.seconds,
    )
    if live:
        with clock.step("compare"):
            comparison = _compare_with_live(
                live,
                base.metadata.fingerprint,
                data,
                fitted,
                embedder.store_root,
                settings.assert_not_worse_than_live,
                say,
            )
        record = replace(record, comparison=comparison)
    if settings.cross_validate:
        with clock.step("cross-validate"):
            scheme = CrossValidationScheme(
                settings.cross_validate, settings.cross_validate_repeats, settings.seed
            )
            validated = _cross_validate(data, scheme, embedder, views, say)
        record = replace(record, cross_validation=validated)
    if settings.summaries_dir:
        with clock.step("summaries"):
            tensorboard.write(settings.summaries_dir, data, fitted)
    with clock.step("export"):
        published = _publish(base, record, settings)
    return _make_result(record, published)


def _make_embedder(settings: TrainSettings) -> Embedder:
    """Return the backbone that the user asked for.

    What does not fit in memory goes to the cache: the directory of temporary files may itself be in memory.
    """
    head_settings = settings.head_settings
    return Embedder(
        settings.tfhub_module,
        settings.backbone_input,
        settings.preprocessing,
        settings.embedding_store,
        settings.cache,
        replace(head_settings, directory=head_settings.directory or settings.cache),
    )


def check_outputs_writable(settings: TrainSettings) -> None:
    """Check before any work that all outputs of the run can be written.

    Raises:
        OutputError: one of them cannot.
    """
    for name in ("output_labels", "tflite_output_file"):
        target = getattr(settings, name)
        if target and (target.is_dir() or not os.access(target.parent, os.W_OK)):
            raise OutputError(
                f"--{name} {target} cannot be written.", remedy="Give a file in a directory that exists."
            )
    with bundle.staging(settings.saved_model_dir):
        pass
    if settings.summaries_dir:
        files.check_writable(str(settings.summaries_dir))


def describe_settings(settings: TrainSettings, selection: Selection) -> dict[str, Any]:
    """Return the settings that the user asked for, with those that were chosen for the head."""
    described = asdict(settings)
    del described["head_settings"]
    described["head"] = selection.settings
    # Omit local paths: the report may be shared.
    for name in (
        "cache",
        "embedding_store",
        "saved_model_dir",
        "output_labels",
        "summaries_dir",
        "tflite_output_file",
    ):
        del described[name]
    return described


def check_accuracy(evaluation: Evaluation, minimum: float | None) -> None:
    """Check that a head is accurate enough to be published.

    Raises:
        GateRejected: it is not; the message has the accuracy and its interval.
    """
    if minimum is not None and evaluation.accuracy.value < minimum:
        raise GateRejected(
            f"The accuracy is {evaluation.accuracy}, below the {minimum:.1%} of --assert_accuracy_at_least; "
            "nothing was published.",
            remedy="Add photos, check the misclassified ones, or lower the required accuracy.",
        )


def _find_live_bundle(settings: TrainSettings, say: Callable[[str], None]) -> Bundle | None:
    """Return the version to compare with.

    If it cannot be read, that is an error only where the user asked for the comparison or made the
    publication depend on it.

    Raises:
        BundleError: the version cannot be read, and the comparison is required.
    """
    try:
        return live_comparison.find_live_version(settings.compare_with, settings.saved_model_dir)
    except BundleError as error:
        if settings.compare_with or settings.assert_not_worse_than_live is not None:
            raise
        say(f"The new version will not be compared with the live one. {error.what}")
        return None


def _compare_with_live(
    live: Bundle,
    fingerprint: str,
    data: TrainingData,
    fitted: FittedHead,
    store_root: str,
    tolerance: float | None,
    say: Callable[[str], None],
) -> LiveComparison | None:
    """Compare the new version with the live one, and check that it is not worse if that is required.

    Raises:
        GateRejected: the new version is worse than allowed, or a required comparison is not possible.
    """
    tested = data.rows(Subset.TESTING)
    try:
        comparison = live_comparison.compare_with_live(
            live,
            fingerprint,
            data.labels,
            data.select(tested),
            data.embeddings[tested],
            fitted.test_probabilities,
            store_root,
        )
    except HubheadError as error:
        if tolerance is not None:
            raise GateRejected(
                f"The comparison with version {live.version} of {live.name} failed: {error.what} "
                "Nothing was published (--assert_not_worse_than_live).",
                remedy=error.remedy,
            ) from error
        say(f"The new version was not compared with the live one. {error.what}")
        return None
    if tolerance is not None:
        live_comparison.check_not_worse(comparison, tolerance)
    return comparison


def _cross_validate(
    data: TrainingData,
    scheme: CrossValidationScheme,
    embedder: Embedder,
    views: Sequence[Vectors],
    say: Callable[[str], None],
) -> CrossValidation:
    """Cross-validate on all photos, with the views of all."""
    return cross_validate(
        data.embeddings,
        data.targets,
        data.labels,
        scheme=scheme,
        settings=embedder.head_settings,
        views=views,
        groups=data.groups,
        progress=lambda done, fits: say(f"Cross-validation: {done} of {fits} heads fitted"),
    )


def _publish(base: Bundle, record: TrainingRecord, settings: TrainSettings) -> Bundle:
    """Export the bundle with its records and its report, and copy what the user wants elsewhere too."""
    data, fitted = record.data, record.fitted
    page = report.compose(record) if settings.report else None
    part = HeadExport(
        fitted.head,
        data.labels,
        threshold=fitted.threshold.value if fitted.threshold else 0.0,
        novelty=fitted.novelty,
        top_k=settings.top_k,
        settings=fitted.selection.settings,
        report=(lambda path: report.write(path, page)) if page else None,
        tflite=_make_tflite_options(data, settings.tflite),
        metrics=record.metrics(),
        data=data.to_dict()
        | {
            "split": asdict(settings.split),
            "seed": settings.seed,
            "augmentation": asdict(settings.augmentation),
            "views": settings.views if settings.augmentation != Augmentation() else 0,
        },
        trained_on=data.training_digests(),
        test_photos=data.test_photos(),
    )
    tested = data.rows(Subset.TESTING)
    checked = (tested if len(tested) else np.arange(len(data.targets)))[:PARITY_PHOTOS]
    sent = steps.read_as_sent(data.examples, checked)
    published = export(
        base,
        part,
        settings.saved_model_dir,
        photos=list(sent.values()),
        probabilities=fitted.head.probabilities(data.embeddings[list(sent)]),
    )
    if settings.output_labels:
        write_labels(data.labels, settings.output_labels)
    if settings.tflite_output_file:
        shutil.copyfile(published.path / tflite.BUNDLE_FILE, settings.tflite_output_file)
    return published


def _make_tflite_options(data: TrainingData, quantize: Quantize | None) -> TfliteOptions | None:
    """Return the options of the TensorFlow Lite file, with test photos for its check; None for no file."""
    if quantize is None:
        return None
    testing = data.rows(Subset.TESTING)
    rows = testing if len(testing) else data.rows(Subset.TRAINING)
    photos = steps.read_as_sent(data.examples, _pick_evenly(rows, tflite.MAX_PHOTOS))
    return TfliteOptions(quantize, list(photos.values()))


def _pick_evenly(rows: Ints, count: int) -> Ints:
    """Return at most `count` rows, evenly spaced, so that all labels are among them."""
    return rows[np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(np.int64))]


def write_labels(labels: Sequence[str], path: Path) -> None:
    """Write the labels, one per line, in the order of the model's outputs."""
    path.write_text("".join(f"{label}\n" for label in labels), encoding="utf-8")


def _make_result(record: TrainingRecord, published: Bundle) -> TrainResult:
    """Return what the caller gets: the record without embeddings and weights."""
    data, fitted = record.data, record.fitted
    return TrainResult(
        bundle=published,
        test=fitted.test,
        held_out=fitted.held_out,
        method=fitted.selection.method,
        threshold=fitted.threshold,
        known_kept=fitted.novelty.kept if fitted.novelty else None,
        subsets=data.count_subsets(),
        labels=data.count_labels(),
        left_out=data.features.left_out,
        duplicates=data.duplicates,
        test_photos=tuple(
            (example.uri, data.labels[example.label]) for example in data.select(data.rows(Subset.TESTING))
        ),
        misclassified=record.misclassified(),
        seconds=dict(record.seconds),
        comparison=record.comparison,
        cross_validation=record.cross_validation,
    )


class _Clock:
    """Wall time of the steps.

    Attributes:
        seconds: seconds by step.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Measure the block as step `name`."""
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start
