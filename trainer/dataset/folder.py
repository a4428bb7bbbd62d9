"""Listing of a folder of labelled photos: one directory per label, optionally below one per set."""

from __future__ import annotations

import glob
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from batch.inputs.listing import Photo, find_photos
from batch.inputs.manifest import READERS
from serving.errors import InputError
from serving.storage import files
from trainer.dataset.dataset import SET_NAMES, LabelledPhoto, PhotoListing, Subset


def list_folder(image_dir: str | os.PathLike[str]) -> PhotoListing:
    """List the photos of `image_dir/<label>/**`, on any storage, without opening a file.

    If all directories have names of sets (SET_NAMES), one of them is the training set and each has
    sub-directories, they are the predefined sets: `train/<label>/**`. Files outside the label directories
    have no label. Hidden files and directories are skipped.

    Args:
        image_dir: path, or an address such as gs://bucket/photos as a str (a Path would drop a slash).

    Raises:
        InputError: the directory does not exist, or two of its directories stand for the same set.
    """
    top = files.absolute(os.fspath(image_dir))
    if not files.is_remote(top) and not Path(top).is_dir():
        raise InputError(
            f"{image_dir} is neither a directory nor a dataset manifest.",
            remedy="Give a directory that contains one directory of photos per label, or a file whose name "
            f"ends in {', '.join(READERS)}.",
        )
    photos = find_photos(
        files.join(glob.escape(top), "**") if files.is_remote(top) else top, allow_empty=True
    )
    sets = _find_sets(top, photos)
    names = {name for parent in sets or [""] for name in _list_directories(top, photos, parent)}
    found = [_label_photo(photo, top, names, sets) for photo in photos]
    unlabelled = sum(photo.label is None for photo in found)
    return PhotoListing(
        top,
        found,
        sorted(names),
        notes=[f"{unlabelled} files outside the label directories are left out."] if unlabelled else [],
        sets_from=f"the directories {', '.join(f'{name}/' for name in sets)}" if sets else "",
    )


def _label_photo(photo: Photo, top: str, names: Collection[str], sets: Mapping[str, Subset]) -> LabelledPhoto:
    """Return a photo with the label and set of its directories."""
    parts = _relative_parts(photo, top)
    depth = 1 if sets else 0
    if len(parts) < depth + 2 or parts[depth] not in names:
        return LabelledPhoto(photo, None)
    return LabelledPhoto(photo, parts[depth], sets.get(parts[0], Subset.TRAINING))


def _find_sets(top: str, photos: Sequence[Photo]) -> dict[str, Subset]:
    """Return the directories that are sets; empty if the directories are labels.

    Raises:
        InputError: two directories stand for the same set.
    """
    names = _list_directories(top, photos)
    sets = {name: SET_NAMES[name.casefold()] for name in names if name.casefold() in SET_NAMES}
    all_sets = len(sets) == len(names) and Subset.TRAINING in sets.values()
    if not all_sets or not all(_list_directories(top, photos, name) for name in names):
        return {}
    for subset in Subset:
        same = [name for name in names if sets[name] is subset]
        if len(same) > 1:
            raise InputError(
                f"{top}: the directories {' and '.join(f'{name}/' for name in same)} are both for {subset}.",
                remedy="Merge them, or rename one of them if it is a label.",
            )
    return sets


def _list_directories(top: str, photos: Sequence[Photo], parent: str = "") -> list[str]:
    """Return the names of the directories in `top` or in its directory `parent`, sorted.

    Object stores have no directories, so there the names come from the paths of the files.
    """
    if files.is_remote(top):
        depth = 1 if parent else 0
        paths = (_relative_parts(photo, top) for photo in photos)
        inside = (parts[depth:] for parts in paths if not parent or parts[0] == parent)
        return sorted({parts[0] for parts in inside if len(parts) > 1})
    directory = Path(top, parent)
    try:
        return sorted(
            child.name for child in directory.iterdir() if child.is_dir() and not child.name.startswith(".")
        )
    except OSError as error:
        raise InputError(
            f"Cannot list {directory}: {error.strerror}.", remedy="Make it readable, or remove it."
        ) from error


def _relative_parts(photo: Photo, top: str) -> list[str]:
    """Return the parts of the photo's path below the top directory."""
    return files.local_path(photo.uri).removeprefix(f"{top.rstrip('/')}/").split("/")
