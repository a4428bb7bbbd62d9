"""Input of a scoring run, as a stream of photos with the values of their pass-through columns."""

from __future__ import annotations

import glob
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

from batch.inputs import listing, manifest
from batch.inputs.listing import Photo
from batch.inputs.manifest import ColumnRole
from batch.inputs.passthrough import PassThroughColumns, passthrough_type
from serving.errors import InputError
from serving.storage import files
from serving.storage.external_sort import Sorter
from serving.storage.names import normalize

_BLOCK_LINES = 1 << 16
"""Lines with remote photos that are listed together."""

PLAN_PREFIX = "hubhead:"
"""Prefix of hubhead's own columns in the plan, which distinguishes them from pass-through columns."""

_ADDRESS = ""
"""Role of the address of a photo. The roles of all other columns are their names, which are not empty."""

Line = tuple[Photo, list[Any]]
"""A photo, and its values of the source's pass-through columns as JSON values."""


@dataclass
class Source:
    """Photos from a listing or from dataset manifests.

    Attributes:
        photos: file, directory or glob; "" if `manifest` is given.
        manifest: path or address of a dataset manifest, or a glob that matches several.
        uri_column: name of the address column; "" for the default names (manifest.URI_COLUMN_NAMES).
        reserved: reason by name, for each column name that a manifest may not use.
        own: addresses of files and directories that the run writes, which a listing leaves out.
        columns: pass-through columns of the manifests; complete once all lines are read.
    """

    photos: str = ""
    manifest: str = ""
    uri_column: str = ""
    reserved: Mapping[str, str] = field(default_factory=dict)
    own: Sequence[str] = ()
    columns: PassThroughColumns = field(default_factory=PassThroughColumns)

    @property
    def address(self) -> str:
        """Absolute address of the input, valid in every process."""
        return files.absolute(self.photos or self.manifest)

    def iter_lines(self) -> Iterator[Line]:
        """Yield every photo with its values, in any order, possibly with duplicates.

        Raises:
            InputError: no photos are found, or a manifest or one of its lines is invalid.
        """
        if not self.photos:
            yield from _resolve_photos(self._iter_manifest_rows())
            return
        if manifest.is_manifest(self.photos) and not glob.has_magic(self.photos):
            raise InputError(
                f"{self.photos} is a manifest, not a photo.", remedy="Give it with --manifest instead."
            )
        for photo in listing.exclude(listing.iter_photos(self.photos), self.own, self.address):
            yield photo, []

    def _iter_manifest_rows(self) -> Iterator[tuple[str, list[Any]]]:
        """Yield the address and the values of every line of the manifests."""
        for where in _find_manifests(self.address):
            pick = partial(self._pick_columns, where)
            text = manifest.is_text_format(where)
            try:
                if types := manifest.read_parquet_types(where):
                    for role, name in pick(list(types), 1).items():
                        if role != _ADDRESS:
                            self.columns.declare(name, passthrough_type(types[name], name))
            except ValueError as error:
                raise InputError(
                    f"{where}: {error}.", remedy="Write the column as another type, or leave it out."
                ) from error
            for line, cells in manifest.read(where, pick, text=[_ADDRESS]):
                uri = cells.pop(_ADDRESS)
                if not isinstance(uri, str) or not uri.strip():
                    raise InputError(
                        f"{where}, line {line}: there is no address, but {uri!r}.",
                        remedy="Fill it in as text, or delete the line.",
                    )
                try:
                    uri = manifest.resolve_address(uri, where)
                    values = self.columns.encode_row(cells, text=text)
                    # Escapes of JSON can make text that is not Unicode.
                    json.dumps([uri, values, *cells], ensure_ascii=False).encode()
                    yield uri, values
                except UnicodeEncodeError as error:
                    wrong = [repr(name) for name in cells if not _is_unicode([name, cells[name]])]
                    raise InputError(
                        f"{where}, line {line}: {(wrong or ['the address'])[0]} is not Unicode text.",
                        remedy="Write it as UTF-8.",
                    ) from error
                except ValueError as error:
                    raise InputError(
                        f"{where}, line {line}: {error}.", remedy="Give all values of a column the same type."
                    ) from error

    def _pick_columns(self, where: str, names: Sequence[str], line: int) -> dict[str, str]:
        """Return the column of the address under the role _ADDRESS, and all others under their own names."""
        where = f"{where}, line {line}"
        duplicates = [name for name, count in Counter(map(_fold, names)).items() if count > 1]
        if duplicates:
            raise InputError(
                f"{where}: more than one column is called {duplicates[0]!r}.",
                remedy="Give each column a different name.",
            )
        if "" in names:
            raise InputError(f"{where}: a column has no name.", remedy="Name it, or leave it out.")
        role = ColumnRole("address", "--uri_column", self.uri_column, manifest.URI_COLUMN_NAMES)
        uri = names[0] if tuple(names) == (manifest.TEXT_COLUMN,) else role.find(names, where)
        for name in names:
            why = self.reserved.get(_fold(name), "")
            if name.startswith(PLAN_PREFIX):
                why = f"where {PLAN_PREFIX} begins the names of a run's own columns"
            if name != uri and why:
                raise InputError(
                    f"{where}: the column {name!r} passes through to the scores, {why}.",
                    remedy="Rename it in the manifest, or leave it out.",
                )
        return {_ADDRESS if name == uri else name: name for name in names}


def _is_unicode(value: Any) -> bool:
    try:
        return bool(json.dumps(value, ensure_ascii=False).encode())
    except UnicodeEncodeError:
        return False


def _fold(name: str) -> str:
    """Return the form in which column names are compared; engines ignore the case."""
    return normalize(name).casefold()


def _find_manifests(address: str) -> list[str]:
    """Return the addresses of the manifests that an address or glob matches."""
    if not glob.has_magic(address):
        return [address]
    found = [photo.uri for photo in listing.find_photos(address)]
    if strange := [uri for uri in found if not manifest.is_manifest(uri)]:
        raise InputError(
            f"{strange[0]} is not a manifest.",
            remedy=f"Give a glob that ends in one of {', '.join(manifest.READERS)}.",
        )
    return found


def _resolve_photos(rows: Iterator[tuple[str, list[Any]]]) -> Iterator[Line]:
    """Yield the photos of manifest rows with size and modification time.

    Local files are examined one by one. Rows with remote photos are sorted by address first, so
    that one listing request per directory replaces one request per photo.
    """
    with Sorter() as remote:
        for number, (uri, values) in enumerate(rows):
            if files.is_remote(uri):
                # The number keeps rows of the same photo in their order: the first one counts later.
                remote.add(json.dumps([uri, f"{number:012}", values]).encode() + b"\n")
            else:
                yield listing.stat_photo(uri), values
        lines = remote.lines()
        while block := [json.loads(line) for line in islice(lines, _BLOCK_LINES)]:
            yield from _list_remote_photos(block)


def _list_remote_photos(block: list[Any]) -> Iterator[Line]:
    by_directory: dict[str, list[tuple[str, list[Any]]]] = {}
    for uri, _, values in block:
        by_directory.setdefault(uri.rpartition("/")[0], []).append((uri, values))
    for directory, rows in by_directory.items():
        found = listing.list_directory(directory, {uri for uri, _ in rows})
        for uri, values in rows:
            # A photo that is not listed becomes a row with a status, like a missing local file.
            yield found.get(uri, Photo(uri, 0, 0)), values
