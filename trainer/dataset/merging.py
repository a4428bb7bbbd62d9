"""Photos of a folder and of a dataset manifest together, such as a folder and the labels of hubhead label."""

from __future__ import annotations

from dataclasses import replace

from serving.storage.names import normalize
from trainer.dataset.dataset import LabelledPhoto, PhotoListing


def merge_listings(folder: PhotoListing, manifest: PhotoListing) -> PhotoListing:
    """Return the photos of both; where both have a photo, the line of the manifest counts.

    Labels whose names differ in their Unicode form alone are the same, spelled as in the folder.
    """
    spelling = {normalize(name): name for name in folder.names}
    listed = {normalize(entry.photo.uri): entry for entry in manifest.photos}
    kept: list[LabelledPhoto] = []
    replaced = 0
    for entry in folder.photos:
        other = listed.get(normalize(entry.photo.uri))
        if other is None:
            kept.append(entry)
        elif entry.label is not None and normalize(entry.label) != normalize(other.label or ""):
            replaced += 1
    added = [
        entry._replace(label=spelling.setdefault(normalize(entry.label), entry.label))
        for entry in manifest.photos
        if entry.label is not None
    ]
    notes = [*folder.notes, *manifest.notes]
    if replaced:
        notes.append(
            f"{replaced} photos of {folder.where} have another label in {manifest.where}, which counts."
        )
    names = sorted({*folder.names, *(entry.label for entry in added if entry.label)})
    return replace(
        folder,
        photos=[*kept, *added],
        names=names,
        notes=notes,
        sets_from=" and ".join(filter(None, [folder.sets_from, manifest.sets_from])),
        left_out=[*folder.left_out, *manifest.left_out],
    )
