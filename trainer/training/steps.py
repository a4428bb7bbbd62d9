"""Steps of a training run. Each takes what it needs and returns its part of the record."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from batch.embeddings import EmbeddingStore
from batch.inputs.listing import Photo
from batch.jobs import score
from batch.monitoring.engines import EngineRecord
from batch.monitoring.stats import Progress, Stats
from serving.bundle import Bundle
from serving.errors import InputError
from serving.photos.converter import Converter
from serving.storage import files
from trainer import dataset, heads
from trainer.backbones.hub import load
from trainer.dataset import DatasetListing, Example, SplitSettings, Subset, near_duplicates
from trainer.dataset.download import no_progress
from trainer.evaluation import abstention, metrics, suspects
from trainer.evaluation.cross_validation import CrossValidation
from trainer.evaluation.features import (
    Features,
    HeadPredictions,
    load_embeddings,
    load_features,
    predict_probabilities,
)
from trainer.evaluation.novelty import Novelty
from trainer.evaluation.training_record import FittedHead, TrainingData
from trainer.export.templates import prepare_template
from trainer.heads import Blocks, Ints, Vectors
from trainer.preprocessing import Augmentation
from trainer.training import fine_tuning
from trainer.training.config import (
    AnswerSettings,
    DivisionSettings,
    EmbeddingSettings,
    NearDuplicatesOption,
)
from trainer.training.fine_tune_types import FineTuneSettings
from trainer.training.tuning_photos import LabelledPhotos, TuningPhotos


@dataclass(frozen=True)
class Reporter:
    """Functions by which a run reports to the user.

    Attributes:
        say: is called with lines of text.
        progress: is called as photos are listed and embedded; None for no progress.
        embedded: statistics of the photos that were embedded so far.
    """

    say: Callable[[str], None] = no_progress
    progress: Callable[[Progress], None] | None = None
    embedded: list[Stats] = field(default_factory=list)

    def list_engines(self) -> list[EngineRecord]:
        """Return what embedded the photos so far; nothing if the embeddings of all were stored."""
        return sum(self.embedded, Stats()).list_engines()


def make_template(
    settings: EmbeddingSettings, reporter: Reporter, view: tuple[Augmentation, int] | None = None
) -> Bundle:
    """Return the headless bundle of the backbone, or of a random view of the photos, built on first use."""
    return prepare_template(
        settings.tfhub_module,
        settings.cache,
        settings.preprocessing,
        view=view,
        options=settings.backbone_input,
        say=reporter.say,
    )


def open_store(settings: EmbeddingSettings, base: Bundle) -> EmbeddingStore:
    """Open the embedding store of a template."""
    return EmbeddingStore(settings.embedding_store, base.metadata.fingerprint, base.metadata.dimension)


def embed(
    settings: EmbeddingSettings,
    head_settings: heads.HeadSettings,
    listing: DatasetListing,
    base: Bundle,
    reporter: Reporter,
) -> tuple[DatasetListing, Features]:
    """Embed the photos that the store does not have.

    Returns:
        The listing without the labels of which no photo can be used, and the features of all photos.
    """
    store = open_store(settings, base)
    _fill_store(settings, listing.photos, base, store, reporter)
    features = load_features(listing, store, head_settings)
    if isinstance(features.embeddings, np.memmap):
        reporter.say(
            f"The features of {len(features.examples)} photos exceed the memory limit of "
            f"{head_settings.memory / 1e9:.1f} GB and are read from a file."
        )
    return _leave_out_unusable_labels(listing, features, reporter)


def _fill_store(
    settings: EmbeddingSettings,
    photos: Iterable[Photo],
    base: Bundle,
    store: EmbeddingStore,
    reporter: Reporter,
) -> None:
    """Embed the photos that the store does not have."""
    found = score.embed(list(photos), base.path, store, progress=reporter.progress, engine=settings.engine)
    reporter.embedded.append(found.this_run)


def _leave_out_unusable_labels(
    listing: DatasetListing, features: Features, reporter: Reporter
) -> tuple[DatasetListing, Features]:
    """Leave out the labels of which no photo can be used, if two others remain."""
    kept = sorted({example.label for example in features.files})
    if len(kept) in (1, len(listing.labels)):  # the checks of the split name the label of a single one
        return listing, features
    for label in sorted(set(range(len(listing.labels))) - set(kept)):
        reporter.say(f"Label {listing.labels[label]!r} has no photo that can be used, and is left out.")
    index = {label: number for number, label in enumerate(kept)}
    examples, all_files = (
        [replace(example, label=index[example.label]) for example in found]
        for found in (features.examples, features.files)
    )
    return listing.keep_labels(kept), replace(features, examples=examples, files=all_files)


def embed_views(
    settings: EmbeddingSettings,
    head_settings: heads.HeadSettings,
    listing: DatasetListing,
    examples: Sequence[Example],
    reporter: Reporter,
) -> list[Vectors]:
    """Return embeddings float16 [N,D] of each random view of the examples, from a store for each view."""
    if settings.augmentation == Augmentation():
        return []
    photo_of = {photo.uri: photo for photo in listing.photos}
    photos = [photo_of[example.uri] for example in examples]
    found: list[Vectors] = []
    for number in range(settings.views):
        base = make_template(settings, reporter, (settings.augmentation, number))
        store = open_store(settings, base)
        reporter.say(f"Embedding view {number + 1} of {settings.views} of {len(photos)} photos")
        _fill_store(settings, photos, base, store, reporter)
        store.lookup_digests(photos)
        found.append(load_embeddings(examples, store, head_settings))
    return found


def check_selectable(labels: Iterable[str | int], held_out: int = 0) -> None:
    """Check that a label has two photos to train on, since settings are selected by photos that are held out.

    Args:
        labels: label of each photo that is not predefined for the test.
        held_out: photos of each label that will be held out for the test.

    Raises:
        InputError: every label has one photo.
    """
    if max(Counter(labels).values(), default=0) - held_out < 2:
        raise InputError(
            "Every label has one photo to train on: none can be held out to select the settings of the head.",
            remedy="Give two photos or more of at least one label, better 20 of each.",
        )


def check_listing(listing: DatasetListing, split: SplitSettings) -> None:
    """Check the numbers of photos before any of them is opened.

    Raises:
        InputError: a label has too few photos for the sets, or no label has two photos to train on.
    """
    dataset.check_listing(listing, split)
    held_out = Subset.TESTING in split.missing_subsets(listing.subsets.values())
    others = (
        label for photo, label in listing.photos.items() if listing.subsets.get(photo.uri) != Subset.TESTING
    )
    check_selectable(others, int(held_out))


def split_photos(
    settings: DivisionSettings,
    listing: DatasetListing,
    image_dir: str | Path,
    features: Features,
    reporter: Reporter,
) -> TrainingData:
    """Find near-duplicates, split the photos, and report what is conspicuous about them.

    Args:
        settings: how to divide them.
        listing: labelled photos.
        image_dir: where they were listed, for messages and a predefined split.
        features: their distinct usable ones with embeddings.
        reporter: for warnings and progress.

    Raises:
        InputError: a label has too few photos for the sets, or no label has two photos to train on.
    """
    examples = features.examples
    for sentence in dataset.describe_conflicting_labels(examples, listing.labels):
        reporter.say(sentence)
    is_searched = settings.near_duplicates is not NearDuplicatesOption.IGNORE
    if is_searched and len(examples) >= heads.LARGE_DATASET:
        reporter.say(
            f"Searching for near-duplicates among {len(examples)} photos "
            "(--near_duplicates ignore skips this)"
        )
    near = near_duplicates.find_near_duplicates(
        features.embeddings if is_searched else features.embeddings[:0],
        settings.near_threshold,
        progress=reporter.progress if is_searched else None,
    )
    together = near.together if settings.near_duplicates is NearDuplicatesOption.TOGETHER else ()
    dataset.check_examples(examples, listing.labels, settings.split, together)
    subsets = dataset.split(examples, settings.split, image_dir, together)
    check_selectable(
        example.label
        for example, subset in zip(examples, subsets, strict=True)
        if subset is not Subset.TESTING
    )
    duplicates = near_duplicates.build_report(features.files, examples, subsets, near, listing.labels)
    for sentence in (
        *dataset.describe_missing_labels(examples, subsets, listing.labels),
        *duplicates.describe(),
    ):
        reporter.say(sentence)
    groups = dataset.assign_groups(examples, together)
    return TrainingData(listing.labels, features, subsets, duplicates, groups)


def fine_tune_backbone(
    settings: EmbeddingSettings, options: FineTuneSettings, data: TrainingData, seed: int, reporter: Reporter
) -> EmbeddingSettings:
    """Fine-tune the backbone, with checkpoints in the cache.

    Returns:
        The settings with the tuned backbone, or unchanged where it did not get better.
    """
    # The head sees training photos alone, so that the validation photos show whether tuning helps.
    seen = data.rows(Subset.TRAINING)
    head, _ = heads.fit(data.embeddings[seen], data.targets[seen], len(data.labels), seed=seed)
    sets = [read_as_sent(data.examples, data.rows(subset)) for subset in (Subset.TRAINING, Subset.VALIDATION)]
    training, validation = (LabelledPhotos(list(sent.values()), data.targets[list(sent)]) for sent in sets)
    tuned = fine_tuning.fine_tune(
        load(settings.tfhub_module, settings.cache, options=settings.backbone_input, progress=reporter.say),
        head,
        TuningPhotos(training, validation),
        options,
        preprocessing=settings.preprocessing,
        checkpoint_directory=settings.cache / "fine_tuned",
        say=reporter.say,
        progress=lambda epoch: reporter.say(str(epoch)),
    )
    if tuned.before is not None and tuned.after is not None:
        reporter.say(f"Fine-tuned: validation log-loss {tuned.before:.3f} before, {tuned.after:.3f} after")
        if tuned.after >= tuned.before:
            reporter.say(
                "Fine-tuning did not lower the validation log-loss; the pretrained backbone is used."
            )
            return settings
    reporter.say(
        "The tuned backbone was trained on the photos of the cross-validation, whose figures are therefore "
        "too good; those of the test photos are not."
    )
    return replace(settings, tfhub_module=str(tuned.path), backbone_input=tuned.options)


def fit_head(
    settings: heads.HeadSettings, data: TrainingData, views: Sequence[Vectors], seed: int
) -> tuple[heads.Head, heads.Selection]:
    """Fit the head on the training and validation photos; many photos are processed in blocks.

    Args:
        settings: settings of the head.
        data: the photos.
        views: embeddings of random views of these photos, training photos first.
        seed: seed of the cross-validation's folds.
    """
    training, held = data.rows(Subset.TRAINING), data.rows(Subset.VALIDATION)
    used = data.targets[np.concatenate([training, held])]
    return heads.fit_blocks(
        Blocks.from_array(data.embeddings, data.targets, chosen=training),
        len(data.labels),
        validation=Blocks.from_array(data.embeddings, data.targets, chosen=held) if len(held) else None,
        views=[Blocks.from_array(view, used) for view in views],
        settings=settings,
        seed=seed,
    )


def evaluate_head(
    settings: AnswerSettings,
    head_settings: heads.HeadSettings,
    data: TrainingData,
    head: heads.Head,
    selection: heads.Selection,
    seed: int,
) -> FittedHead:
    """Evaluate a head on all photos, and choose what makes it abstain."""
    tested = data.rows(Subset.TESTING)
    probabilities = predict_probabilities(head, data.embeddings, tested)
    novelty = None
    if settings.keep_known is not None:
        novelty = Novelty.fit(
            head,
            selection,
            data.embeddings,
            data.targets,
            rows=np.sort(data.rows(Subset.TRAINING, Subset.VALIDATION)),
            kept=settings.keep_known,
            settings=head_settings,
            seed=seed,
        )
    return FittedHead(
        head,
        selection,
        HeadPredictions.from_embeddings(head, data.embeddings, data.targets),
        held_out=metrics.evaluate(selection.probabilities, selection.targets, data.labels),
        test_probabilities=probabilities,
        test=metrics.evaluate(probabilities, data.targets[tested], data.labels) if len(tested) else None,
        threshold=None
        if settings.precision is None
        else abstention.threshold_for_precision(
            selection.probabilities, selection.targets, settings.precision
        ),
        novelty=novelty,
    )


def find_suspects(
    data: TrainingData, fitted: FittedHead, validated: CrossValidation | None, seed: int
) -> suspects.Suspects:
    """Find suspected label errors among the photos that some head was fitted without.

    With a K-fold cross-validation these are all photos. Without one they are the test photos and those by
    which the settings were selected: all others, unless there are thousands.

    Args:
        data: the photos.
        fitted: the head with its held-out probabilities.
        validated: result of the K-fold cross-validation; None for none.
        seed: seed of the fit.
    """
    if validated:
        rows, probabilities = np.arange(len(data.targets)), validated.probabilities.mean(axis=0)
    else:
        validation = data.rows(Subset.VALIDATION)
        used = np.concatenate([data.rows(Subset.TRAINING), validation])
        held = heads.list_held_out(data.targets[used], len(validation), len(data.labels), seed)
        rows = np.concatenate([used[held], data.rows(Subset.TESTING)])
        probabilities = np.concatenate([fitted.selection.probabilities, fitted.test_probabilities])
    return suspects.find_suspects(data.examples, data.labels, rows, probabilities, data.duplicates)


def read_as_sent(examples: Sequence[Example], rows: Ints) -> dict[int, bytes]:
    """Return the photos of some rows as they are sent to a model, by row.

    Formats that its graph does not decode are converted; photos that cannot be are left out.
    """
    with Converter() as converter:
        sent = {int(row): converter.convert_if_needed(files.read(examples[row].uri)) for row in rows}
    return {row: photo for row, photo in sent.items() if isinstance(photo, bytes)}
