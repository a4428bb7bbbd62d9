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

from batch.embeddings import EmbeddingStore
from batch.jobs import score
from batch.monitoring.stats import Progress
from serving import bundle
from serving.bundle import Bundle, training_digests
from serving.bundle.training_digests import TestPhotos
from serving.errors import BundleError, GateRejected, HubheadError, OutputError
from serving.photos.converter import Converter
from serving.storage import files
from trainer import dataset, heads, report
from trainer.backbones import load
from trainer.dataset import DatasetListing, Example, Subset, near_duplicates
from trainer.dataset.download import no_progress
from trainer.dataset.near_duplicates import DuplicateReport
from trainer.evaluation import abstention, cross_validation, metrics
from trainer.evaluation.abstention import Threshold
from trainer.evaluation.cross_validation import CrossValidationScheme, cross_validate
from trainer.evaluation.features import (
    Features,
    HeadPredictions,
    load_embeddings,
    load_features,
    predict_probabilities,
)
from trainer.evaluation.metrics import Evaluation
from trainer.evaluation.novelty import Novelty
from trainer.evaluation.version_changes import LiveComparison
from trainer.export import tflite
from trainer.export.bundle import HeadExport, export
from trainer.export.templates import get_package_versions, prepare_template, prepare_view_template
from trainer.export.tflite import TfliteOptions
from trainer.heads import Blocks, Floats, HeadSettings, Ints, Vectors
from trainer.preprocessing import Augmentation
from trainer.training import fine_tuning, live_comparison, tensorboard
from trainer.training.config import NearDuplicatesOption, TrainResult, TrainSettings
from trainer.training.tuning_photos import LabelledPhotos, TuningPhotos

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
    settings = replace(settings, head_settings=_set_spill_directory(settings))
    clock = _Clock()
    with clock.step("scan"):
        folder = dataset.scan(settings.image_dir, settings.columns, progress=progress)
        dataset.check_listing(folder, settings.split)
        check_outputs_writable(settings)
        live_bundle = _find_live_bundle(settings, say)
        for warning in folder.warnings:
            say(warning)
    with clock.step("backbone"):
        base = prepare_template(
            settings.tfhub_module,
            settings.cache,
            settings.preprocessing,
            options=settings.backbone_input,
            say=say,
        )
    with clock.step("embed"):
        store = EmbeddingStore(settings.embedding_store, base.metadata.fingerprint, base.metadata.dimension)
        score.embed(list(folder.photos), base.path, store, progress=progress)
        features = load_features(folder, store, settings.head_settings)
        if isinstance(features.embeddings, np.memmap):
            say(
                f"The features of {len(features.examples)} photos exceed the memory limit of "
                f"{settings.head_settings.memory / 1e9:.1f} GB and are read from a file."
            )
    with clock.step("divide"):
        for sentence in dataset.describe_conflicting_labels(features.examples, folder.labels):
            say(sentence)
        counts = dataset.count_labels(features.examples, folder.labels)
        subsets, duplicates, groups = _split_photos(features, folder.labels, settings, say, progress)
        for sentence in (
            *dataset.describe_missing_labels(features.examples, subsets, folder.labels),
            *duplicates.describe(),
        ):
            say(sentence)
    rows = {subset: np.array([s is subset for s in subsets], bool) for subset in Subset}
    targets = np.array([example.label for example in features.examples], np.int64)
    if settings.cross_validate:
        cross_validation.check_groups(targets, folder.labels, groups)
    if settings.fine_tune:
        with clock.step("fine-tune"):
            tuned = _fine_tune(folder, features, rows, settings, say)
        # The live version stays the one found above, even if another one is published meanwhile.
        tuned["compare_with"] = live_bundle.path if live_bundle else live_comparison.NO_COMPARISON
        return train(replace(settings, fine_tune=None, **tuned), say=say, progress=progress)
    with clock.step("views"):
        used = np.concatenate([np.flatnonzero(rows[s]) for s in (Subset.TRAINING, Subset.VALIDATION)])
        # A cross-validation trains on every photo in turn, test photos included.
        viewed = np.arange(len(targets)) if settings.cross_validate else used
        all_views = _embed_views(
            folder, [features.examples[row] for row in viewed.tolist()], settings, say, progress
        )
        views = [view[used] for view in all_views] if settings.cross_validate else all_views
    with clock.step("fit"):
        fitted, selection = _fit_head(features.embeddings, targets, rows, len(folder.labels), views, settings)
        held_out = metrics.evaluate(selection.probabilities, selection.targets, folder.labels)
        predictions = HeadPredictions.from_embeddings(fitted, features.embeddings, targets)
        test_rows = np.flatnonzero(rows[Subset.TESTING])
        test_probabilities = predict_probabilities(fitted, features.embeddings, test_rows)
        test = (
            metrics.evaluate(test_probabilities, targets[test_rows], folder.labels)
            if len(test_rows)
            else None
        )
        threshold = _choose_threshold(selection, settings.precision)
        novelty = _fit_novelty(fitted, selection, features.embeddings, targets, rows, settings)
    subset_counts = {str(subset): int(rows[subset].sum()) for subset in Subset}
    check_accuracy(test or held_out, settings.assert_accuracy_at_least)
    comparison = None
    if live_bundle:
        with clock.step("compare"):
            comparison = _compare_with_live(
                live_bundle,
                base.metadata.fingerprint,
                folder.labels,
                [features.examples[row] for row in test_rows.tolist()],
                features.embeddings[test_rows],
                test_probabilities,
                settings,
                say,
            )
    cross_validated = None
    if settings.cross_validate:
        with clock.step("cross-validate"):
            cross_validated = cross_validate(
                features.embeddings,
                targets,
                folder.labels,
                scheme=CrossValidationScheme(
                    settings.cross_validate, settings.cross_validate_repeats, settings.seed
                ),
                settings=settings.head_settings,
                views=all_views,
                groups=groups,
                progress=lambda done, fits: say(f"Cross-validation: {done} of {fits} heads fitted"),
            )
    if settings.summaries_dir:
        with clock.step("summaries"):
            logged = tensorboard.LoggedTraining(
                features.embeddings,
                features.examples,
                subsets,
                folder.labels,
                fitted=fitted,
                selection=selection,
                held_out=held_out,
                test=test,
            )
            tensorboard.write(settings.summaries_dir, logged)
    page = report.compose(
        settings.saved_model_dir.name,
        folder.labels,
        features.examples,
        subsets,
        predictions,
        selection=selection,
        held_out=held_out,
        test=test,
        comparison=comparison,
        cross_validation=cross_validated,
        duplicates=duplicates,
        left_out=features.left_out,
        top=str(settings.image_dir),
        settings=_describe_settings(settings, selection),
        seconds=clock.seconds,
        versions=get_package_versions(),
        created=time.strftime("%d %B %Y, %H:%M UTC", time.gmtime()),
    )
    with clock.step("export"):
        part = HeadExport(
            fitted,
            folder.labels,
            threshold=threshold.value if threshold else 0.0,
            novelty=novelty,
            top_k=settings.top_k,
            settings=selection.settings,
            report=(lambda path: report.write(path, page)) if settings.report else None,
            tflite=_make_tflite_options(features.examples, rows, settings),
            metrics={
                "test": test.to_dict() if test else None,
                selection.method: held_out.to_dict() | {"strength": selection.strength},
                "comparison": comparison.to_dict() if comparison else None,
                "cross_validate": cross_validated.to_dict() if cross_validated else None,
                "abstain": {
                    "threshold": threshold.to_dict() if threshold else None,
                    "known_photos_kept": asdict(novelty.kept) if novelty else None,
                },
            },
            data={
                "photos": subset_counts,
                "labels": counts,
                "left_out": len(features.left_out),
                "duplicates": len(features.files) - len(features.examples),
                "near_duplicates": sum(len(group.pictures) for group in duplicates.near),
                "test_photos_like_training_photos": len(duplicates.leaked_photos()),
                "split": asdict(settings.split),
                "seed": settings.seed,
                "augmentation": asdict(settings.augmentation),
                "views": len(views),
            },
            trained_on=training_digests.truncate_digests(
                features.examples[row].sha256 for row in used.tolist()
            ),
            test_photos=TestPhotos(
                tuple(features.examples[row].sha256 for row in test_rows.tolist()),
                tuple(folder.labels[targets[row]] for row in test_rows.tolist()),
            ),
        )
        checked = (test_rows if len(test_rows) else np.arange(len(targets)))[:PARITY_PHOTOS]
        sent = _read_as_sent(features.examples, checked)
        published = export(
            base,
            part,
            settings.saved_model_dir,
            photos=list(sent.values()),
            probabilities=fitted.probabilities(features.embeddings[list(sent)]),
        )
        if settings.output_labels:
            write_labels(folder.labels, settings.output_labels)
        if settings.tflite_output_file:
            shutil.copyfile(published.path / tflite.BUNDLE_FILE, settings.tflite_output_file)
    return TrainResult(
        bundle=published,
        test=test,
        held_out=held_out,
        method=selection.method,
        threshold=threshold,
        known_kept=novelty.kept if novelty else None,
        subsets=subset_counts,
        labels=counts,
        left_out=features.left_out,
        duplicates=duplicates,
        test_photos=tuple(
            (features.examples[row].uri, folder.labels[targets[row]]) for row in test_rows.tolist()
        ),
        misclassified=_list_misclassified(features.examples, predictions, targets, test_rows, folder.labels),
        seconds=clock.seconds,
        comparison=comparison,
        cross_validation=cross_validated,
    )


