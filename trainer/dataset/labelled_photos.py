"""Reader of labelled photos: folders and dataset manifests, for training and for evaluation."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from batch.inputs.listing import no_photos_error
from batch.inputs.manifest import is_manifest
from batch.monitoring.stats import Progress
from serving.errors import InputError
from serving.storage import files
from trainer.dataset.corrections import apply_corrections
from trainer.dataset.dataset import DatasetListing, PhotoListing, build_listing
from trainer.dataset.folder import list_folder
from trainer.dataset.manifest import Columns, list_manifest
from trainer.dataset.merging import merge_listings
from trainer.dataset.split_files import apply_split_files


def scan(
    place: str | os.PathLike[str],
    columns: Columns | None = None,
    *,
    own: Sequence[str] = (),
    also: str | os.PathLike[str] | None = None,
    corrections: str | os.PathLike[str] | None = None,
    split_files: str | os.PathLike[str] | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> DatasetListing:
    """List the labels and photos to train on, without opening a photo.

    Args:
        place: folder with one directory per label, or dataset manifest; a path, or an address as a str.
        columns: names of a manifest's columns.
        own: absolute paths of what the run writes, which a folder leaves out.
        also: dataset manifest of photos that are listed besides; it counts where both list a photo.
        corrections: dataset manifest of photos whose labels replace the listed ones; None for none.
        split_files: directory with lists of a folder's photos by set; None for none.
        progress: called as the photos of a manifest are looked up; those left out count as rejected.

    Raises:
        InputError: the folder, manifest or corrections cannot be used, fewer than two labels have photos, two
            label names are too similar or one cannot be written down, or a label has no photo to train on.
    """
    if is_manifest(place):
        listing = list_manifest(place, columns, progress=progress)
        remedy = "Add photos of at least two labels to the manifest."
    else:
        listing = list_folder(place, own)
        if split_files is not None:
            listing = apply_split_files(listing, split_files)
        pizza, sushi = (files.join(listing.where, name) for name in ("pizza", "sushi"))
        remedy = f"Put the photos into one directory per label, such as {pizza} and {sushi}."
    if also is not None:
        listing = merge_listings(listing, list_manifest(also, columns, progress=progress))
    if corrections is not None:
        listing = apply_corrections(listing, corrections)
    return build_listing(listing, remedy)


def list_photos(place: str | os.PathLike[str]) -> PhotoListing:
    """List the photos of a folder or dataset manifest to evaluate a model on; they need no labels.

    Raises:
        InputError: the folder or manifest cannot be read, or lists no photos.
    """
    listing = list_manifest(place, labelled=False) if is_manifest(place) else list_folder(place)
    if not listing.photos:
        error = no_photos_error(listing.where)
        examples = [f" {path}, for example, is left out: {why}." for path, why in listing.left_out[:1]]
        raise InputError("".join([error.what, *examples]), remedy=error.remedy)
    return listing
