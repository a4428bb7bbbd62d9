"""Dataset manifests: text, CSV, JSON lines or Parquet files with a photo per line, read as a stream.

The caller decides what the columns mean. Scoring needs the address of a photo and passes the other
columns through; training also needs a label.
"""

from __future__ import annotations

import csv
import json
import os
import posixpath
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from batch.inputs import passthrough
from serving.errors import InputError
from serving.storage import files
from serving.storage.names import normalize
from serving.storage.text_lines import read_lines

URI_COLUMN_NAMES = (
    *("image", "photo", "path", "uri"),
    *("file", "filename", "file_name", "filepath", "image_path"),
)
"""Default names of the address column, matched in any case."""

TEXT_COLUMN = "uri"
"""Name given to the only column of a .txt manifest."""

_BATCH_ROWS = 1 << 13
"""Rows of a Parquet manifest that are read at a time."""

_SEPARATOR = re.compile(r"sep=(.)\s*", re.IGNORECASE)
"""Line above the header by which spreadsheets state the delimiter."""

_QUOTED = re.compile(r'"[^"]*"')

ColumnPicker = Callable[[Sequence[str], int], Mapping[str, str]]
"""Function from the column names of a line and its number to the wanted columns, by role."""


@dataclass(frozen=True)
class ColumnRole:
    """A role that a column of a dataset manifest may have, and the names by which it is found.

    Attributes:
        name: what the column contains, for errors.
        option: option that names the column, for errors.
        given: name that the user gave; "" for the default names.
        defaults: default names, matched in any case.
        required: whether a manifest without the column is an error.
    """

    name: str
    option: str
    given: str
    defaults: Sequence[str]
    required: bool = True

    def find(self, names: Sequence[str], where: str) -> str | None:
        """Return the column of this role; None if there is none.

        Args:
            names: column names of the manifest.
            where: the manifest and the line, for errors.

        Raises:
            InputError: several columns match, or none does although the role is required or its name given.
        """
        given = self.given
        found = [name for name in names if given and name == given] or [
            name
            for name in names
            if (key := normalize(name).strip())
            and (key == normalize(given).strip() if given else key.casefold() in self.defaults)
        ]
        if len(found) > 1:
            raise InputError(
                f"{where}: {' and '.join(map(repr, found))} could be the {self.name}.",
                remedy=f"Name the column with {self.option}, or remove one of them.",
            )
        if not found and (given or self.required):
            expected = repr(given) if given else " or ".join(self.defaults)
            has = f"the columns are {', '.join(map(repr, names))}" if names else "there are no columns"
            raise InputError(
                f"{where}: no column {expected} for the {self.name}; {has}.",
                remedy=f"Name the column with {self.option}, or rename it in the manifest.",
            )
        return found[0] if found else None


def is_manifest(place: str | os.PathLike[str]) -> bool:
    """Return whether a path or address has the suffix of a dataset manifest and is not a directory."""
    return Path(place).suffix.lower() in READERS and not Path(place).is_dir()


