"""Steps of a training run. Each takes what it needs and returns its part of the record."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from batch.embeddings import EmbeddingStore
from batch.jobs import score
from batch.monitoring.stats import Progress
from serving.bundle import Bundle
from serving.photos.converter import Converter
from serving.storage import files
from trainer import dataset, heads
from trainer.backbones import InputOptions
from trainer.backbones.hub import load
from trainer.dataset import DatasetListing, Example, SplitSettings, Subset, near_duplicates
from trainer.dataset.download import no_progress
from trainer.evaluation import abstention, metrics
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
from trainer.heads import Blocks, HeadSettings, Ints, Vectors
from trainer.preprocessing import Augmentation, Preprocessing
from trainer.training import fine_tuning
from trainer.training.config import NearDuplicatesOption
from trainer.training.fine_tune_types import FineTuneSettings
from trainer.training.tuning_photos import LabelledPhotos, TuningPhotos


@dataclass(frozen=True)
class Reporter:
    """Functions by which a run reports to the user.

    Attributes:
        say: is called with lines of text.
        progress: is called as photos are listed and embedded; None for no progress.
    """

    say: Callable[[str], None] = no_progress
    progress: Callable[[Progress], None] | None = None


@dataclass(frozen=True)
class Embedder:
    """A backbone, and the store that its embeddings are kept in.

    Attributes:
        handle: alias, directory or Hub handle of the backbone.
        options: input size and value range of the backbone, where they were given.
        preprocessing: aspect and limits of the preprocessing.
        store_root: directory of the embedding store.
        cache: directory of downloads and of what is built from them.
        head_settings: memory that features may take, and the directory for more.
    """

    handle: str
    options: InputOptions
    preprocessing: Preprocessing
    store_root: str
    cache: Path
    head_settings: HeadSettings

    def make_template(self, reporter: Reporter) -> Bundle:
        """Return the headless bundle of the backbone, built on first use."""
        return prepare_template(
            self.handle, self.cache, self.preprocessing, options=self.options, say=reporter.say
        )

    def open_store(self, base: Bundle) -> EmbeddingStore:
        """Open the embedding store of a template."""
        return EmbeddingStore(self.store_root, base.metadata.fingerprint, base.metadata.dimension)

    def embed(self, listing: DatasetListing, base: Bundle, reporter: Reporter) -> Features:
        """Embed the photos that the store does not have, and return the features of all."""
        store = self.open_store(base)
        score.embed(list(listing.photos), base.path, store, progress=reporter.progress)
        features = load_features(listing, store, self.head_settings)
        if isinstance(features.embeddings, np.memmap):
            reporter.say(
                f"The features of {len(features.examples)} photos exceed the memory limit of "
                f"{self.head_settings.memory / 1e9:.1f} GB and are read from a file."
            )
        return features

    def embed_views(
        self,
        listing: DatasetListing,
        examples: Sequence[Example],
        augmentation: Augmentation,
        count: int,
        reporter: Reporter,
    ) -> list[Vectors]:
        """Return embeddings float16 [N,D] of each random view of the examples, from a store for each view."""
        if augmentation == Augmentation():
            return []
        photo_of = {photo.uri: photo for photo in listing.photos}
        photos = [photo_of[example.uri] for example in examples]
        found: list[Vectors] = []
        for number in range(count):
            base = prepare_template(
                self.handle,
                self.cache,
                self.preprocessing,
                view=(augmentation, number),
                options=self.options,
                say=reporter.say,
            )
            store = self.open_store(base)
            reporter.say(f"Embedding view {number + 1} of {count} of {len(photos)} photos")
            score.embed(photos, base.path, store, progress=reporter.progress)
            store.lookup_digests(photos)
            found.append(load_embeddings(examples, store, self.head_settings))
        return found


def split_photos(
    listing: DatasetListing,
    features: Features,
    settings: SplitSettings,
    image_dir: str | Path,
    option: NearDuplicatesOption,
    threshold: float,
    reporter: Reporter,
) -> TrainingData:
    """Find near-duplicates, split the photos, and report what is conspicuous about them.

    Args:
        listing: labelled photos.
        features: their distinct usable ones with embeddings.
        settings: fractions and method of the split.
        image_dir: directory that retrain.py's split makes paths relative to.
        option: what is done about near-duplicates.
        threshold: cosine from which two photos are near-duplicates.
        reporter: for warnings and progress.

    Raises:
        InputError: a label has too few photos for the sets.
    """
    examples = features.examples
    for sentence in dataset.describe_conflicting_labels(examples, listing.labels):
        reporter.say(sentence)
    is_searched = option is not NearDuplicatesOption.IGNORE
    if is_searched and len(examples) >= heads.LARGE_DATASET:
        reporter.say(
            f"Searching for near-duplicates among {len(examples)} photos "
            "(--near_duplicates ignore skips this)"
        )
    near = near_duplicates.find_near_duplicates(
        features.embeddings if is_searched else features.embeddings[:0],
        threshold,
        progress=reporter.progress if is_searched else None,
    )
    together = near.together if option is NearDuplicatesOption.TOGETHER else ()
    dataset.check_examples(examples, listing.labels, settings, together)
    subsets = dataset.split(examples, settings, image_dir, together)
    duplicates = near_duplicates.build_report(features.files, examples, subsets, near, listing.labels)
    for sentence in (
        *dataset.describe_missing_labels(examples, subsets, listing.labels),
        *duplicates.describe(),
    ):
        reporter.say(sentence)
    groups = dataset.assign_groups(examples, together)
    return TrainingData(listing.labels, features, subsets, duplicates, groups)


def fine_tune_backbone(
    embedder: Embedder, data: TrainingData, settings: FineTuneSettings, seed: int, reporter: Reporter
) -> Embedder | None:
    """Fine-tune the backbone, with checkpoints in the cache; None where it did not get better."""
    # The head sees training photos alone, so that the validation photos show whether tuning helps.
    seen = data.rows(Subset.TRAINING)
    head, _ = heads.fit(data.embeddings[seen], data.targets[seen], len(data.labels), seed=seed)
    sets = [read_as_sent(data.examples, data.rows(subset)) for subset in (Subset.TRAINING, Subset.VALIDATION)]
    training, validation = (LabelledPhotos(list(sent.values()), data.targets[list(sent)]) for sent in sets)
    tuned = fine_tuning.fine_tune(
        load(embedder.handle, embedder.cache, options=embedder.options, progress=reporter.say),
        head,
        TuningPhotos(training, validation if len(validation.targets) else None),
        settings,
        preprocessing=embedder.preprocessing,
        checkpoint_directory=embedder.cache / "fine_tuned",
        say=reporter.say,
        progress=lambda epoch: reporter.say(str(epoch)),
    )
    if tuned.before is not None and tuned.after is not None:
        reporter.say(f"Fine-tuned: validation log-loss {tuned.before:.3f} before, {tuned.after:.3f} after")
        if tuned.after >= tuned.before:
            reporter.say(
                "Fine-tuning did not lower the validation log-loss; the pretrained backbone is used."
            )
            return None
    reporter.say(
        "The tuned backbone was trained on the photos of the cross-validation, whose figures are therefore "
        "too good; those of the test photos are not."
    )
    return replace(embedder, handle=str(tuned.path), options=tuned.options)


def fit_head(
    data: TrainingData, views: Sequence[Vectors], settings: HeadSettings, seed: int
) -> tuple[heads.Head, heads.Selection]:
    """Fit the head on the training and validation photos; many photos are processed in blocks.

    Args:
        data: the photos.
        views: embeddings of random views of these photos, training photos first.
        settings: kind of the head, class weights and memory.
        seed: seed of the folds.
    """
    training, held = data.rows(Subset.TRAINING), data.rows(Subset.VALIDATION)
    embeddings, targets, classes = data.embeddings, data.targets, len(data.labels)
    options: dict[str, Any] = {"settings": settings, "seed": seed}
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


def evaluate_head(
    data: TrainingData,
    head: heads.Head,
    selection: heads.Selection,
    settings: HeadSettings,
    *,
    precision: float | None,
    keep_known: float | None,
    seed: int,
) -> FittedHead:
    """Evaluate a head on all photos, and choose what makes it abstain.

    Args:
        data: the photos.
        head: weights.
        selection: how its settings were chosen.
        settings: kind of the head, class weights and memory.
        precision: fraction of the answers that are to be right; None always answers.
        keep_known: fraction of the known photos that the novelty score keeps; None for no such score.
        seed: seed of the folds of the novelty score.
    """
    tested = data.rows(Subset.TESTING)
    probabilities = predict_probabilities(head, data.embeddings, tested)
    novelty = None
    if keep_known is not None:
        novelty = Novelty.fit(
            head,
            selection,
            data.embeddings,
            data.targets,
            rows=np.sort(data.rows(Subset.TRAINING, Subset.VALIDATION)),
            kept=keep_known,
            settings=settings,
            seed=seed,
        )
    return FittedHead(
        head,
        selection,
        HeadPredictions.from_embeddings(head, data.embeddings, data.targets),
        held_out=metrics.evaluate(selection.probabilities, selection.targets, data.labels),
        test_probabilities=probabilities,
        test=metrics.evaluate(probabilities, data.targets[tested], data.labels) if len(tested) else None,
        threshold=abstention.threshold_for_precision(selection.probabilities, selection.targets, precision)
        if precision is not None
        else None,
        novelty=novelty,
    )


def read_as_sent(examples: Sequence[Example], rows: Ints) -> dict[int, bytes]:
    """Return the photos of some rows as they are sent to a model, by row.

    Formats that its graph does not decode are converted; photos that cannot be are left out.
    """
    with Converter() as converter:
        sent = {int(row): converter.convert_if_needed(files.read(examples[row].uri)) for row in rows}
    return {row: photo for row, photo in sent.items() if isinstance(photo, bytes)}
