"""A training run: scan, embed, split, fit the head, evaluate, compare with the live version, export."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from batch.monitoring.stats import Progress
from serving.bundle import Bundle
from serving.errors import BundleError, GateRejected, HubheadError
from trainer import dataset
from trainer.dataset import Subset
from trainer.dataset.download import no_progress
from trainer.evaluation import cross_validation
from trainer.evaluation.cross_validation import CrossValidation, CrossValidationScheme, cross_validate
from trainer.evaluation.metrics import Evaluation
from trainer.evaluation.training_record import FittedHead, TrainingData, TrainingRecord
from trainer.evaluation.version_changes import LiveComparison
from trainer.heads import Selection, Vectors
from trainer.preprocessing import Augmentation
from trainer.training import live_comparison, steps, tensorboard
from trainer.training.config import TrainResult, TrainSettings
from trainer.training.outputs import Outputs
from trainer.training.steps import Embedder, Reporter


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
    reporter, clock = Reporter(say, progress), _Clock()
    embedder, outputs = _make_embedder(settings), Outputs.from_settings(settings)
    is_cross_validated = settings.cross_validate is not None
    with clock.step("scan"):
        listing = dataset.scan(settings.image_dir, settings.columns, progress=progress)
        dataset.check_listing(listing, settings.split)
        outputs.check_writable()
        is_required = bool(settings.compare_with) or settings.assert_not_worse_than_live is not None
        live = _find_live_bundle(settings.compare_with, outputs.model_dir, say, is_required=is_required)
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
        outputs.model_dir.name,
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
    if outputs.summaries:
        with clock.step("summaries"):
            tensorboard.write(outputs.summaries, data, fitted)
    with clock.step("export"):
        published = outputs.publish(base, record)
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


def describe_settings(settings: TrainSettings, selection: Selection) -> dict[str, Any]:
    """Return the settings that the user asked for, with those that were chosen for the head."""
    described = asdict(settings)
    del described["head_settings"]
    described["head"] = selection.settings
    if settings.augmentation == Augmentation():
        described["views"] = 0
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


def _find_live_bundle(
    compare_with: str | Path, model_dir: Path, say: Callable[[str], None], *, is_required: bool
) -> Bundle | None:
    """Return the version to compare with.

    Args:
        compare_with: version that the user named; "" for the newest one below `model_dir`.
        model_dir: base path of the model.
        say: for the reason why there will be no comparison.
        is_required: True if the user asked for the comparison, or made the publication depend on it.

    Raises:
        BundleError: the version cannot be read, and the comparison is required.
    """
    try:
        return live_comparison.find_live_version(compare_with, model_dir)
    except BundleError as error:
        if is_required:
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
