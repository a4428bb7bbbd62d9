"""Corrections of labels: a dataset manifest of photos whose labels replace those of a folder or manifest."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches

from batch.inputs import manifest
from batch.inputs.manifest import ColumnRole
from serving.errors import InputError
from serving.storage import files
from serving.storage.names import normalize
from trainer.dataset.dataset import PhotoListing
from trainer.dataset.manifest import NAMES

_ROLES = ("photo", "label")

_MIN_SIMILARITY = 0.4
"""Smallest ratio of difflib at which a listed photo is proposed for one that is not listed."""


@dataclass(frozen=True)
class Correction:
    """Correction of one photo.

    Attributes:
        photo: photo as it is written.
        label: its label; "" to leave the photo out.
        line: line of the correction.
    """

    photo: str
    label: str
    line: int


def read_corrections(path: str | os.PathLike[str]) -> list[Correction]:
    """Read the corrections of a file.

    Args:
        path: file whose name ends like one of batch.inputs.manifest.READERS, on any storage, with a column of
            photos and one of labels, which may be empty. Other columns are ignored.

    Raises:
        InputError: the file or one of its lines cannot be used.
    """
    where = files.absolute(os.fspath(path))
    roles = [ColumnRole(role, f"the column {role}", "", NAMES[role]) for role in _ROLES]

    def pick(names: Sequence[str], line: int) -> Mapping[str, str]:
        found = {role.name: role.find(names, f"{where}, line {line}") for role in roles}
        return {role: column for role, column in found.items() if column is not None}

    found = []
    for line, values in manifest.read(where, pick, text=_ROLES):
        photo, label = (_to_text(values.get(role), f"{where}, line {line}: the {role}") for role in _ROLES)
        if not photo.strip():
            raise InputError(
                f"{where}, line {line}: the photo is empty.", remedy="Fill it in, or remove the line."
            )
        found.append(Correction(photo, normalize(label).strip(), line))
    return found


def apply_corrections(listing: PhotoListing, path: str | os.PathLike[str]) -> PhotoListing:
    """Return a listing with the labels of a corrections file, without the photos whose label there is empty.

    Relative paths are relative to the file or to the folder of the photos. A label that no photo has so far
    is added.

    Raises:
        InputError: the file cannot be used, a photo is not listed, or two lines disagree.
    """
    where = files.absolute(os.fspath(path))
    corrections = read_corrections(path)
    listed = {normalize(entry.photo.uri): entry.photo.uri for entry in listing.photos}
    unusable = {normalize(uri) for uri, _ in listing.left_out}
    spelling = {normalize(name): name for name in listing.names}
    chosen: dict[str, Correction] = {}
    skipped = 0
    for correction in corrections:
        addresses = list(_list_addresses(correction.photo, where, listing.where))
        uri = next((listed[address] for address in addresses if address in listed), None)
        if uri is None:
            if any(address in unusable for address in addresses):
                skipped += 1
                continue
            raise _unknown_photo_error(correction, where, listing, addresses[0])
        first = chosen.setdefault(uri, correction)
        if first.label != correction.label:
            raise InputError(
                f"{where}: the photo {uri} is corrected to {first.label!r} on line {first.line} and to "
                f"{correction.label!r} on line {correction.line}.",
                remedy="Keep one line per photo; an empty label leaves it out.",
            )
    corrected, changed, removed = [], 0, 0
    for entry in listing.photos:
        if not (found := chosen.get(entry.photo.uri)):
            corrected.append(entry)
            continue
        label = spelling.setdefault(found.label, found.label)
        removed += not label
        changed += bool(label) and label != entry.label
        if label:
            corrected.append(entry._replace(label=label))
    names = sorted({*listing.names, *(entry.label for entry in corrected if entry.label)})
    notes = [*listing.notes, *_describe(where, changed, removed, skipped)]
    if added := [name for name in names if name not in listing.names]:
        notes.append(f"Labels that no photo had before the corrections: {', '.join(map(repr, added))}.")
    return replace(listing, photos=corrected, names=names, notes=notes)


def _describe(where: str, changed: int, removed: int, skipped: int) -> Iterable[str]:
    text = f"{os.path.basename(where)}: {changed} labels corrected, {removed} photos left out"  # noqa: PTH119
    yield f"{text}; {skipped} photos cannot be used in any case." if skipped else f"{text}."


def _list_addresses(photo: str, where: str, source: str) -> Iterable[str]:
    """Yield the addresses that a correction may mean, in the form in which they are compared.

    Args:
        photo: address as it is written.
        where: corrections file.
        source: folder or manifest of the photos.
    """
    inside = source if manifest.is_manifest(source) else files.join(source, "photo")
    for place in (where, inside):
        yield normalize(manifest.resolve_address(photo, place))


def _unknown_photo_error(
    correction: Correction, where: str, listing: PhotoListing, address: str
) -> InputError:
    """Return the error for a photo that is not listed, with the most similar one that is."""
    nearest = _find_nearest(address, [entry.photo.uri for entry in listing.photos])
    return InputError(
        f"{where}, line {correction.line}: the photo {correction.photo} is not in {listing.where}."
        + (f" The most similar one is {nearest}." if nearest else ""),
        remedy="Correct its path, or remove the line.",
    )


def _find_nearest(address: str, uris: Sequence[str]) -> str | None:
    """Return the most similar address: the same file name if there is one, else a similar path."""
    name = address.rpartition("/")[2]
    same = [uri for uri in uris if uri.rpartition("/")[2] == name]
    # The comparison takes some 20 microseconds for each address.
    found = get_close_matches(address, (same or list(uris))[:50_000], 1, _MIN_SIMILARITY)
    return found[0] if found else next(iter(same), None)


def _to_text(value: object, what: str) -> str:
    """Return a cell as text; "" for a missing one."""
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise InputError(
        f"{what} has the type {type(value).__name__}; expected text.", remedy="Write it as text."
    )
