"""Dataset manifest: a table of photo, label and optionally group and set, as CSV, JSON lines or Parquet.

It is read line by line. Memory is about 500 bytes per photo, half of them in the DatasetListing.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from batch.inputs import manifest
from batch.inputs.listing import Photo, list_directory
from batch.inputs.manifest import ColumnRole
from batch.monitoring.stats import Progress
from serving.errors import InputError
from serving.storage import files
from serving.storage.names import find_spelling, normalize
from trainer.dataset.dataset import SET_NAMES, LabelledPhoto, PhotoListing, Subset

NAMES = {
    "photo": manifest.URI_COLUMN_NAMES,
    "label": ("label", "class", "category"),
    "group": ("group",),
    "split": ("split", "set", "subset"),
}
"""Default names of the columns, by role. Case is ignored."""

_REPORT_EVERY = 1000
_NOT_FOUND = "there is no such file"


@dataclass(frozen=True)
class Columns:
    """Names of a manifest's columns; "" for the default names (NAMES).

    Attributes:
        photo: column of the path or address; a relative one is relative to the manifest's directory.
        label: column of the label, text or a whole number.
        group: column of the group, whose photos stay in one set; cells may be empty.
        split: column of the set (SET_NAMES); an empty cell means training.
    """

    photo: str = ""
    label: str = ""
    group: str = ""
    split: str = ""


@dataclass(frozen=True, slots=True)
class _Row:
    """Label, group and set of a photo, with the line they come from."""

    line: int
    label: str
    group: str
    subset: Subset


def list_manifest(
    path: str | os.PathLike[str],
    columns: Columns | None = None,
    *,
    labelled: bool = True,
    progress: Callable[[Progress], None] | None = None,
) -> PhotoListing:
    """List the labels and photos of a manifest; check that each photo exists, but open none.

    A photo that does not exist, or that has different labels on two lines, is left out with the reason.

    Args:
        path: file whose name ends like one of batch.inputs.manifest.READERS, on any storage.
        columns: names of the columns.
        labelled: True if every line needs a label; else lines without one list photos without a label.
        progress: called as photos are looked up; those left out count as rejected.

    Raises:
        InputError: the manifest or one of its lines cannot be used.
    """
    where = files.absolute(os.fspath(path))
    rows, left_out, repeated = _collect(_read_rows(where, columns or Columns(), labelled), where)
    _check_groups(rows, where)
    found: list[LabelledPhoto] = []
    for uri, photo in _look_up(list(rows), progress):
        row = rows[uri]
        if isinstance(photo, Photo):
            found.append(LabelledPhoto(photo, row.label or None, row.subset, row.group))
        else:
            left_out.append((uri, photo))
    note = f"{repeated} lines repeat a photo of an earlier line; each photo counts once."
    return PhotoListing(
        where,
        found,
        sorted({row.label for row in rows.values() if row.label}),
        notes=[note] if repeated else [],
        sets_from="the manifest" if any(row.subset != Subset.TRAINING for row in rows.values()) else "",
        left_out=left_out,
    )


def _collect(
    lines: Iterable[tuple[str, _Row]], where: str
) -> tuple[dict[str, _Row], list[tuple[str, str]], int]:
    """Return the rows by uri, (uri, reason) of conflicting photos, and the number of repeated lines."""
    rows: dict[str, _Row] = {}
    conflicting: dict[str, str] = {}
    repeated = 0
    for uri, row in lines:
        first = rows.setdefault(uri, row)
        if first is row:
            continue
        repeated += 1
        if first.label != row.label:
            conflicting.setdefault(
                uri, f"labelled {first.label!r} on line {first.line} and {row.label!r} on line {row.line}"
            )
        elif (first.group, first.subset) != (row.group, row.subset):
            raise InputError(
                f"{where}: lines {first.line} and {row.line} give the photo {uri} different groups or sets.",
                remedy="Keep one line per photo.",
            )
    for uri in conflicting:
        del rows[uri]
    return rows, list(conflicting.items()), repeated


def _check_groups(rows: Mapping[str, _Row], where: str) -> None:
    """Check that all photos of a group have the same set."""
    first: dict[str, _Row] = {}
    for row in rows.values():
        if row.group and first.setdefault(row.group, row).subset is not row.subset:
            other = first[row.group]
            raise InputError(
                f"{where}: the group {row.group!r} is in two sets: {other.subset} on line {other.line}, "
                f"{row.subset} on line {row.line}.",
                remedy="Put each group into one set, or leave out one of the two columns.",
            )


# --- Lines ----------------------------------------------------------------------------------------------


def _read_rows(where: str, columns: Columns, labelled: bool) -> Iterator[tuple[str, _Row]]:
    """Yield the photo and the row of each line."""
    required = ("photo", "label") if labelled else ("photo",)
    roles = [
        ColumnRole(role, f"--{role}_column", getattr(columns, role), names, role in required)
        for role, names in NAMES.items()
    ]
    strip = str.strip if manifest.is_text_format(where) else str
    spelling: dict[str, str] = {}  # labels whose Unicode form changes from line to line are the same label
    for line, values in manifest.read(where, partial(_pick_columns, where, roles), text=NAMES):
        at = f"{where}, line {line}"
        cells = {role: _to_text(values.get(role), role, at) for role in NAMES}
        photo = cells["photo"]
        label = strip(cells["label"])
        label = spelling.setdefault(normalize(label), label)
        group, split = strip(normalize(cells["group"])), cells["split"]
        for role in required:
            if not cells[role].strip():
                raise InputError(f"{at}: the {role} is empty.", remedy="Fill it in, or remove the line.")
        name = split.strip().casefold()
        if name and name not in SET_NAMES:
            raise InputError(
                f"{at}: the set {split!r} is unknown.",
                remedy=f"Use one of {', '.join(SET_NAMES)}; leave it empty for a training photo.",
            )
        # Interned: one str object per label and group instead of one per line.
        row = _Row(line, sys.intern(label), sys.intern(group), SET_NAMES.get(name, Subset.TRAINING))
        yield manifest.resolve_address(photo, where), row


def _to_text(value: Any, role: str, where: str) -> str:
    """Return a cell as text; "" for a missing one."""
    if value is None:
        return ""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise InputError(
            f"{where}: the {role} has the type {type(value).__name__}; expected text.",
            remedy="Write it as text, or name another column.",
        )
    try:
        os.fsencode(value)
    except UnicodeEncodeError as error:
        raise InputError(
            f"{where}: the {role} {value!r} is not Unicode text.", remedy="Write it as UTF-8."
        ) from error
    return value


def _pick_columns(where: str, roles: Sequence[ColumnRole], names: Sequence[str], line: int) -> dict[str, str]:
    """Return role -> column for a line that has the columns `names`."""
    found = {role.name: role.find(names, f"{where}, line {line}") for role in roles}
    return {name: column for name, column in found.items() if column is not None}


# --- Files ----------------------------------------------------------------------------------------------


def _look_up(
    uris: Sequence[str], progress: Callable[[Progress], None] | None
) -> Iterator[tuple[str, Photo | str]]:
    """Yield each uri with its photo as the storage lists it, or with the reason why it cannot be used."""
    # One listing per directory: a lookup per photo would cost a network call for every line.
    remote: dict[str, set[str]] = {}
    for uri in uris:
        if files.is_remote(uri):
            remote.setdefault(uri.rpartition("/")[0], set()).add(uri)
    list_once = cache(lambda directory: list_directory(directory, remote[directory]))
    rejected = 0
    for done, uri in enumerate(uris, 1):
        directory = uri.rpartition("/")[0]
        photo = list_once(directory).get(uri, _NOT_FOUND) if directory in remote else _stat_local(uri)
        rejected += isinstance(photo, str)
        if progress and (done % _REPORT_EVERY == 0 or done == len(uris)):
            progress(Progress(done, len(uris), rejected))
        yield uri, photo


def _stat_local(uri: str) -> Photo | str:
    uri = find_spelling(uri)
    try:
        about = Path(files.local_path(uri)).stat()
    except FileNotFoundError:
        return _NOT_FOUND
    except OSError as error:
        return error.strerror or str(error)
    except ValueError as error:
        return f"not a valid file name ({error})"
    if not stat.S_ISREG(about.st_mode):
        return "not a file"
    return Photo.listed(uri, about.st_size, about.st_mtime_ns)
