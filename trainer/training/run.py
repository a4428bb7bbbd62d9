"""Training from end to end: scan, embed once, fit the head, evaluate, export."""

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
from batch.inputs.manifest import is_manifest
from batch.jobs import score
from batch.monitoring.stats import Progress
from serving import bundle
from serving.bundle import Bundle, training_digests
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

PARITY_PHOTOS = 8
"""Test photos that the exported bundle is held against the training path on."""


def train(
    settings: TrainSettings,
    *,
    say: Callable[[str], None] = no_progress,
    progress: Callable[[Progress], None] | None = None,
) -> TrainResult:
    """Retrain the head on a folder of labelled photos and publish the bundle.

    Args:
        settings: see TrainSettings.
        say: called with one line for everything that the user should know on the way.
        progress: called as photos are embedded.

    Raises:
        InputError: the folder or a setting cannot be used.
        OutputError: a place cannot be written.
        FetchError: the backbone cannot be fetched.
        BundleError: the exported bundle did not pass its checks; nothing was published.
    """
    settings = replace(settings, head_settings=_placed(settings))
    clock = _Clock()
    with clock.step("scan"):
        folder = _listed(settings, progress)
        dataset.check_listing(folder, settings.split)
        check_places(settings)
        live_bundle = _find_live(settings, say)
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
                f"The features of {len(features.examples)} photos take more than the "
                f"{settings.head_settings.memory / 1e9:.1f} GB that they may: they are read from a file."
            )
    with clock.step("divide"):
        for sentence in dataset.describe_conflicting_labels(features.examples, folder.labels):
            say(sentence)
        counts = dataset.count_labels(features.examples, folder.labels)
        subsets, found_twice, groups = _divide(features, folder.labels, settings, say, progress)
        for sentence in (
            *dataset.describe_missing_labels(features.examples, subsets, folder.labels),
            *found_twice.describe(),
        ):
            say(sentence)
    rows = {subset: np.array([s is subset for s in subsets], bool) for subset in Subset}
    targets = np.array([example.label for example in features.examples], np.int64)
    if settings.cross_validate:
        cross_validation.check_groups(targets, folder.labels, groups)
    if settings.fine_tune:
        with clock.step("fine-tune"):
            tuned = _tuned(folder, features, rows, settings, say)
        tuned["compare_with"] = live_bundle.path if live_bundle else live_comparison.NONE
        return train(replace(settings, fine_tune=None, **tuned), say=say, progress=progress)
    with clock.step("views"):
        used = np.concatenate([np.flatnonzero(rows[s]) for s in (Subset.TRAINING, Subset.VALIDATION)])
        # A cross-validation trains on every photo in its turn.
        viewed = np.arange(len(targets)) if settings.cross_validate else used
        of_viewed = _views(
            folder, [features.examples[row] for row in viewed.tolist()], settings, say, progress
        )
        views = [view[used] for view in of_viewed] if settings.cross_validate else of_viewed
    with clock.step("fit"):
        fitted, selection = _fit(features.embeddings, targets, rows, len(folder.labels), views, settings)
        held_out = metrics.evaluate(selection.probabilities, selection.targets, folder.labels)
        verdicts = HeadPredictions.from_embeddings(fitted, features.embeddings, targets)
        test_rows = np.flatnonzero(rows[Subset.TESTING])
        of_test = predict_probabilities(fitted, features.embeddings, test_rows)
        test = metrics.evaluate(of_test, targets[test_rows], folder.labels) if len(test_rows) else None
        answering = _threshold(selection, settings.precision)
        novelty = _novelty(fitted, selection, features.embeddings, targets, rows, settings)
    subset_counts = {str(subset): int(rows[subset].sum()) for subset in Subset}
    check_accuracy(test or held_out, settings.assert_accuracy_at_least)
    comparison = None
    if live_bundle:
        with clock.step("compare"):
            comparison = _compared(
                live_bundle,
                base.metadata.fingerprint,
                folder.labels,
                [features.examples[row] for row in test_rows.tolist()],
                features.embeddings[test_rows],
                of_test,
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
                views=of_viewed,
                groups=groups,
                progress=lambda done, fits: say(f"Cross-validation: {done} of {fits} heads"),
            )
    if settings.summaries_dir:
        with clock.step("summaries"):
            tensorboard.write(
                settings.summaries_dir,
                features.embeddings,
                features.examples,
                subsets,
                folder.labels,
                fitted=fitted,
                selection=selection,
                held_out=held_out,
                test=test,
            )
    page = report.compose(
        settings.saved_model_dir.name,
        folder.labels,
        features.examples,
        subsets,
        verdicts,
        selection=selection,
        held_out=held_out,
        test=test,
        comparison=comparison,
        cross_validation=cross_validated,
        duplicates=found_twice,
        left_out=features.left_out,
        top=str(settings.image_dir),
        settings=_told(settings, selection),
        seconds=clock.seconds,
        versions=get_package_versions(),
        created=time.strftime("%d %B %Y, %H:%M UTC", time.gmtime()),
    )
    with clock.step("export"):
        part = HeadExport(
            fitted,
            folder.labels,
            threshold=answering.value if answering else 0.0,
            novelty=novelty,
            top_k=settings.top_k,
            settings=selection.settings,
            report=(lambda path: report.write(path, page)) if settings.report else None,
            tflite=_tflite(features.examples, rows, settings),
            metrics={
                "test": test.to_dict() if test else None,
                selection.method: held_out.to_dict() | {"strength": selection.strength},
                "comparison": comparison.to_dict() if comparison else None,
                "cross_validate": cross_validated.to_dict() if cross_validated else None,
                "abstain": {
                    "threshold": answering.to_dict() if answering else None,
                    "known_photos_kept": asdict(novelty.kept) if novelty else None,
                },
            },
            data={
                "photos": subset_counts,
                "labels": counts,
                "left_out": len(features.left_out),
                "duplicates": len(features.files) - len(features.examples),
                "near_duplicates": sum(len(group.pictures) for group in found_twice.near),
                "test_photos_like_training_photos": len(found_twice.leaked_photos()),
                "split": asdict(settings.split),
                "seed": settings.seed,
                "augmentation": asdict(settings.augmentation),
                "views": len(views),
            },
            trained_on=training_digests.truncate_digests(
                features.examples[row].sha256 for row in used.tolist()
            ),
        )
        checked = (test_rows if len(test_rows) else np.arange(len(targets)))[:PARITY_PHOTOS]
        sent = _as_served(features.examples, checked)
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
        answering=answering,
        known_kept=novelty.kept if novelty else None,
        subsets=subset_counts,
        labels=counts,
        left_out=features.left_out,
        duplicates=found_twice,
        test_photos=tuple(
            (features.examples[row].uri, folder.labels[targets[row]]) for row in test_rows.tolist()
        ),
        misclassified=_misclassified(features.examples, verdicts, targets, test_rows, folder.labels),
        seconds=clock.seconds,
        comparison=comparison,
        cross_validation=cross_validated,
    )