def _set_spill_directory(settings: TrainSettings) -> HeadSettings:
    """Return the head settings with the cache as the directory of what does not fit in memory.

    The default, the directory of temporary files, may itself be in memory.
    """
    return replace(settings.head_settings, directory=settings.head_settings.directory or settings.cache)


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


def _describe_settings(settings: TrainSettings, selection: heads.Selection) -> dict[str, Any]:
    """Return the settings for the report, with those that were chosen for the head."""
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
    other: Bundle,
    fingerprint: str,
    labels: Sequence[str],
    examples: Sequence[Example],
    embeddings: Vectors,
    probabilities: Floats,
    settings: TrainSettings,
    say: Callable[[str], None],
) -> LiveComparison | None:
    """Compare the new version with the live one, and check that it is not worse if that is required.

    Raises:
        GateRejected: the new version is worse than allowed, or a required comparison is not possible.
    """
    try:
        comparison = live_comparison.compare_with_live(
            other, fingerprint, labels, examples, embeddings, probabilities
        )
    except HubheadError as error:
        if settings.assert_not_worse_than_live is not None:
            raise GateRejected(
                f"The comparison with version {other.version} of {other.name} failed: {error.what} "
                "Nothing was published (--assert_not_worse_than_live).",
                remedy=error.remedy,
            ) from error
        say(f"The new version was not compared with the live one. {error.what}")
        return None
    if settings.assert_not_worse_than_live is not None:
        live_comparison.check_not_worse(comparison, settings.assert_not_worse_than_live)
    return comparison


