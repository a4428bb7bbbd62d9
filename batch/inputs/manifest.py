"""Manifests: tables that name photos, one a line, as text, CSV, JSON lines or Parquet, read as a stream.

What the columns mean is the caller's: scoring wants an address and passes the others
through, training wants a label too.
"""

from __future__ import annotations

import csv
import json
import os
import posixpath
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from batch.inputs import passthrough
from serving.errors import InputError
from serving.storage import files

URI_COLUMN_NAMES = (
    "image",
    "photo",
    "path",
    "uri",
    "file",
    "filename",
    "file_name",
    "filepath",
    "image_path",
)
"""How the column of addresses is called, in any case, where nothing else is said."""

TEXT_COLUMN = "uri"
"""The name of the one column that a .txt has."""

_BATCH = 1 << 13

Pick = Callable[[Iterable[str], int], Mapping[str, str]]
"""Given the columns of a line and its number, the wanted columns: role to column."""


def is_manifest(place: str | os.PathLike[str]) -> bool:
    """Whether a path or address names a manifest, by its suffix, and not a directory."""
    return Path(place).suffix.lower() in READERS and not Path(place).is_dir()


def read(where: str, pick: Pick) -> Iterator[tuple[int, dict[str, Any]]]:
    """The lines of a manifest: their number, from 1, and the value of each role.

    Args:
        where: a file whose suffix is one of READERS, on any storage.
        pick: called for the header, or for every line of JSON.

    Raises:
        InputError: the manifest, or a line of it, cannot be read.
    """
    reader = READERS.get(Path(where).suffix.lower())
    if reader is None:
        raise InputError(
            f"{where}: a manifest's name ends in {', '.join(READERS)}.",
            remedy="Name it after what it holds.",
        )
    try:
        with files.open_file(where) as file:
            yield from reader(file, where, pick)
    except OSError as error:
        raise InputError(
            f"Cannot read the manifest {where}: {error.strerror or error}.",
            remedy="Check the spelling, and that it may be read.",
        ) from error


def resolve_address(photo: str, where: str) -> str:
    """The address of a photo as the storage lists it; a relative one is relative to the manifest."""
    if files.is_remote(photo):
        return photo
    if not files.is_remote(where) or photo.startswith(("/", "file://")):
        return files.local_uri(posixpath.join(posixpath.dirname(where), files.local_path(photo)))
    scheme, _, path = where.partition("://")
    return f"{scheme}://{posixpath.normpath(posixpath.join(posixpath.dirname(path), photo))}"


def read_parquet_types(where: str) -> Mapping[str, Any]:
    """The columns of a Parquet manifest with their types; none for other manifests, whose values tell."""
    if not where.lower().endswith(_PARQUET):
        return {}
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with files.open_file(where) as file:
            schema = pq.read_schema(file)
    except (pa.ArrowException, OSError) as error:
        raise _no_parquet(where, error) from error
    return dict(zip(schema.names, schema.types, strict=True))


def is_text_format(where: str) -> bool:
    """Whether all cells are text, whatever they mean."""
    return where.lower().endswith((".csv", ".tsv", ".txt"))


_Lines = Iterator[tuple[int, dict[str, Any]]]
_PARQUET = (".parquet", ".pq")


def _csv(file: BinaryIO, where: str, pick: Pick, delimiters: str = ",;\t") -> _Lines:
    lines = _decoded(file, where)
    first = next(lines, "")
    reader = csv.reader(chain([first], lines), delimiter=max(delimiters, key=first.count), strict=True)
    start = 1
    try:
        header = next(reader, [])
        column_of = pick(header, start)
        at = {role: header.index(column) for role, column in column_of.items()}
        while True:
            start = reader.line_num + 1
            cells = next(reader, None)
            if cells is None:
                return
            if cells and len(cells) != len(header):
                raise InputError(
                    f"{where}, line {start}: {len(cells)} cells where the first line has {len(header)}.",
                    remedy="Quote cells that hold the separator, and give every line as many cells.",
                )
            if cells:
                yield start, {role: cells[index] for role, index in at.items()}
    except csv.Error as error:
        raise InputError(
            f"{where}, line {start}: {error}.", remedy="Close the quotes, and write a quote in a cell twice."
        ) from error


def _decoded(file: Iterable[bytes], where: str) -> Iterator[str]:
    for line, raw in enumerate(file, 1):
        try:
            yield raw.decode("utf-8-sig" if line == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise InputError(
                f"{where}, line {line}: byte {error.start + 1} is not UTF-8.",
                remedy="Save the manifest as UTF-8.",
            ) from error


def _text_lines(file: BinaryIO, where: str, pick: Pick) -> _Lines:
    [(role, _)] = pick([TEXT_COLUMN], 1).items()
    for line, text in enumerate(_decoded(file, where), 1):
        if address := text.strip("\r\n"):
            yield line, {role: address}


def _json_lines(file: BinaryIO, where: str, pick: Pick) -> _Lines:
    for line, text in enumerate(_decoded(file, where), 1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{where}, line {line}: no JSON ({error}).", remedy="Write one JSON object a line."
            ) from error
        if not isinstance(row, dict):
            raise InputError(
                f"{where}, line {line}: {type(row).__name__} where an object is needed.",
                remedy='Write lines such as {"image": "a.jpg", "label": "pizza"}.',
            )
        yield line, {role: row[column] for role, column in pick(row, line).items()}


def _parquet(file: BinaryIO, where: str, pick: Pick) -> _Lines:
    """Rows of a Parquet file, which count as lines; other columns are not read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(file)
        column_of = pick(table.schema_arrow.names, 1)
        line = 0
        for batch in table.iter_batches(_BATCH, columns=list(column_of.values())):
            values = (passthrough.to_json_values(batch.column(column)) for column in column_of.values())
            for cells in zip(*values, strict=True):
                line += 1
                yield line, dict(zip(column_of, cells, strict=True))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _no_parquet(where, error) from error


def _no_parquet(where: str, error: Exception) -> InputError:
    return InputError(
        f"Cannot read {where} as Parquet: {error}.",
        remedy="Write it again, or name it after what it holds.",
    )


READERS: dict[str, Callable[[BinaryIO, str, Pick], _Lines]] = {
    ".txt": _text_lines,
    ".csv": _csv,
    ".tsv": lambda file, where, pick: _csv(file, where, pick, "\t"),
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".parquet": _parquet,
    ".pq": _parquet,
}