def _placed(settings: TrainSettings) -> HeadSettings:
    """What does not fit in memory goes to the cache directory, which is on a disk."""
    return replace(settings.head_settings, directory=settings.head_settings.directory or settings.cache)


def check_places(settings: TrainSettings) -> None:
    """See that what the run will write can be written, before any work.

    Raises:
        OutputError: it cannot.
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


def _told(settings: TrainSettings, selection: heads.Selection) -> dict[str, Any]:
    """The settings for a reader of the report, those chosen for the head behind those asked for.

    Where files lie on this machine is nobody's business.
    """
    told = asdict(settings)
    del told["head_settings"]
    told["head"] = selection.settings
    for name in (
        "cache",
        "embedding_store",
        "saved_model_dir",
        "output_labels",
        "summaries_dir",
        "tflite_output_file",
    ):
        del told[name]
    return told


def check_accuracy(found: Evaluation, least: float | None) -> None:
    """Refuse a head that is not accurate enough.

    Raises:
        GateRejected: with the figure and its interval.
    """
    if least is not None and found.accuracy.value < least:
        raise GateRejected(
            f"The accuracy is {found.accuracy}, below the {least:.1%} of --assert_accuracy_at_least; "
            "nothing was published.",
            remedy="Add photos, look at the misclassified ones, or ask for less.",
        )


def _find_live(settings: TrainSettings, say: Callable[[str], None]) -> Bundle | None:
    """The version to compare with; one that cannot be read stops only who asked for it or relies on it.

    Raises:
        BundleError: it cannot be read.
    """
    try:
        return live_comparison.find(settings.compare_with, settings.saved_model_dir)
    except BundleError as error:
        if settings.compare_with or settings.assert_not_worse_than_live is not None:
            raise
        say(f"There will be no comparison with the live version. {error.what}")
        return None


def _compared(
    other: Bundle,
    fingerprint: str,
    labels: Sequence[str],
    examples: Sequence[Example],
    embeddings: Vectors,
    probabilities: Floats,
    settings: TrainSettings,
    say: Callable[[str], None],
) -> LiveComparison | None:
    """`live.judge` and what follows of it.

    Raises:
        GateRejected: the new version is worse than it may be, or that cannot be told and was to be.
    """
    try:
        found = live_comparison.judge(other, fingerprint, labels, examples, embeddings, probabilities)
    except HubheadError as error:
        if settings.assert_not_worse_than_live is not None:
            raise GateRejected(
                f"It cannot be told whether this is worse than version {other.version} of {other.name}: "
                f"{error.what} Nothing was published (--assert_not_worse_than_live).",
                remedy=error.remedy,
            ) from error
        say(f"There is no comparison with the live version. {error.what}")
        return None
    if settings.assert_not_worse_than_live is not None:
        live_comparison.check(found, settings.assert_not_worse_than_live)
    return found


def _threshold(selection: heads.Selection, precision: float | None) -> Threshold | None:
    if precision is None:
        return None
    return abstention.threshold_for_precision(selection.probabilities, selection.targets, precision)


def _novelty(
    fitted: heads.Head,
    selection: heads.Selection,
    embeddings: Vectors,
    targets: Ints,
    rows: dict[Subset, np.ndarray],
    settings: TrainSettings,
) -> Novelty | None:
    """The novelty score of the photos that the head was fitted on: test photos take no part."""
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
    """One label a line, in the order of the model's outputs."""
    path.write_text("".join(f"{label}\n" for label in labels), encoding="utf-8")