def _choose_threshold(selection: heads.Selection, precision: float | None) -> Threshold | None:
    """Return the threshold for a precision on the held-out photos; None where none is requested."""
    if precision is None:
        return None
    return abstention.threshold_for_precision(selection.probabilities, selection.targets, precision)


def _fit_novelty(
    fitted: heads.Head,
    selection: heads.Selection,
    embeddings: Vectors,
    targets: Ints,
    rows: dict[Subset, np.ndarray],
    settings: TrainSettings,
) -> Novelty | None:
    """Return the novelty score of the photos that the head was fitted on, without the test photos."""
    if settings.keep_known is None:
        return None
    return Novelty.fit(
        fitted,
        selection,
        embeddings,
        targets,
        rows=np.flatnonzero(~rows[Subset.TESTING]),
        kept=settings.keep_known,
        settings=settings.head_settings,
        seed=settings.seed,
    )


def write_labels(labels: Sequence[str], path: Path) -> None:
    """Write the labels, one per line, in the order of the model's outputs."""
    path.write_text("".join(f"{label}\n" for label in labels), encoding="utf-8")


def _read_as_sent(examples: Sequence[Example], rows: Ints) -> dict[int, bytes]:
    """Return the photos of some rows as they are sent to a model, by row.

    Formats that its graph does not decode are converted; photos that cannot be are left out.
    """
    with Converter() as converter:
        sent = {int(row): converter.convert_if_needed(files.read(examples[row].uri)) for row in rows}
    return {row: photo for row, photo in sent.items() if isinstance(photo, bytes)}


