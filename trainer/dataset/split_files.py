"""Lists of photos by set, as data sets with an official split have them: meta/train.txt, meta/test.txt.

A line is the path of a photo below the folder, with or without the ending of the file: `apple_pie/1005649`.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from dataclasses import replace

from serving.errors import InputError
from serving.photos.formats import SUFFIXES
from serving.storage import files
from serving.storage.names import normalize
from serving.storage.text_lines import read_lines
from trainer.dataset.dataset import SET_NAMES, PhotoListing, Subset

UNLISTED = "on none of the lists of --split_files"
"""Reason why a photo is left out."""


def apply_split_files(listing: PhotoListing, directory: str | os.PathLike[str]) -> PhotoListing:
    """Return the listing of a folder with the sets of the lists in a directory, on any storage.

    The lists are named like a set (SET_NAMES), such as train.txt, val.txt and test.txt; other files of the
    directory are not read. A photo on no list is left out if there is a list of training photos; else it is
    one of them.

    Args:
        listing: listing of a folder.
        directory: directory of the lists.

    Raises:
        InputError: there is no list, a photo is on the lists of two sets, or no line names a photo.
    """
    where = files.absolute(os.fspath(directory))
    lists = _read_lists(where)
    names = _name_photos(listing)
    assigned: dict[str, tuple[Subset, str]] = {}
    missing: list[str] = []
    for subset, (path, lines) in lists.items():
        for number, line in lines:
            uri = names.get(normalize(line))
            if uri is None:
                missing.append(line)
                continue
            first, place = assigned.setdefault(uri, (subset, f"{path}, line {number}"))
            if first is not subset:
                raise InputError(
                    f"{line} is in two sets: {first} by {place}, and {subset} by {path}, line {number}.",
                    remedy="Remove one of the lines: a photo that is trained on cannot be tested on.",
                )
    if not assigned:
        example = f" The first line is {missing[0]!r}." if missing else ""
        raise InputError(
            f"No line of {' and '.join(path for path, _ in lists.values())} names a photo of {listing.where}."
            f"{example}",
            remedy="Lines are paths below --image_dir, such as pizza/1001116 or pizza/1001116.jpg.",
        )
    rest = None if Subset.TRAINING in lists else Subset.TRAINING
    return _assign(listing, {uri: subset for uri, (subset, _) in assigned.items()}, rest, where, missing)


def _read_lists(where: str) -> dict[Subset, tuple[str, list[tuple[int, str]]]]:
    """Return path and numbered lines of the list of each set."""
    lists: dict[Subset, tuple[str, list[tuple[int, str]]]] = {}
    for name, subset in SET_NAMES.items():
        path = files.join(where, f"{name}.txt")
        try:
            content = files.read(path)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror or error}.") from error
        if subset in lists:
            raise InputError(
                f"{lists[subset][0]} and {path} are both lists of {subset}.", remedy="Merge them into one."
            )
        lines = (
            (number, line.strip()) for number, line in enumerate(read_lines(io.BytesIO(content), path), 1)
        )
        lists[subset] = path, [(number, line) for number, line in lines if line]
    if not lists:
        raise InputError(
            f"{where} has no list of photos: no train.txt, val.txt or test.txt.",
            remedy="Give a directory such as food-101/meta, with train.txt and test.txt.",
        )
    return lists


def _name_photos(listing: PhotoListing) -> dict[str, str]:
    """Return the uri of each labelled photo by its path below the folder, with and without its ending.

    A path without its ending that several photos have is left out.
    """
    top = f"{listing.where.rstrip('/')}/"
    names: dict[str, str] = {}
    shortened: dict[str, str] = {}
    repeated: set[str] = set()
    for photo, label, *_ in listing.photos:
        if label is None:
            continue
        path = normalize(files.local_path(photo.uri).removeprefix(top))
        names[path] = photo.uri
        stem, ending = os.path.splitext(path)  # noqa: PTH122
        if ending.lower() in SUFFIXES:
            repeated |= {stem} & shortened.keys()
            shortened[stem] = photo.uri
    return {stem: uri for stem, uri in shortened.items() if stem not in repeated} | names


def _assign(
    listing: PhotoListing,
    subsets: Mapping[str, Subset],
    rest: Subset | None,
    where: str,
    missing: list[str],
) -> PhotoListing:
    """Return the listing with these sets; photos without one get `rest`, or are left out if it is None."""
    kept, left_out = [], list(listing.left_out)
    for entry in listing.photos:
        subset = subsets.get(entry.photo.uri, rest)
        if entry.label is None:
            kept.append(entry)
        elif subset is None:
            left_out.append((entry.photo.uri, UNLISTED))
        else:
            kept.append(entry._replace(subset=subset))
    notes = list(listing.notes)
    if unlisted := len(left_out) - len(listing.left_out):
        notes.append(f"{unlisted:,} photos are {UNLISTED} and are left out.")
    if missing:
        notes.append(f"{len(missing):,} lines of {where} name no photo, for example {missing[0]}.")
    return replace(listing, photos=kept, notes=notes, left_out=left_out, sets_from=f"the lists in {where}")
