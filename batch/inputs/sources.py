"""The input of a scoring run as a stream of lines: a photo, and what else its manifest says of it."""

from __future__ import annotations

import glob
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from batch.inputs import listing, manifest
from batch.inputs.listing import Photo
from batch.inputs.passthrough import PassThroughColumns, passthrough_type
from serving.errors import InputError
from serving.storage import files
from serving.storage.external_sort import Sorter

_BLOCK = 1 << 16

Line = tuple[Photo, list[Any]]
"""A photo, and its values of the source's columns as JSON values."""


@dataclass
class Source:
    """Photos from a listing or from manifests.

    Attributes:
        photos: file, directory or glob; "" where manifests are given.
        manifest: a manifest, or a glob of some.
        uri_column: of the manifests; "" for the usual names (manifest.URI_COLUMN_NAMES).
        reserved: names that no column may have, with the reason.
        columns: of the manifests beside the address; complete when all lines are read.
    """

    photos: str = ""
    manifest: str = ""
    uri_column: str = ""
    reserved: Mapping[str, str] = field(default_factory=dict)
    columns: PassThroughColumns = field(default_factory=PassThroughColumns)

    @property
    def address(self) -> str:
        """The address of the input, as every process understands it."""
        return files.absolute(self.photos or self.manifest)

    def iter_lines(self) -> Iterator[Line]:
        """Every photo with its values, in any order, maybe one more than once.

        Raises:
            InputError: there is nothing, or a manifest or a line of it cannot be used.
        """
        if not self.photos:
            yield from _located(self._named())
            return
        if manifest.is_manifest(self.photos) and not glob.has_magic(self.photos):
            raise InputError(
                f"{self.photos} is a manifest, not a photo.", remedy="Give it with --manifest instead."
            )
        for photo in listing.iter_photos(self.photos):
            yield photo, []

    def _named(self) -> Iterator[tuple[str, list[Any]]]:
        """The address and the values of every line of the manifests."""
        for where in _manifests(self.address):
            pick = _Picker(where, self)
            text = manifest.is_text_format(where)
            try:
                if types := manifest.read_parquet_types(where):
                    pick(types, 1)
                    for name, kind in types.items():
                        if name != pick.uri:
                            self.columns.declare(name, passthrough_type(kind))
            except ValueError as error:
                raise InputError(
                    f"{where}: {error}.", remedy="Write the column as another type, or leave it out."
                ) from error
            for line, cells in manifest.read(where, pick):
                uri = cells.pop(pick.uri, None)
                if not isinstance(uri, str) or not uri.strip():
                    raise InputError(
                        f"{where}, line {line}: there is no address in {pick.uri!r}.",
                        remedy="Fill it in as text, or take the line out.",
                    )
                try:
                    yield manifest.resolve_address(uri, where), self.columns.encode_row(cells, text=text)
                except ValueError as error:
                    raise InputError(
                        f"{where}, line {line}: {error}.", remedy="Give a column values of one type."
                    ) from error


def _manifests(place: str) -> list[str]:
    """The files that a manifest's name or a glob of them means."""
    if not glob.has_magic(place):
        return [place]
    found = [photo.uri for photo in listing.find_photos(place)]
    if strange := [uri for uri in found if not manifest.is_manifest(uri)]:
        raise InputError(
            f"{strange[0]} is no manifest.",
            remedy=f"Give a glob that ends in one of {', '.join(manifest.READERS)}.",
        )
    return found


class _Picker:
    """All columns of a manifest under their own names, once it is clear which one is the address."""

    def __init__(self, where: str, source: Source) -> None:
        self.uri = source.uri_column
        self._where = where
        self._source = source
        self._known: dict[tuple[str, ...], dict[str, str]] = {}

    def __call__(self, names: Iterable[str], line: int) -> dict[str, str]:
        key = tuple(names)
        if key not in self._known:
            self._check(key, f"{self._where}, line {line}")
            self._known[key] = {name: name for name in key}
        return self._known[key]

    def _check(self, names: tuple[str, ...], where: str) -> None:
        twice = [name for name, count in Counter(map(str.casefold, names)).items() if count > 1]
        if twice:
            raise InputError(
                f"{where}: more than one column is called {twice[0]!r}.",
                remedy="Give each a name of its own.",
            )
        self.uri = self._address(names, where)
        for name in names:
            if name != self.uri and (why := self._source.reserved.get(name.casefold())):
                raise InputError(
                    f"{where}: the column {name!r} passes through to the scores, {why}.",
                    remedy="Rename it in the manifest, or leave it out.",
                )
            if not name:
                raise InputError(f"{where}: a column has no name.", remedy="Name it, or leave it out.")

    def _address(self, names: tuple[str, ...], where: str) -> str:
        given = self._source.uri_column
        if names == (manifest.TEXT_COLUMN,) or given in names:
            return given if given in names else manifest.TEXT_COLUMN
        found = [name for name in names if not given and name.strip().casefold() in manifest.URI_COLUMN_NAMES]
        if len(found) == 1:
            return found[0]
        has = f"the columns are {', '.join(map(repr, names))}" if names else "there are no columns"
        raise InputError(
            f"{where}: {' and '.join(map(repr, found))} could each be the address."
            if found
            else f"{where}: no column {repr(given) if given else ' or '.join(manifest.URI_COLUMN_NAMES)}; {has}.",
            remedy="Name the column of addresses with --uri_column.",
        )


def _located(named: Iterator[tuple[str, list[Any]]]) -> Iterator[Line]:
    """The photos as their storages list them.

    Local files are asked one by one. Of remote ones the lines are sorted first, so that a
    directory is listed once for many photos instead of being asked over the network for each.
    """
    with Sorter() as remote:
        for number, (uri, values) in enumerate(named):
            if files.is_remote(uri):
                # The number keeps lines of the same photo in their order.
                remote.add(json.dumps([uri, f"{number:012}", values]).encode() + b"\n")
            else:
                yield listing.stat_photo(uri), values
        lines = remote.lines()
        while block := [json.loads(line) for line in islice(lines, _BLOCK)]:
            yield from _listed(block)


def _listed(block: list[Any]) -> Iterator[Line]:
    by_directory: dict[str, list[tuple[str, list[Any]]]] = {}
    for uri, _, values in block:
        by_directory.setdefault(uri.rpartition("/")[0], []).append((uri, values))
    for directory, lines in by_directory.items():
        found = listing.list_directory(directory, {uri for uri, _ in lines})
        for uri, values in lines:
            yield found.get(uri, Photo(uri, 0, 0)), values