def _make_tflite_options(
    examples: Sequence[Example], rows: dict[Subset, np.ndarray], settings: TrainSettings
) -> TfliteOptions | None:
    """Return the options of the TensorFlow Lite file, with test photos for its check; None for no file."""
    if settings.tflite is None:
        return None
    training, testing = np.flatnonzero(rows[Subset.TRAINING]), np.flatnonzero(rows[Subset.TESTING])
    photos = _read_as_sent(examples, _pick_evenly(testing if len(testing) else training, tflite.MAX_PHOTOS))
    return TfliteOptions(settings.tflite, list(photos.values()))


def _pick_evenly(rows: Ints, count: int) -> Ints:
    """Return at most `count` rows, evenly spaced, so that all labels are among them."""
    return rows[np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(np.int64))]


def _split_photos(
    features: Features,
    labels: Sequence[str],
    settings: TrainSettings,
    say: Callable[[str], None],
    progress: Callable[[Progress], None] | None,
) -> tuple[list[Subset], DuplicateReport, Ints]:
    """Split the photos.

    Returns:
        The set of each photo, the duplicates, and int64 [N]: photos with the same number stay together.
    """
    examples = features.examples
    is_searched = settings.near_duplicates is not NearDuplicatesOption.IGNORE
    if is_searched and len(examples) >= heads.LARGE_DATASET:
        say(
            f"Searching for near-duplicates among {len(examples)} photos "
            "(--near_duplicates ignore skips this)"
        )
    near = near_duplicates.find_near_duplicates(
        features.embeddings if is_searched else features.embeddings[:0],
        settings.near_threshold,
        progress=progress if is_searched else None,
    )
    together = near.together if settings.near_duplicates is NearDuplicatesOption.TOGETHER else ()
    dataset.check_examples(examples, labels, settings.split, together)
    subsets = dataset.split(examples, settings.split, settings.image_dir, together)
    groups = dataset.assign_groups(examples, together)
    return subsets, near_duplicates.build_report(features.files, examples, subsets, near, labels), groups