def read(
    where: str, pick: ColumnPicker, *, text: Collection[str] = ()
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the number of each line of a dataset manifest, from 1, and its values by role.

    Args:
        where: path or address of the manifest; its suffix must be one of READERS.
        pick: selects the columns; called for the header, or for each set of keys of JSON.
        text: roles whose values are text, also where a Parquet file has it as bytes.

    Raises:
        InputError: the manifest or one of its lines cannot be read.
    """
    reader = READERS.get(Path(where).suffix.lower())
    if reader is None:
        raise InputError(
            f"{where}: a manifest's name ends in {', '.join(READERS)}.",
            remedy="Rename it to match its format.",
        )
    if reader is _read_parquet:
        reader = partial(_read_parquet, text=text)
    try:
        with files.open_file(where) as file:
            yield from reader(file, where, pick)
    except OSError as error:
        raise InputError(
            f"Cannot read the manifest {where}: {error.strerror or error}.",
            remedy="Check its name and its permissions.",
        ) from error


def resolve_address(photo: str, where: str) -> str:
    """Return the absolute address of a photo, in the form in which the storage lists it.

    Args:
        photo: address in the manifest; a relative one is relative to the manifest's directory. Spaces around
            it count if there is a local file of that name.
        where: path or address of the manifest.
    """
    if (bare := photo.strip()) != photo:
        uri = resolve_address(bare, where)
        if files.is_remote(uri):
            return uri
        exact = files.local_uri(posixpath.join(posixpath.dirname(where), files.local_path(photo)))
        return exact if os.path.lexists(files.local_path(exact)) else uri
    if files.is_remote(photo):
        return photo
    if not files.is_remote(where) or photo.startswith(("/", "file://")):
        return files.local_uri(posixpath.join(posixpath.dirname(where), files.local_path(photo)))
    scheme, _, path = where.partition("://")
    return f"{scheme}://{posixpath.normpath(posixpath.join(posixpath.dirname(path), photo))}"


def read_parquet_types(where: str) -> Mapping[str, Any]:
    """Return the Arrow types of a Parquet manifest by column; empty for other formats.

    The types of other formats are inferred from their values.

    Raises:
        InputError: the file is not readable as Parquet.
    """
    if not where.lower().endswith(_PARQUET):
        return {}
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with files.open_file(where) as file:
            schema = pq.read_schema(file)
    except (pa.ArrowException, OSError) as error:
        raise _parquet_error(where, error) from error
    return dict(zip(schema.names, schema.types, strict=True))


def is_text_format(where: str) -> bool:
    """Return whether the format stores all values as text, numbers included."""
    return where.lower().endswith((".csv", ".tsv", ".txt"))


_Lines = Iterator[tuple[int, dict[str, Any]]]
_PARQUET = (".parquet", ".pq")


def _read_csv(file: BinaryIO, where: str, pick: ColumnPicker, delimiters: str = ",;\t") -> _Lines:
    lines = read_lines(file, where)
    first, start = next(lines, ""), 1
    if hint := _SEPARATOR.fullmatch(first):
        delimiters, first, start = hint[1], next(lines, ""), 2
    # The delimiter is the candidate that is most frequent in the header, outside of quotes.
    delimiter = max(delimiters, key=_QUOTED.sub("", first).count)
    trimmed = _trim_quotes(chain([first], lines), delimiter)
    reader, above = csv.reader(trimmed, delimiter=delimiter, strict=True), start
    try:
        header = [name.strip() for name in next(reader, [])]
        column_of = pick(header, start)
        at = {role: header.index(column) for role, column in column_of.items()}
        start = reader.line_num + above
        for cells in reader:
            # Spreadsheets write lines of empty cells, and empty cells at the end of lines.
            filled = any(map(str.strip, cells))
            if filled and (len(cells) < len(header) or any(map(str.strip, cells[len(header) :]))):
                raise InputError(
                    f"{where}, line {start}: {len(cells)} cells, but the header has {len(header)}.",
                    remedy="Quote cells that contain the separator, and give every line as many cells.",
                )
            if filled:
                yield start, {role: cells[index] for role, index in at.items()}
            start = reader.line_num + above  # a quoted cell may span several lines
    except csv.Error as error:
        raise InputError(
            f"{where}, line {start}: {error}.",
            remedy="Close all quotes, and double each quote inside a cell.",
        ) from error


def _trim_quotes(lines: Iterable[str], delimiter: str) -> Iterator[str]:
    """Yield the lines of a CSV file without the spaces between a delimiter and a quote."""
    spaces = " \u00a0" if delimiter == "\t" else " \u00a0\t"
    quoted = False  # a quoted cell may span several lines
    for line in lines:
        if not quoted and '"' not in line:
            yield line
            continue
        parts, after_quoted = line.split('"'), False
        for at, part in enumerate(parts):
            is_last = at == len(parts) - 1
            if quoted:
                quoted, after_quoted = is_last, True
                continue
            trimmed = part.lstrip(spaces)
            if after_quoted and trimmed[:1] in ("", delimiter, "\r", "\n"):
                part = part if part.isspace() and not is_last else trimmed
            before = part.rstrip(spaces)
            # A quote elsewhere than at the beginning of a cell, or after another one, is a character.
            if not is_last and (before.endswith(delimiter) or (not before and (at == 0 or not part))):
                part, quoted = before, True
            parts[at], after_quoted = part, False
        yield '"'.join(parts)


def _read_text(file: BinaryIO, where: str, pick: ColumnPicker) -> _Lines:
    [(role, _)] = pick([TEXT_COLUMN], 1).items()
    for line, text in enumerate(read_lines(file, where), 1):
        if address := text.strip("\r\n"):
            yield line, {role: address}


def _read_json_lines(file: BinaryIO, where: str, pick: ColumnPicker) -> _Lines:
    picked: dict[tuple[str, ...], Mapping[str, str]] = {}
    for line, text in enumerate(read_lines(file, where), 1):
        if not text.strip():
            continue
        try:
            row = json.loads(text, object_pairs_hook=_build_object)
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{where}, line {line}: invalid JSON ({error}).", remedy="Write one JSON object per line."
            ) from error
        if not isinstance(row, dict):
            raise InputError(
                f"{where}, line {line}: expected a JSON object, found {type(row).__name__}.",
                remedy='Write lines such as {"image": "a.jpg", "label": "pizza"}.',
            )
        names = tuple(row)
        if names not in picked:
            picked[names] = pick(names, line)
        yield line, {role: row[column] for role, column in picked[names].items()}


def _build_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object as a dict.

    Raises:
        ValueError: a key is repeated; JSON parsers would silently drop one of the values.
    """
    built = dict(pairs)
    if len(built) < len(pairs):
        repeated = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {repeated!r} is repeated")
    return built


def _read_parquet(file: BinaryIO, where: str, pick: ColumnPicker, text: Collection[str] = ()) -> _Lines:
    """Yield the rows of a Parquet file, numbered like lines. Only the picked columns are read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(file)
        column_of = pick(table.schema_arrow.names, 1)
        line = 0
        for batch in table.iter_batches(_BATCH_ROWS, columns=list(column_of.values())):
            values = []
            for role, column in column_of.items():
                array, place = batch.column(column), f"{where}, column {column!r}"
                if role in text:
                    array = _decode_text(array, place, line)
                try:
                    values.append(passthrough.to_json_values(array))
                except UnicodeDecodeError:
                    _check_utf8(passthrough.to_bytes(array), place, line)
                    raise
            for cells in zip(*values, strict=True):
                line += 1
                yield line, dict(zip(column_of, cells, strict=True))
    except (pa.ArrowException, OSError, ValueError, LookupError) as error:
        raise _parquet_error(where, error) from error


def _decode_text(array: Any, where: str, lines: int) -> Any:
    """Return a column (pa.Array) of bytes, dates or times as text; other columns as they are.

    Args:
        array: the column.
        where: file and name of the column, for errors.
        lines: number of lines before those of the column.
    """
    import pyarrow as pa
    import pyarrow.types as is_

    array = passthrough.to_plain(array)
    if is_.is_temporal(array.type):
        return array.cast(pa.string())
    if not passthrough.is_bytes(array.type):
        return array
    array = array.cast(pa.binary())
    try:
        return array.cast(pa.string())
    except pa.ArrowInvalid:
        _check_utf8(array, where, lines)
        raise


def _check_utf8(array: Any, where: str, lines: int) -> None:
    """Check that a column (pa.Array) of bytes is UTF-8; the arguments are those of `_decode_text`.

    Raises:
        InputError: a value is not.
    """
    for line, value in enumerate(array.to_pylist(), lines + 1):
        try:
            (value or b"").decode()
        except UnicodeDecodeError as error:
            raise InputError(
                f"{where}, line {line}: byte {error.start + 1} is not UTF-8.",
                remedy="Write the column as text.",
            ) from error


def _parquet_error(where: str, error: Exception) -> InputError:
    reason = " ".join(str(error).split()).rstrip(".")
    return InputError(
        f"Cannot read {where} as Parquet: {reason}.",
        remedy="Write the file again, or rename it to match its format.",
    )


READERS: dict[str, Callable[[BinaryIO, str, ColumnPicker], _Lines]] = {
    ".txt": _read_text,
    ".csv": _read_csv,
    ".tsv": lambda file, where, pick: _read_csv(file, where, pick, "\t"),
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".parquet": _read_parquet,
    ".pq": _read_parquet,
}
"""Reader of each format, by the suffix of the file."""
