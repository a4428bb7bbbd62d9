"""A training run: scan, embed, split, fit the head, evaluate, compare with the live version, export."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from batch.monitoring.stats import Progress
from serving.bundle import Bundle
from serving.errors import BundleError, GateRejected, HubheadError
from serving.storage.files import absolute
from serving.text import redact
from trainer import dataset
from trainer.dataset import Subset
from trainer.dataset.download import no_progress
from trainer.evaluation import cross_validation
from trainer.evaluation.cross_validation import CrossValidationScheme, cross_validate
from trainer.evaluation.metrics import Evaluation
from trainer.evaluation.training_record import FittedHead, TrainingData, TrainingRecord
from trainer.evaluation.version_changes import LiveComparison
from trainer.heads import HeadSettings, Selection
from trainer.preprocessing import Augmentation
from trainer.training import live_comparison, outputs, steps, tensorboard
from trainer.training.config import ComparisonSettings, EmbeddingSettings, TrainResult, TrainSettings
from trainer.training.steps import Reporter

_log = logging.getLogger(__name__)


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
    reporter = Reporter(say, progress)
    seconds: dict[str, float] = {}
    is_cross_validated = settings.cross_validate is not None
    with _timed(seconds, "scan"):
        # The TensorBoard summaries have a picture of their own.
        own = [absolute(str(settings.summaries_dir))] if settings.summaries_dir else []
        listing = dataset.scan(
            settings.image_dir,
            settings.columns,
            own=own,
            also=settings.manifest,
            corrections=settings.corrections,
            split_files=settings.split_files,
            progress=progress,
        )
        steps.check_listing(listing, settings.split)
        outputs.check_writable(settings, settings.saved_model_dir)
        live = find_live_bundle(settings, settings.saved_model_dir, say)
        for warning in listing.warnings:
            say(warning)
    # `settings` stays what the user asked for; `used` names the tuned backbone after fine-tuning.
    used: EmbeddingSettings = settings
    head_settings = _keep_large_features_in_cache(settings.head_settings, settings.cache)
    with _timed(seconds, "backbone"):
        base = steps.make_template(used, reporter)
    with _timed(seconds, "embed"):
        listing, features = steps.embed(used, head_settings, listing, base, reporter)
    with _timed(seconds, "divide"):
        data = steps.split_photos(settings, listing, settings.image_dir, features, reporter)
        if is_cross_validated:
            cross_validation.check_groups(data.targets, data.labels, data.groups)
    if settings.fine_tune:
        with _timed(seconds, "fine-tune"):
            tuned = steps.fine_tune_backbone(used, settings.fine_tune, data, settings.seed, reporter)
            if tuned is not used:
                used, base = tuned, steps.make_template(tuned, reporter)
                listing, features = steps.embed(used, head_settings, listing, base, reporter)
                data = replace(data, features=features)
    with _timed(seconds, "views"):
        # A cross-validation trains on every photo in turn, test photos included.
        trained = data.rows(Subset.TRAINING, Subset.VALIDATION)
        viewed = np.arange(len(data.targets)) if is_cross_validated else trained
        views = steps.embed_views(used, head_settings, listing, data.select(viewed), reporter)
    with _timed(seconds, "fit"):
        training_views = [view[trained] for view in views] if is_cross_validated else views
        head, selection = steps.fit_head(head_settings, data, training_views, settings.seed)
        fitted = steps.evaluate_head(settings, head_settings, data, head, selection, settings.seed)
    check_accuracy(fitted.test or fitted.held_out, settings.assert_accuracy_at_least)
    record = TrainingRecord(
        settings.saved_model_dir.name,
        str(settings.image_dir),
        data,
        fitted,
        engines=reporter.list_engines(),
        settings=describe_settings(settings, selection),
        seconds=seconds,
    )
    if live:
        with _timed(seconds, "compare"):
            comparison = _compare_with_live(
                live, base, data, fitted, settings.embedding_store, settings.assert_not_worse_than_live, say
            )
        record = replace(record, comparison=comparison)
    if settings.cross_validate:
        with _timed(seconds, "cross-validate"):
            validated = cross_validate(
                data.embeddings,
                data.targets,
                data.labels,
                scheme=CrossValidationScheme(
                    settings.cross_validate, settings.cross_validate_repeats, settings.seed
                ),
                settings=head_settings,
                views=views,
                groups=data.groups,
                progress=lambda done, fits: say(f"Cross-validation: {done} of {fits} heads fitted"),
            )
        record = replace(record, cross_validation=validated)
    found = steps.find_suspects(data, fitted, record.cross_validation, settings.seed)
    record = replace(record, suspects=found)
    if settings.summaries_dir:
        with _timed(seconds, "summaries"):
            tensorboard.write(settings.summaries_dir, data, fitted)
    with _timed(seconds, "export"):
        published = outputs.publish(settings, base, record, settings.saved_model_dir, settings.top_k)
    return _make_result(record, published)


def _keep_large_features_in_cache(settings: HeadSettings, cache: Path) -> HeadSettings:
    """Return the settings with a directory for features that do not fit in memory.

    It is the cache, since the directory of temporary files may itself be in memory.
    """
    return replace(settings, directory=settings.directory or cache)


def describe_settings(settings: TrainSettings, selection: Selection) -> dict[str, Any]:
    """Return the settings that the user asked for, with those that were chosen for the head."""
    # Omit local paths: the report may be shared.
    local = {"cache", "embedding_store", "saved_model_dir", "output_labels", "summaries_dir"}
    omitted = local | {"tflite_output_file", "head_settings", "configuration", "corrections", "manifest"}
    omitted |= {"split_files"}
    described = {name: value for name, value in asdict(settings).items() if name not in omitted}
    views = settings.views if settings.augmentation != Augmentation() else 0
    return redact(described | {"head": selection.settings, "views": views})


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


def find_live_bundle(
    settings: ComparisonSettings, model_dir: Path, say: Callable[[str], None]
) -> Bundle | None:
    """Return the version to compare with; `say` is called with the reason if there is no comparison.

    Raises:
        BundleError: the version cannot be read, and the user asked for the comparison or made the
            publication depend on it.
    """
    try:
        return live_comparison.find_live_version(settings.compare_with, model_dir)
    except BundleError as error:
        if settings.compare_with or settings.assert_not_worse_than_live is not None:
            raise
        say(f"The new version will not be compared with the live one. {error.what}")
        return None


def _compare_with_live(
    live: Bundle,
    base: Bundle,
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
            base.metadata.fingerprint,
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


def _make_result(record: TrainingRecord, published: Bundle) -> TrainResult:
    """Return what the caller gets: the record without embeddings and weights."""
    data, fitted = record.data, record.fitted
    tested = record.test_predictions()
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
        test_photos=tuple((photo.uri, photo.label) for photo in tested),
        misclassified=tuple(photo for photo in tested if photo.predicted != photo.label),
        suspects=record.suspects,
        seconds=dict(record.seconds),
        comparison=record.comparison,
        cross_validation=record.cross_validation,
    )


@contextmanager
def _timed(seconds: dict[str, float], step: str) -> Iterator[None]:
    """Measure the wall time of the block, and keep it as that of a step."""
    start = time.perf_counter()
    yield
    seconds[step] = time.perf_counter() - start
    _log.debug("%s: %.1f s", step, seconds[step])