def _fine_tune(
    folder: DatasetListing,
    features: Features,
    rows: dict[Subset, np.ndarray],
    settings: TrainSettings,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Fine-tune the backbone, with checkpoints in the cache.

    Returns:
        The settings that change: those of the tuned backbone, or none if it is not better.
    """
    assert settings.fine_tune is not None
    targets = np.array([example.label for example in features.examples], np.int64)
    # The head sees training photos alone, so that the validation photos show whether tuning helps.
    seen = rows[Subset.TRAINING]
    fitted, _ = heads.fit(features.embeddings[seen], targets[seen], len(folder.labels), seed=settings.seed)
    sets = [np.flatnonzero(rows[subset]) for subset in (Subset.TRAINING, Subset.VALIDATION)]
    photos = [_read_as_sent(features.examples, chosen) for chosen in sets]
    training, validation = (LabelledPhotos(list(sent.values()), targets[list(sent)]) for sent in photos)
    tuned = fine_tuning.fine_tune(
        load(settings.tfhub_module, settings.cache, options=settings.backbone_input, progress=say),
        fitted,
        TuningPhotos(training, validation if len(validation.targets) else None),
        settings.fine_tune,
        preprocessing=settings.preprocessing,
        checkpoint_directory=settings.cache / "fine_tuned",
        say=say,
        progress=lambda epoch: say(str(epoch)),
    )
    if tuned.before is not None and tuned.after is not None:
        say(f"Fine-tuned: validation log-loss {tuned.before:.3f} before, {tuned.after:.3f} after")
        if tuned.after >= tuned.before:
            say("Fine-tuning did not lower the validation log-loss; the pretrained backbone is used.")
            return {}
    say(
        "The tuned backbone was trained on the photos of the cross-validation, whose figures are therefore "
        "too good; those of the test photos are not."
    )
    return {"tfhub_module": str(tuned.path), "backbone_input": tuned.options}


def _embed_views(
    folder: DatasetListing,
    examples: Sequence[Example],
    settings: TrainSettings,
    say: Callable[[str], None],
    progress: Callable[[Progress], None] | None,
) -> list[Vectors]:
    """Return embeddings float16 [N,D] of each random view of the examples, from a store for each view."""
    if settings.augmentation == Augmentation():
        return []
    photo_of = {photo.uri: photo for photo in folder.photos}
    photos = [photo_of[example.uri] for example in examples]
    found: list[Vectors] = []
    for number in range(settings.views):
        base = prepare_view_template(
            settings.tfhub_module,
            settings.cache,
            settings.preprocessing,
            settings.augmentation,
            number,
            options=settings.backbone_input,
            say=say,
        )
        store = EmbeddingStore(settings.embedding_store, base.metadata.fingerprint, base.metadata.dimension)
        say(f"Embedding view {number + 1} of {settings.views} of {len(photos)} photos")
        score.embed(photos, base.path, store, progress=progress)
        store.lookup_digests(photos)
        found.append(load_embeddings(examples, store, settings.head_settings))
    return found


def _fit_head(
    embeddings: Vectors,
    targets: Ints,
    rows: dict[Subset, np.ndarray],
    classes: int,
    views: Sequence[Vectors],
    settings: TrainSettings,
) -> tuple[heads.Head, heads.Selection]:
    """Fit the head on the training and validation photos; many photos are processed in blocks."""
    training, held = (np.flatnonzero(rows[subset]) for subset in (Subset.TRAINING, Subset.VALIDATION))
    options: dict[str, Any] = {"settings": settings.head_settings, "seed": settings.seed}
    used = np.concatenate([training, held])
    if len(used) < heads.LARGE_DATASET:
        validation = (embeddings[held], targets[held]) if len(held) else None
        return heads.fit(
            embeddings[training], targets[training], classes, validation=validation, views=views, **options
        )
    # Enough validation photos choose the settings; fewer join a cross-validation over all photos.
    apart = len(held) >= heads.ENOUGH_VALIDATION
    seen = training if apart else used
    return heads.fit_blocks(
        Blocks.from_array(embeddings, targets, chosen=seen),
        classes,
        validation=Blocks.from_array(embeddings, targets, chosen=held) if apart else None,
        views=[Blocks.from_array(view[: len(seen)], targets[seen]) for view in views],
        **options,
    )


def _list_misclassified(
    examples: Sequence[Example],
    predictions: HeadPredictions,
    targets: Ints,
    rows: Ints,
    labels: Sequence[str],
) -> tuple[tuple[str, str, str, float], ...]:
    """Return (path, label, predicted label, its probability) of the misclassified photos among `rows`."""
    best, score = predictions.best, predictions.score
    wrong = rows[best[rows] != targets[rows]]
    return tuple(
        (examples[row].uri, labels[targets[row]], labels[best[row]], float(score[row]))
        for row in wrong.tolist()
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