def _as_served(examples: Sequence[Example], rows: Ints) -> dict[int, bytes]:
    """The photos of some rows as they are sent to a model: what its graph does not decode is converted."""
    with Converter() as converter:
        sent = {int(row): converter.convert_if_needed(files.read(examples[row].uri)) for row in rows}
    return {row: photo for row, photo in sent.items() if isinstance(photo, bytes)}


def _tflite(
    examples: Sequence[Example], rows: dict[Subset, np.ndarray], settings: TrainSettings
) -> TfliteOptions | None:
    """With test photos to check the file on."""
    if settings.tflite is None:
        return None
    training, testing = np.flatnonzero(rows[Subset.TRAINING]), np.flatnonzero(rows[Subset.TESTING])
    photos = _as_served(examples, _spread(testing if len(testing) else training, tflite.MAX_PHOTOS))
    return TfliteOptions(settings.tflite, list(photos.values()))


def _spread(rows: Ints, count: int) -> Ints:
    """At most so many of some rows, evenly taken, so that all labels are among them."""
    return rows[np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(np.int64))]


def _listed(settings: TrainSettings, progress: Callable[[Progress], None] | None) -> DatasetListing:
    if is_manifest(settings.image_dir):
        return dataset.scan_manifest(settings.image_dir, settings.columns, progress=progress)
    return dataset.scan(settings.image_dir)


def _divide(
    features: Features,
    labels: Sequence[str],
    settings: TrainSettings,
    say: Callable[[str], None],
    progress: Callable[[Progress], None] | None,
) -> tuple[list[Subset], DuplicateReport, Ints]:
    """The set of each photo, what is there more than once, and numbers of what has to stay together."""
    examples = features.examples
    looked_for = settings.near_duplicates is not NearDuplicatesOption.IGNORE
    if looked_for and len(examples) >= heads.MANY:
        say(f"Looking for near-duplicates among {len(examples)} photos (skip it: --near_duplicates ignore)")
    near = near_duplicates.find_near_duplicates(
        features.embeddings if looked_for else features.embeddings[:0],
        settings.near_threshold,
        progress=progress if looked_for else None,
    )
    together = near.together if settings.near_duplicates is NearDuplicatesOption.TOGETHER else ()
    dataset.check_examples(examples, labels, settings.split, together)
    subsets = dataset.split(examples, settings.split, settings.image_dir, together)
    groups = dataset.assign_groups(examples, together)
    return subsets, near_duplicates.build_report(features.files, examples, subsets, near, labels), groups


