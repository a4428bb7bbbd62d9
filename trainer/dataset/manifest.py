"""A manifest: a table of photo and label, and maybe of group and set, as CSV, JSON lines or Parquet.

It is read line by line; what is kept is about 500 bytes a photo, of which the Folder is half.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from batch.inputs import manifest
from batch.inputs.listing import Photo, list_directory
from batch.monitoring.stats import Progress
from serving.errors import InputError
from serving.storage import files
from trainer.dataset.dataset import SET_NAMES, Folder, Labelled, Subset, assemble

NAMES = {
    "photo": manifest.URI_COLUMN_NAMES,
    "label": ("label", "class", "category"),
    "group": ("group",),
    "split": ("split", "set", "subset"),
}
"""How the columns are called, in any case, where nothing else is said."""

_REPORT_EVERY = 1000


@dataclass(frozen=True)
class Columns:
    """What the columns of a manifest are called; "" for the usual names (NAMES).

    Attributes:
        photo: path or address; a relative one is relative to the manifest's directory.
        label: text, or a whole number.
        group: photos of a group stay in one set; may be empty.
        split: the set of the photo (SET_NAMES); where it is empty the photo is one to train on.
    """

    photo: str = ""
    label: str = ""
    group: str = ""
    split: str = ""


@dataclass(frozen=True, slots=True)
class _Row:
    """What a line says of a photo."""

    line: int
    label: str
    group: str
    subset: Subset | None


def scan_manifest(
    path: str | os.PathLike[str],
    columns: Columns | None = None,
    *,
    progress: Callable[[Progress], None] | None = None,
) -> Folder:
    """The labels and photos that a manifest names; no photo is opened, but each is looked for.

    A photo that is not there, or that two lines give different labels, is left out with the reason.

    Args:
        path: a .csv, .tsv, .jsonl, .ndjson, .parquet or .pq, on any storage.
        columns: what its columns are called.
        progress: called as photos are looked for; those left out count as rejected.

    Raises:
        InputError: the manifest, or a line of it, cannot be used.
    """
    where = files.absolute(os.fspath(path))
    rows, left_out, repeated = _collect(_read(where, columns or Columns()), where)
    _check_groups(rows, where)
    found: list[Labelled] = []
    for uri, photo in _look_for(list(rows), progress):
        row = rows[uri]
        if isinstance(photo, Photo):
            found.append(Labelled(photo, row.label, row.subset, row.group))
        else:
            left_out.append((uri, photo))
    notes = (
        [f"{repeated} lines name a photo that another line has; each photo counts once."] if repeated else []
    )
    held_out = any(row.subset for row in rows.values())
    return assemble(
        sorted({row.label for row in rows.values()}),
        found,
        where=where,
        remedy="Give a manifest of photos with at least two labels.",
        notes=notes,
        sets_from="the manifest" if held_out else "",
        left_out=left_out,
    )


def _collect(
    lines: Iterable[tuple[str, _Row]], where: str
) -> tuple[dict[str, _Row], list[tuple[str, str]], int]:
    """The rows by uri, the photos with several labels, and the number of lines that repeat a photo."""
    rows: dict[str, _Row] = {}
    contradictory: dict[str, str] = {}
    repeated = 0
    for uri, row in lines:
        first = rows.setdefault(uri, row)
        if first is row:
            continue
        repeated += 1
        if first.label != row.label:
            contradictory.setdefault(
                uri, f"labelled {first.label!r} on line {first.line} and {row.label!r} on line {row.line}"
            )
        elif (first.group, first.subset) != (row.group, row.subset):
            raise InputError(
                f"{where}: lines {first.line} and {row.line} give the photo {uri} different groups or sets.",
                remedy="Give each photo one line.",
            )
    for uri in contradictory:
        del rows[uri]
    return rows, list(contradictory.items()), repeated


def _check_groups(rows: Mapping[str, _Row], where: str) -> None:
    first: dict[str, _Row] = {}
    for row in rows.values():
        if row.group and first.setdefault(row.group, row).subset is not row.subset:
            other = first[row.group]
            raise InputError(
                f"{where}: the group {row.group!r} is in two sets: {_set(other)} on line {other.line}, "
                f"{_set(row)} on line {row.line}.",
                remedy="Put a group into one set, or leave one of the two columns out.",
            )


def _set(row: _Row) -> Subset:
    return row.subset or Subset.TRAINING


# --- Lines ----------------------------------------------------------------------------------------------


def _read(where: str, columns: Columns) -> Iterator[tuple[str, _Row]]:
    """Each line's photo and what is said of it."""
    labels: dict[str, str] = {}  # one object for each label and group, not one a line
    for line, values in manifest.read(where, _Picker(where, columns)):
        yield _row(line, values, where, labels)


