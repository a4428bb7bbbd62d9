"""Photos to judge a bundle by: a folder for each label, or a manifest."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from serving.errors import InputError
from serving.photos.converter import detect_unsupported_format

_SUFFIXES = {f".{name}" for name in ("jpg", "jpeg", "jpe", "jfif", "png", "gif", "bmp", "webp")}


@dataclass(frozen=True)
class Photo:
    """One photo.

    Attributes:
        path: its file.
        label: its own; None where it is not known.
        content: the encoded bytes.
    """

    path: Path
    label: str | None
    content: bytes

    @property
    def sha256(self) -> str:
        """Of the bytes, hex."""
        return hashlib.sha256(self.content).hexdigest()


def from_directory(top: Path, labels: Collection[str]) -> list[tuple[Path, str | None]]:
    """All photos below a directory; the name of a photo's own directory is its label, where it is one.

    Raises:
        InputError: there are none.
    """
    if not top.is_dir():
        raise InputError(f"{top} is no directory.", remedy="Give a directory of photos, a folder a label.")
    known = set(labels)
    found = sorted(path for path in top.rglob("*") if path.suffix.lower() in _SUFFIXES and path.is_file())
    if not found:
        raise InputError(f"{top} holds no photo.", remedy=f"Looked for {', '.join(sorted(_SUFFIXES))}.")
    return [(path, path.parent.name if path.parent.name in known else None) for path in found]


def from_manifest(path: Path) -> list[tuple[Path, str | None]]:
    """Photos of a list: .csv with the columns `uri` and, where known, `label`; else a path a line.

    Relative paths are relative to the file.

    Raises:
        InputError: it cannot be read, has no column `uri`, or lists nothing.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}.") from error
    if path.suffix.lower() == ".csv":
        rows = list(csv.DictReader(text.splitlines()))
        if rows and "uri" not in rows[0]:
            raise InputError(
                f"{path} has no column 'uri', only {', '.join(map(repr, rows[0]))}.",
                remedy="Its first line names the columns: uri,label",
            )
        listed = [(row["uri"], row.get("label") or None) for row in rows]
    else:
        listed = [(line, None) for line in text.splitlines() if line.strip()]
    if not listed:
        raise InputError(f"{path} lists no photo.")
    return [(path.parent / name, label) for name, label in listed]


def read(listed: Sequence[tuple[Path, str | None]]) -> list[Photo]:
    """The bytes of photos that the graph decodes; of formats that are converted before it none are taken.

    Raises:
        InputError: one cannot be read, or no photo is left.
    """
    photos = []
    for path, label in listed:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}.") from error
        if detect_unsupported_format(content) is None:
            photos.append(Photo(path, label, content))
    if not photos:
        raise InputError("None of the photos is of a format that the graph decodes.")
    return photos


def spread(photos: Sequence[Photo], count: int) -> list[Photo]:
    """At most so many, evenly over the list, so that all labels have their share."""
    if len(photos) <= count:
        return list(photos)
    return [photos[place * len(photos) // count] for place in range(count)]
