"""Listing of a folder of labelled photos: one directory per label, optionally below one per set."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Mapping, Sequence, Set
from itertools import combinations
from pathlib import Path

from batch.inputs.listing import Photo, exclude, find_photos
from batch.inputs.manifest import READERS
from serving.errors import InputError
from serving.photos.formats import HEADER_BYTES, SUFFIXES, is_photo
from serving.storage import files
from serving.storage.names import describe_system_directories, is_system_directory
from trainer.dataset.dataset import SET_NAMES, LabelledPhoto, PhotoListing, Subset

_SET_WORD = re.compile(
    r"(?<![a-z])(train|training|val|valid|validation|dev|test|testing|eval|evaluation)"
    r"(set|data|images|photos)?(?![a-z])"
)
"""Word in the name of a directory that is likely a set, such as train2017 or Test_Set."""

_MOST_OPENED = 100
"""Files of a directory that are opened at most to find a photo among them."""


def list_folder(image_dir: str | os.PathLike[str], own: Sequence[str] = ()) -> PhotoListing:
    """List the photos of `image_dir/<label>/**`, on any storage.

    If all directories have names of sets (SET_NAMES), one of them is the training set and each has
    sub-directories, they are the predefined sets: `train/<label>/**`. Files outside the label directories
    have no label. Hidden files are skipped. Directories without photos are neither labels nor sets, nor are
    those of operating systems. Only files whose names do not tell whether they are photos are opened.

    Args:
        image_dir: path, or an address such as gs://bucket/photos as a str (a Path would drop a slash).
        own: absolute paths of what the run writes, which is left out.

    Raises:
        InputError: the directory does not exist, two of its directories stand for the same set, sets are
            beside other directories, or labels look like sets.
    """
    top = files.absolute(os.fspath(image_dir))
    if not files.is_remote(top) and not Path(top).is_dir():
        raise InputError(
            f"{image_dir} is neither a directory nor a dataset manifest.",
            remedy="Give a directory that contains one directory of photos per label, or a file whose name "
            f"ends in {', '.join(READERS)}.",
        )
    systems: set[str] = set()
    pattern = files.join(glob.escape(top), "**") if files.is_remote(top) else top
    photos = list(exclude(find_photos(pattern, allow_empty=True, left_out=systems), own, top))
    sets = _find_sets(top, photos)
    found: list[LabelledPhoto] = []
    groups = _group_by_directory(photos, top, 2 if sets else 1)
    _check_labels(top, groups)
    for path, group in groups.items():
        if not path or _has_photos(group):
            parent, _, name = path.rpartition("/")
            subset = sets.get(parent, Subset.TRAINING)
            found += [LabelledPhoto(photo, name or None, subset) for photo in group]
    notes = [describe_system_directories(systems)] if systems else []
    if unlabelled := sum(photo.label is None for photo in found):
        notes.append(f"{unlabelled} files outside the label directories are left out.")
    if sets and (others := [name for name in _list_directories(top, photos) if name not in sets]):
        notes.append(f"{_join(others)} left out, without photos.")
    return PhotoListing(
        top,
        found,
        sorted({name for parent in sets or [""] for name in _list_directories(top, photos, parent)}),
        notes,
        sets_from=f"the directories {', '.join(f'{name}/' for name in sets)}" if sets else "",
    )


def _group_by_directory(photos: Sequence[Photo], top: str, depth: int) -> dict[str, list[Photo]]:
    """Return the photos by the first `depth` directories of their path; "" for those that have fewer."""
    groups: dict[str, list[Photo]] = {}
    for photo in photos:
        parts = _relative_parts(photo, top)
        groups.setdefault("/".join(parts[:depth]) if len(parts) > depth else "", []).append(photo)
    return groups


def _has_photos(found: Sequence[Photo]) -> bool:
    """Return whether files include photos, by their names or, if those do not tell, their first bytes."""
    if any(os.path.splitext(photo.uri)[1].lower() in SUFFIXES for photo in found):  # noqa: PTH122
        return True
    return any(_begins_like_a_photo(photo.uri) for photo in found[:_MOST_OPENED])


def _begins_like_a_photo(uri: str) -> bool:
    try:
        with files.open_file(uri) as file:
            return is_photo(file.read(HEADER_BYTES))
    except OSError:
        return False


def _find_sets(top: str, photos: Sequence[Photo]) -> dict[str, Subset]:
    """Return the directories that are sets; empty if the directories are labels.

    Raises:
        InputError: two directories stand for the same set, or sets are beside other directories.
    """
    groups = _group_by_directory(photos, top, 1)
    groups.pop("", None)
    if not any(SET_NAMES.get(name.casefold()) is Subset.TRAINING for name in groups):
        return {}
    names = sorted(name for name, found in groups.items() if _has_photos(found))
    sets = {name: SET_NAMES[name.casefold()] for name in names if name.casefold() in SET_NAMES}
    inside = {name: set(_list_directories(top, photos, name)) for name in names}
    strange = [name for name in names if name not in sets or not inside[name]]
    if strange or Subset.TRAINING not in sets.values():
        _check_no_sets(top, groups, sets, strange, inside)
        return {}
    for subset in Subset:
        same = [name for name in names if sets[name] is subset]
        if len(same) > 1:
            raise InputError(
                f"{top}: the directories {_join(same)} are both for {subset}.",
                remedy="Merge them, or rename one of them if it is a label.",
            )
    return sets


def _check_no_sets(
    top: str,
    groups: Mapping[str, Sequence[Photo]],
    sets: Mapping[str, Subset],
    strange: Sequence[str],
    inside: Mapping[str, Set[str]],
) -> None:
    """Check that directories with the names of sets are labels, since others are beside them.

    They are sets if most photos of training are in directories of their own, and there is another set, or
    another directory with the same directories inside.

    Args:
        top: the folder, for the error.
        groups: photos by directory.
        sets: directories with the name of a set.
        strange: directories that are no set, or contain no directories.
        inside: names of the directories inside each directory.

    Raises:
        InputError: they are sets.
    """
    for name in (name for name, subset in sets.items() if subset is Subset.TRAINING and inside[name]):
        depths = [len(_relative_parts(photo, top)) for photo in groups[name]]
        alike = any(inside[name] & inside[other] for other in inside if other != name)
        if 2 * sum(depth > 2 for depth in depths) > len(depths) and (len(set(sets.values())) > 1 or alike):
            raise _sets_beside_others_error(top, name, sets, strange, inside)


def _sets_beside_others_error(
    top: str, training: str, sets: Iterable[str], strange: Sequence[str], inside: Mapping[str, Set[str]]
) -> InputError:
    """Return the error for sets beside directories that are none, or that are sets by another name."""
    renamed = [
        name for name in strange if inside[name] & inside[training] and _SET_WORD.search(name.casefold())
    ]
    others = [name for name in strange if name not in renamed]
    found = sorted({*sets, *renamed})
    look = " look like sets with one directory per label, but "
    if len(found) == 1:
        look = " looks like a set with one directory per label, but "
    if others:
        fault = f"{_join(others)} {'do' if len(others) > 1 else 'does'} not"
    else:
        fault = f"{_join(renamed)} {'are' if len(renamed) > 1 else 'is'} not named like one"
    remedies = [f"Rename {_join(renamed)} to val/ or test/."] if renamed else []
    if others:
        remedies.append(f"Move {_join(others)} elsewhere or into the sets, as {training}/<label>/.")
    return InputError(
        f"{top}: {_join(found)}{look}{fault}.",
        remedy=f"{' '.join(remedies)} If all are labels, rename those that are called like sets.",
    )


def _check_labels(top: str, groups: Mapping[str, Sequence[Photo]]) -> None:
    """Check that no two labels look like sets: they are named like sets, and their directories alike.

    Args:
        top: the folder.
        groups: photos by the path of their label below the folder.

    Raises:
        InputError: two labels do.
    """
    inside: dict[str, set[str]] = {}
    for path, found in groups.items():
        if not _SET_WORD.search(path.rpartition("/")[2].casefold()):
            continue
        paths = [_relative_parts(photo, top)[path.count("/") + 1 :] for photo in found]
        if 2 * sum(len(parts) > 1 for parts in paths) > len(paths):  # most photos are in directories
            inside[path] = {parts[0] for parts in paths if len(parts) > 1}
    for one, other in combinations(sorted(inside), 2):
        parent = one.rpartition("/")[0]
        if parent == other.rpartition("/")[0] and (alike := sorted(inside[one] & inside[other])):
            raise InputError(
                f"{top}: {_join([one, other])} look like sets of photos and not like labels: directories in "
                f"both are called {_join(alike[:3])}.",
                remedy=(
                    f"Give the directory {files.join(top, parent)}."
                    if parent
                    else "Rename the sets to train/, val/ and test/; or rename them if they are labels."
                ),
            )


def _join(names: Iterable[str]) -> str:
    return " and ".join(f"{name}/" for name in names)


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
            child.name
            for child in directory.iterdir()
            if child.is_dir() and not child.name.startswith(".") and not is_system_directory(child.name)
        )
    except OSError as error:
        raise InputError(
            f"Cannot list {directory}: {error.strerror}.", remedy="Make it readable, or remove it."
        ) from error


def _relative_parts(photo: Photo, top: str) -> list[str]:
    """Return the parts of the photo's path below the top directory."""
    return files.local_path(photo.uri).removeprefix(f"{top.rstrip('/')}/").split("/")
