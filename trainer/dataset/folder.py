"""A folder of labelled photos: one directory a label, with the sets laid out above them or not."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from batch.inputs.listing import Photo, find_photos
from serving.errors import InputError
from serving.storage import files
from trainer.dataset.dataset import SET_NAMES, Folder, Labelled, Subset, assemble


def scan(image_dir: str | os.PathLike[str]) -> Folder:
    """List `image_dir/<label>/**`, on any storage: labels and files, none of them opened.

    Where the directories are called train, val, test or the like (SET_NAMES) and nothing else,
    with train among them and directories in each, they are the sets: `train/<label>/**`.

    Hidden files and directories are left out.

    Args:
        image_dir: a path, or an address such as gs://bucket/photos as a str (a Path spoils it).

    Raises:
        InputError: no such directory, fewer than two labels with files, label names that
            cannot be told apart or written down, or a label with nothing to train on.
    """
    top = files.absolute(os.fspath(image_dir))
    if not files.is_remote(top) and not Path(top).is_dir():
        raise InputError(
            f"--image_dir {image_dir}: there is no such directory.",
            remedy="Give a directory that holds one directory of photos a label.",
        )
    photos = _list(top)
    sets = _layout(top, photos)
    directories = [(name,) for name in sets] if sets else [()]
    names = {name for below in directories for name in _directories(top, photos, *below)}
    found = [labelled for photo in photos if (labelled := _labelled(photo, top, names, sets))]
    beside = len(photos) - len(found)
    return assemble(
        sorted(names),
        found,
        where=top,
        remedy="Put the photos into one directory a label, such as "
        f"{files.join(top, 'pizza')} and {files.join(top, 'sushi')}.",
        notes=[f"{beside} files that are in no label's directory are left out."] if beside else [],
        sets_from=f"the directories {', '.join(f'{name}/' for name in sets)}" if sets else "",
    )


def _list(top: str) -> list[Photo]:
    if not files.is_remote(top):
        return find_photos(top, allow_empty=True)
    # Beam's patterns have no way to quote, so what is special in the name stands for any character.
    pattern = files.join(re.sub(r"[*?\[]", "?", top), "**")
    return [photo for photo in find_photos(pattern, allow_empty=True) if photo.uri.startswith(f"{top}/")]


def _labelled(photo: Photo, top: str, names: Collection[str], sets: Mapping[str, Subset]) -> Labelled | None:
    """A photo with the label and set that its directories name; None where it is in no label's directory."""
    parts = _below(photo, top)
    depth = 1 if sets else 0
    if len(parts) < depth + 2 or parts[depth] not in names:
        return None
    return Labelled(photo, parts[depth], sets.get(parts[0]))


def _layout(top: str, photos: Sequence[Photo]) -> dict[str, Subset]:
    """The directories that are sets, none where they are labels.

    Raises:
        InputError: two directories are one set.
    """
    names = _directories(top, photos)
    sets = {name: SET_NAMES[name.casefold()] for name in names if name.casefold() in SET_NAMES}
    if len(sets) < len(names) or Subset.TRAINING not in sets.values():
        return {}
    if not all(_directories(top, photos, name) for name in names):
        return {}
    for subset in Subset:
        same = [name for name in names if sets[name] is subset]
        if len(same) > 1:
            raise InputError(
                f"{top}: the directories {' and '.join(f'{name}/' for name in same)} are both for {subset}.",
                remedy="Merge them, or rename one of them if it is a label.",
            )
    return sets


def _directories(top: str, photos: Sequence[Photo], *below: str) -> list[str]:
    """The names of the directories in a directory, sorted; where a storage has none, from its files."""
    if files.is_remote(top):
        depth = len(below)
        parts = (_below(photo, top) for photo in photos)
        return sorted(
            {part[depth] for part in parts if tuple(part[:depth]) == below and len(part) > depth + 1}
        )
    return sorted(_local_directories(Path(top, *below)))


def _local_directories(directory: Path) -> Iterator[str]:
    try:
        for child in directory.iterdir():
            if child.is_dir() and not child.name.startswith("."):
                yield child.name
    except OSError as error:
        raise InputError(
            f"Cannot list {directory}: {error.strerror}.", remedy="Make it readable, or leave it out."
        ) from error


def _below(photo: Photo, top: str) -> list[str]:
    """The names on the way from the top to the photo."""
    return files.local_path(photo.uri).removeprefix(f"{top.rstrip('/')}/").split("/")
