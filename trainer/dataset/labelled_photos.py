"""Photos to evaluate a bundle on, from a directory with one folder per label or from a list."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from serving.errors import InputError
from serving.photos.formats import detect_unsupported_format

_SUFFIXES = {f".{name}" for name in ("jpg", "jpeg", "jpe", "jfif", "png", "gif", "bmp", "webp")}


@dataclass(frozen=True)
class EvaluationPhoto:
    """One photo to evaluate a bundle on.

    Attributes:
        path: file of the photo.
        label: true label; None if it is not known.
        content: encoded bytes.
    """

    path: Path
    label: str | None
    content: bytes

    @property
    def sha256(self) -> str:
        """Hex SHA-256 digest of the encoded bytes."""
        return hashlib.sha256(self.content).hexdigest()


def list_directory(top: Path, labels: Collection[str]) -> list[tuple[Path, str | None]]:
    """Return (path, label) of all photos below a directory.

    The label is the name of the photo's own directory if it is one of `labels`, else None.

    Raises:
        InputError: the directory does not exist or has no photos.
    """
    if not top.is_dir():
        raise InputError(
            f"{top} is not a directory.", remedy="Give a directory of photos with one folder per label."
        )
    known = set(labels)
    found = sorted(path for path in top.rglob("*") if path.suffix.lower() in _SUFFIXES and path.is_file())
    if not found:
        raise InputError(
            f"{top} has no photos.", remedy=f"Add files that end in {', '.join(sorted(_SUFFIXES))}."
        )
    return [(path, path.parent.name if path.parent.name in known else None) for path in found]


def list_manifest(path: Path) -> list[tuple[Path, str | None]]:
    """Return (path, label) of the photos in a .csv with a column `uri` and optionally `label`.

    Any other file is a list with one path per line. Relative paths are relative to the file.

    Raises:
        InputError: the file cannot be read, has no column `uri`, or lists no photos.
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
                remedy="Name the columns in its first line: uri,label",
            )
        listed = [(row["uri"], row.get("label") or None) for row in rows]
    else:
        listed = [(line, None) for line in text.splitlines() if line.strip()]
    if not listed:
        raise InputError(f"{path} lists no photos.", remedy="Add one photo per line.")
    return [(path.parent / name, label) for name, label in listed]


def read_photos(listed: Sequence[tuple[Path, str | None]]) -> list[EvaluationPhoto]:
    """Read the photos that the model's preprocessing decodes; skip formats that need conversion first.

    Raises:
        InputError: a photo cannot be read, or none is left.
    """
    photos = []
    for path, label in listed:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}.") from error
        if detect_unsupported_format(content) is None:
            photos.append(EvaluationPhoto(path, label, content))
    if not photos:
        raise InputError(
            "None of the photos has a format that the model decodes.",
            remedy="Add JPEG, PNG, GIF, BMP or WebP.",
        )
    return photos


def sample_evenly(photos: Sequence[EvaluationPhoto], count: int) -> list[EvaluationPhoto]:
    """Return at most `count` photos at even distances in the list, so that every label is represented."""
    if len(photos) <= count:
        return list(photos)
    return [photos[index * len(photos) // count] for index in range(count)]
