"""Labelled pictures for the simulations: the sample photos, and emoji by their Unicode subcategory."""

from __future__ import annotations

import json
import tarfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trainer.dataset.download import Artifact, cache_directory, create_once, fetch
from trainer.heads import Floats, Ints

EMOJI = Artifact(
    "npm",
    "emoji-datasource-google",
    "16.0.0",
    "emoji-datasource-google-16.0.0.tgz",
    "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
)

MIN_PICTURES = 15
"""Pictures that a subcategory needs at least."""

_INSIDE = "package/img/google/64/"


@dataclass(frozen=True)
class Pool:
    """Pictures with their true labels.

    Attributes:
        name: name for tables.
        embeddings: float32 [N,D].
        targets: int64 [N].
        labels: K label names.
    """

    name: str
    embeddings: Floats
    targets: Ints
    labels: tuple[str, ...]


def load_sample_photos() -> Pool:
    """Return the distinct sample photos of food."""
    from trainer.dataset.samples import fetch_sample_photos

    sample = fetch_sample_photos(cache_directory(), progress=print)
    return load_folder("sample photos", sample.directory)


def load_emoji() -> Pool:
    """Return the emoji without skin tones, by subcategories of MIN_PICTURES or more."""
    return load_folder("emoji", extract_emoji(fetch(EMOJI, cache_directory(), progress=print)))


def extract_emoji(archive: Path) -> Path:
    """Return a folder with a directory of pictures for each subcategory."""
    directory = cache_directory() / "samples" / EMOJI.sha256[:12]
    if not directory.is_dir():
        with tarfile.open(archive) as found, create_once(directory) as staged:
            listing: Any = found.extractfile("package/emoji.json")
            emoji = [entry for entry in json.load(listing) if entry["has_img_google"]]
            counts = Counter(entry["subcategory"] for entry in emoji)
            label_of = {
                _INSIDE + entry["image"]: entry["subcategory"]
                for entry in emoji
                if counts[entry["subcategory"]] >= MIN_PICTURES
            }
            for member in found:
                label = label_of.get(member.name)
                content = found.extractfile(member) if label and member.isfile() else None
                if label and content:
                    (staged / label).mkdir(exist_ok=True)
                    (staged / label / Path(member.name).name).write_bytes(content.read())
    return directory


def load_folder(name: str, folder: Path) -> Pool:
    """Embed the pictures of a folder with the default backbone, as a training does."""
    from batch.embeddings import EmbeddingStore, default_root
    from batch.jobs import score
    from trainer import dataset
    from trainer.backbones import DEFAULT
    from trainer.evaluation.features import load_features
    from trainer.export.templates import prepare_template

    template = prepare_template(DEFAULT, cache_directory())
    store = EmbeddingStore(default_root(), template.metadata.fingerprint, template.metadata.dimension)
    listing = dataset.scan(folder)
    score.embed(list(listing.photos), template.path, store)
    found = load_features(listing, store)
    targets = np.array([example.label for example in found.examples], np.int64)
    return Pool(name, np.asarray(found.embeddings, np.float32), targets, listing.labels)