def _tuned(
    folder: DatasetListing,
    features: Features,
    rows: dict[Subset, np.ndarray],
    settings: TrainSettings,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """The settings that change where the backbone is a fine-tuned one; its checkpoints are in the cache."""
    assert settings.fine_tune is not None
    targets = np.array([example.label for example in features.examples], np.int64)
    # Of the training photos alone: the validation photos have to tell whether it got any better.
    seen = rows[Subset.TRAINING]
    fitted, _ = heads.fit(features.embeddings[seen], targets[seen], len(folder.labels), seed=settings.seed)
    sets = [np.flatnonzero(rows[subset]) for subset in (Subset.TRAINING, Subset.VALIDATION)]
    photos = [_as_served(features.examples, chosen) for chosen in sets]
    training, validation = ((list(sent.values()), targets[list(sent)]) for sent in photos)
    tuned = fine_tuning.fine_tune(
        load(settings.tfhub_module, settings.cache, options=settings.backbone_input, progress=say),
        fitted,
        *training,
        settings.fine_tune,
        validation=validation if len(validation[1]) else None,
        preprocessing=settings.preprocessing,
        checkpoint_directory=settings.cache / "fine_tuned",
        say=say,
        progress=lambda epoch: say(str(epoch)),
    )
    if tuned.before is not None and tuned.after is not None:
        say(f"Fine-tuned: log-loss of the validation photos {tuned.before:.3f}, now {tuned.after:.3f}")
        if tuned.after >= tuned.before:
            say("That is no gain: the backbone is taken as it was.")
            return {}
    say("The backbone has seen the photos of the cross-validation: trust the figures of the test photos.")
    return {"tfhub_module": str(tuned.path), "backbone_input": tuned.options}


def _views(
    folder: DatasetListing,
    examples: Sequence[Example],
    settings: TrainSettings,
    say: Callable[[str], None],
    progress: Callable[[Progress], None] | None,
) -> list[Vectors]:
    """Embeddings float16 [N,D] of each random view of the examples, from stores of their own."""
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
        say(f"View {number + 1} of {settings.views} of {len(photos)} photos")
        score.embed(photos, base.path, store, progress=progress)
        store.lookup_digests(photos)
        found.append(load_embeddings(examples, store, settings.head_settings))
    return found


def _fit(
    embeddings: Vectors,
    targets: Ints,
    rows: dict[Subset, np.ndarray],
    classes: int,
    views: Sequence[Vectors],
    settings: TrainSettings,
) -> tuple[heads.Head, heads.Selection]:
    """The head of the training and validation photos; of many, no more than blocks are in memory at once."""
    training, held = (np.flatnonzero(rows[subset]) for subset in (Subset.TRAINING, Subset.VALIDATION))
    how: dict[str, Any] = {"settings": settings.head_settings, "seed": settings.seed}
    used = np.concatenate([training, held])
    if len(used) < heads.MANY:
        validation = (embeddings[held], targets[held]) if len(held) else None
        return heads.fit(
            embeddings[training], targets[training], classes, validation=validation, views=views, **how
        )
    apart = len(held) >= heads.ENOUGH_VALIDATION
    seen = training if apart else used
    return heads.fit_blocks(
        Blocks.of(embeddings, targets, chosen=seen),
        classes,
        validation=Blocks.of(embeddings, targets, chosen=held) if apart else None,
        views=[Blocks.of(view[: len(seen)], targets[seen]) for view in views],
        **how,
    )


def _misclassified(
    examples: Sequence[Example], verdicts: HeadPredictions, targets: Ints, rows: Ints, labels: Sequence[str]
) -> tuple[tuple[str, str, str, float], ...]:
    wrong = rows[verdicts.best[rows] != targets[rows]]
    return tuple(
        (examples[row].uri, labels[targets[row]], labels[verdicts.best[row]], float(verdicts.score[row]))
        for row in wrong.tolist()
    )


class _Clock:
    """Wall seconds by step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start
