"""Opening of a labelling session from what the command names: photos, labels that exist, and a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from batch.embeddings import EmbeddingStore
from batch.inputs.listing import Photo, exclude, find_photos
from batch.jobs import score
from serving import bundle, contract
from serving.bundle import Bundle
from serving.errors import InputError
from serving.storage import files
from trainer.dataset import DatasetListing, Subset
from trainer.dataset.dataset import PhotoListing, build_listing
from trainer.dataset.folder import list_folder
from trainer.dataset.manifest import list_manifest
from trainer.dataset.merging import merge_listings
from trainer.evaluation.features import Features
from trainer.evaluation.suspects import suspect_labels
from trainer.export.head_file import load_head
from trainer.heads import HeadSettings
from trainer.labelling.candidates import Candidates, load_candidates, load_scored
from trainer.labelling.classifier import Model
from trainer.labelling.fitting import LabelledSet
from trainer.labelling.output import list_own
from trainer.labelling.session import LabellingSession
from trainer.labelling.settings import SessionSettings
from trainer.labelling.suspects import describe_suspects
from trainer.labelling.types import Strategy
from trainer.training import steps
from trainer.training.config import EmbeddingSettings
from trainer.training.steps import Reporter


@dataclass(frozen=True)
class LabellingInput:
    """Photos and labels of a session.

    Attributes:
        photos: directories, files or patterns of photos without labels.
        manifest: dataset manifest; its lines without a label are photos to label, the others are labelled.
        scores: output directory of `hubhead score`, whose photos are to be labelled.
        image_dir: folder of labelled photos, with one directory per label.
        model: bundle whose labels and probabilities are used; None for none.
    """

    photos: tuple[str, ...] = ()
    manifest: str = ""
    scores: str = ""
    image_dir: str = ""
    model: Path | None = None


def open_session(
    source: LabellingInput,
    output: Path,
    settings: SessionSettings,
    embedding: EmbeddingSettings,
    reporter: Reporter,
) -> LabellingSession:
    """Embed the photos that the store does not have, and open the session.

    Raises:
        InputError: no photo can be labelled, or the strategy `suspects` has no labelled photos.
        BundleError: the model has no head, or cannot be read.
        OutputBusy: another process is labelling into the output.
    """
    base, model = _open_model(source, embedding, reporter)
    head_settings = HeadSettings(directory=embedding.cache)
    listing, photos = _list_inputs(source, output)
    features: Features | None = None
    if listing:
        listing, features = steps.embed(embedding, head_settings, listing, base, reporter)
    if settings.strategy is Strategy.SUSPECTS:
        if not listing or not features:
            raise InputError(
                "The strategy suspects checks labels that exist, and there are none.",
                remedy="Give --image_dir DIRECTORY, or --manifest FILE with labels.",
            )
        return _open_suspects(listing, features, output, settings, head_settings)
    store = steps.open_store(embedding, base)
    known = [example.sha256 for example in features.files] if features else []
    candidates = _load(source, photos, base, store, embedding, reporter, known)
    labelled = _make_labelled(listing, features) if listing and features else None
    for uri, why in candidates.left_out[:3]:
        reporter.say(f"{uri} is left out: {why}.")
    if len(candidates.left_out) > 3:
        reporter.say(f"{len(candidates.left_out)} photos are left out.")
    return LabellingSession(candidates, output, settings, model=model, labelled=labelled)


def _open_model(
    source: LabellingInput, embedding: EmbeddingSettings, reporter: Reporter
) -> tuple[Bundle, Model | None]:
    """Return the bundle that embeds photos, and the model whose head is used."""
    if source.model is None:
        return steps.make_template(embedding, reporter), None
    found = bundle.read(source.model)
    found.require_head("labels to begin with")
    head, novelty = load_head(found.path / contract.HEAD_FILE, found.metadata)
    return found, Model(tuple(found.metadata.labels), head, novelty)


def _list_inputs(source: LabellingInput, output: Path) -> tuple[DatasetListing | None, list[Photo]]:
    """Return the labelled photos, None if there are none, and the photos to label."""
    folder = list_folder(source.image_dir) if source.image_dir else None
    manifest = list_manifest(source.manifest, labelled=False) if source.manifest else None
    found: dict[str, Photo] = {}
    own = [files.absolute(str(path)) for path in list_own(output)]
    for pattern in source.photos:
        top = files.absolute(pattern)
        found |= {photo.uri: photo for photo in exclude(find_photos(pattern), own, top)}
    if manifest:
        found |= {entry.photo.uri: entry.photo for entry in manifest.photos if entry.label is None}
    listed: PhotoListing | None = manifest if manifest and manifest.names else None
    if folder:
        listed = merge_listings(folder, listed) if listed else folder
    listing = build_listing(listed, "Give labelled photos of at least two labels.") if listed else None
    return listing, list(found.values())


def _load(
    source: LabellingInput,
    photos: Sequence[Photo],
    base: Bundle,
    store: EmbeddingStore,
    embedding: EmbeddingSettings,
    reporter: Reporter,
    known: Sequence[str],
) -> Candidates:
    """Return the photos to label with their embeddings; those of scores have theirs already."""
    settings = HeadSettings(directory=embedding.cache)
    if source.scores:
        if photos:
            raise InputError(
                "Photos of --scores and other photos cannot be labelled together.",
                remedy="Score the other photos too, or leave out --scores.",
            )
        return load_scored(source.scores, store, settings, known=known)
    if not photos:
        raise InputError("There are no photos to label.", remedy="Give --photos, --manifest or --scores.")
    done = score.embed(photos, base.path, store, progress=reporter.progress, engine=embedding.engine)
    reporter.embedded.append(done.this_run)
    return load_candidates(photos, store, settings, known=known)


def _make_labelled(listing: DatasetListing, features: Features) -> LabelledSet:
    """Return the photos that a training would train on: those of a predefined test set are not among them."""
    rows = np.array(
        [row for row, example in enumerate(features.examples) if example.subset is not Subset.TESTING],
        np.int64,
    )
    examples = [features.examples[row] for row in rows]
    return LabelledSet(
        listing.labels,
        features.embeddings if len(rows) == len(features.examples) else features.embeddings[rows],
        np.array([example.label for example in examples], np.int64),
        [example.sha256 for example in examples],
    )


def _open_suspects(
    listing: DatasetListing,
    features: Features,
    output: Path,
    settings: SessionSettings,
    head_settings: HeadSettings,
) -> LabellingSession:
    """Open a session about the labels that exist; its output is for --corrections of hubhead train."""
    examples, embeddings = features.examples, features.embeddings
    found = suspect_labels(
        examples,
        len(listing.labels),
        embeddings,
        settings=head_settings,
        threshold=min(settings.near_threshold, 1.0),
        seed=settings.seed,
    )
    if not found:
        raise InputError(
            f"No label of the {len(examples)} photos is suspected.", remedy="There is nothing to correct."
        )
    # Several files with the same content are one photo here; its answer is written for each of them.
    first: dict[str, int] = {}
    for row, example in enumerate(examples):
        first.setdefault(example.sha256, row)
    place = {row: number for number, row in enumerate(first.values())}
    rows = np.array(list(first.values()), np.int64)
    aliases: dict[str, list[str]] = {}
    for example in features.files:
        aliases.setdefault(example.sha256, []).append(example.uri)
    candidates = Candidates(
        [examples[row].uri for row in rows],
        np.frombuffer(b"".join(bytes.fromhex(examples[row].sha256) for row in rows), "S32"),
        embeddings[rows],
        aliases={sha: tuple(uris) for sha, uris in aliases.items() if len(uris) > 1},
    )
    suspects = [
        replace(
            suspect,
            photo=place[first[examples[suspect.photo].sha256]],
            neighbours=tuple(
                (name, tuple(place[first[examples[row].sha256]] for row in near))
                for name, near in suspect.neighbours
            ),
        )
        for suspect in describe_suspects(found, examples, listing.labels, embeddings)
    ]
    # The head must not have seen the labels that are in doubt.
    doubtful = {examples[one.row].sha256 for one in found}
    certain = np.array(
        [row for row, example in enumerate(examples) if example.sha256 not in doubtful], np.int64
    )
    targets = np.array([examples[row].label for row in certain], np.int64)
    labelled = LabelledSet(
        listing.labels, embeddings[certain], targets, [examples[row].sha256 for row in certain]
    )
    return LabellingSession(candidates, output, settings, labelled=labelled, suspects=suspects)