def _row(line: int, values: Mapping[str, Any], where: str, known: dict[str, str]) -> tuple[str, _Row]:
    photo, label, group, split = (_text(values.get(role), role, f"{where}, line {line}") for role in NAMES)
    for role, value in (("photo", photo), ("label", label)):
        if not value.strip():
            raise InputError(
                f"{where}, line {line}: the {role} is empty.", remedy="Fill it in, or take the line out."
            )
    name = split.strip().casefold()
    if name and name not in SET_NAMES:
        raise InputError(
            f"{where}, line {line}: there is no set {split!r}.",
            remedy=f"Write one of {', '.join(SET_NAMES)}, or nothing for a photo to train on.",
        )
    subset = SET_NAMES.get(name, Subset.TRAINING)
    held_out = subset if subset is not Subset.TRAINING else None
    return manifest.resolve_address(photo, where), _Row(
        line, known.setdefault(label, label), known.setdefault(group, group), held_out
    )


def _text(value: Any, role: str, where: str) -> str:
    """A cell as text."""
    if value is None:
        return ""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise InputError(
            f"{where}: the {role} is of the type {type(value).__name__}, not text.",
            remedy="Write it as text, or name the column that holds it.",
        )
    try:
        os.fsencode(value)
    except UnicodeEncodeError as error:
        raise InputError(
            f"{where}: the {role} {value!r} is not Unicode text.", remedy="Write it as UTF-8."
        ) from error
    return value


class _Picker:
    """Finds the columns by their names.

    Args:
        where: the manifest.
        columns: the names that the user gave.
    """

    def __init__(self, where: str, columns: Columns) -> None:
        self._where = where
        self._given = {column.name: getattr(columns, column.name) for column in fields(columns)}
        self._known: dict[tuple[str, ...], dict[str, str]] = {}

    def __call__(self, names: Iterable[str], line: int) -> dict[str, str]:
        """The column of each role, of the columns that a line has."""
        key = tuple(names)
        if key not in self._known:
            self._known[key] = {
                role: column for role in NAMES if (column := self._column(role, key, line)) is not None
            }
        return self._known[key]

    def _column(self, role: str, names: Sequence[str], line: int) -> str | None:
        given = self._given[role]
        found = [
            name for name in names if (name == given if given else name.strip().casefold() in NAMES[role])
        ]
        if len(found) == 1:
            return found[0]
        if len(found) > 1:
            raise InputError(
                f"{self._where}, line {line}: {' and '.join(map(repr, found))} could each be the {role}.",
                remedy=f"Name the column with --{role}_column, or keep one of them.",
            )
        if given or role in ("photo", "label"):
            wanted = repr(given) if given else " or ".join(NAMES[role])
            has = f"the columns are {', '.join(map(repr, names))}" if names else "there are no columns"
            raise InputError(
                f"{self._where}, line {line}: no column {wanted} for the {role}; {has}.",
                remedy=f"Name the column with --{role}_column, or write its name into the manifest.",
            )
        return None


# --- Files ----------------------------------------------------------------------------------------------


def _look_for(
    uris: Sequence[str], progress: Callable[[Progress], None] | None
) -> Iterator[tuple[str, Photo | str]]:
    """Each photo as the storage lists it, or why it cannot be used."""
    listings = _Listings(uri for uri in uris if files.is_remote(uri))
    rejected = 0
    for done, uri in enumerate(uris, 1):
        photo = listings.photo(uri) if files.is_remote(uri) else _local_photo(uri)
        rejected += isinstance(photo, str)
        if progress and (done % _REPORT_EVERY == 0 or done == len(uris)):
            progress(Progress(done, len(uris), rejected))
        yield uri, photo


def _local_photo(uri: str) -> Photo | str:
    try:
        about = Path(files.local_path(uri)).stat()
    except FileNotFoundError:
        return "there is no such file"
    except OSError as error:
        return error.strerror or str(error)
    except ValueError as error:
        return f"no name of a file ({error})"
    if not stat.S_ISREG(about.st_mode):
        return "not a file"
    return Photo(uri, about.st_size, about.st_mtime_ns)


class _Listings:
    """What storages hold in the directories of some addresses, each directory listed once.

    Asking for each photo by itself would be a call over the network for every line.
    """

    def __init__(self, uris: Iterable[str]) -> None:
        self._wanted: dict[str, set[str]] = {}
        for uri in uris:
            self._wanted.setdefault(uri.rpartition("/")[0], set()).add(uri)
        self._found: dict[str, dict[str, Photo]] = {}

    def photo(self, uri: str) -> Photo | str:
        directory = uri.rpartition("/")[0]
        if directory not in self._found:
            self._found[directory] = list_directory(directory, self._wanted[directory])
        return self._found[directory].get(uri, "there is no such file")
