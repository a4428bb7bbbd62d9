"""Scores of previous runs, used as the list of photos of a new run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from batch.embeddings import SHA_BYTES
from batch.embeddings.lookup import Lookup
from batch.output.dataset import RUN_FILE
from batch.output.schema import COLUMNS, encode_status_column, format_columns, parse_hex_digests
from batch.output.shard_record import WORK_DIRECTORY
from serving.errors import InputError
from serving.process import map_ahead
from serving.storage import files

if TYPE_CHECKING:
    import pyarrow as pa

_KEY_BYTES = 16
_OWN_COLUMNS = ("uri", "sha256", "status", "detail")
"""Columns of the previous scores that are read besides the pass-through columns."""

_RUN_COLUMNS = ("model", "version", "scored_at")

_READERS = 16
"""Footers that are read at once: an object store takes milliseconds for each."""


@dataclass(frozen=True)
class _FileInfo:
    """A Parquet file of scores, as described by its metadata.

    Attributes:
        path: address of the file.
        rows: number of rows.
        runs: for each row group, the least and the greatest (model, version, scored_at).
        columns: name and type of each pass-through column.
    """

    path: str
    rows: int
    runs: frozenset[Any]
    columns: tuple[tuple[str, str], ...]

    @property
    def newest(self) -> Any:
        """Latest `scored_at` of the rows, as text."""
        return max(str(last[2]) for _, last in self.runs)


class PreviousScores:
    """The scores dataset of previous runs.

    If a photo has several rows, from several models or runs, the newest one counts.

    Args:
        directory: output directory of `hubhead score`, or the `scores` directory in it.

    Attributes:
        directory: absolute path or address of the directory.
        columns: name and type of each pass-through column.
        rows: number of rows in all files.

    Raises:
        InputError: there are no scores, the run that wrote them is not complete, or a file has other
            columns than those of `hubhead score`.
    """

    def __init__(self, directory: str) -> None:
        self.directory = files.absolute(directory)
        names = set(files.list_names(self.directory)) if not files.is_remote(self.directory) else set()
        if WORK_DIRECTORY in names and RUN_FILE not in names:
            raise InputError(
                f"The scores in {self.directory} are not complete: there is no {RUN_FILE}.",
                remedy="Run the same hubhead score again; it completes them.",
            )
        found = list(map_ahead(_read_info, self._list_files(), _READERS, 2 * _READERS))
        columns = sorted({file.columns for file in found})
        if len(columns) > 1:
            raise InputError(
                f"The files of scores in {self.directory} have different columns:"
                f" {format_columns(columns[0])} and {format_columns(columns[1])}.",
                remedy="Rescore the outputs of different manifests separately.",
            )
        self.columns: Sequence[Sequence[str]] = columns[0]
        self.rows = sum(file.rows for file in found)
        runs = frozenset().union(*(file.runs for file in found))
        # Rows of one model and one run contain each photo once. Otherwise the files are read newest
        # first, and photos that appeared before are skipped.
        self._single_run = len(runs) == 1 and all(first == last for first, last in runs)
        self._files = found if self._single_run else sorted(found, key=lambda f: f.newest, reverse=True)

    def _list_files(self) -> list[str]:
        for top in (files.join(self.directory, "scores"), self.directory):
            paths = sorted(path for path, _ in files.walk_files(top) if path.endswith(".parquet"))
            # As for Parquet readers, names with a leading dot or underscore are hidden.
            paths = [path for path in paths if not any(part[0] in "._" for part in path.split("/"))]
            if paths:
                return [files.join(top, path) for path in paths]
        raise InputError(
            f"There are no scores in {self.directory}.",
            remedy="Give the directory that hubhead score --output wrote.",
        )

    def iter_files(self, identity: Mapping[str, Any]) -> Iterator[PreviousFile]:
        """Yield the photos, those of each file together, without duplicates.

        Args:
            identity: everything else that the new rows depend on, as JSON values.

        Raises:
            InputError: a file cannot be read.
        """
        seen = Lookup(_KEY_BYTES, np.int8)  # used as a set
        for file in self._files:
            table = _read_table(file)
            if not self._single_run:
                table = _select_new(table, seen)
            if table.num_rows:
                yield PreviousFile(_digest_rows(table, identity), file.path, table)

    def iter_columns(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Yield columns of all rows, file by file, the newest first if they are of several runs.

        A photo with rows of several models or runs appears several times.

        Raises:
            InputError: a file cannot be read.
        """
        for file in self._files:
            with _open_parquet(file.path) as parquet:
                yield parquet.read(columns=list(columns))


@dataclass(frozen=True)
class PreviousFile:
    """Photos of a file of previous scores, which become a shard of the new scores.

    Attributes:
        id: id of the new shard: digest of the photos and of everything that their rows depend on.
        path: address of the file.
        table: uri, sha256, status, detail and pass-through columns, one row per photo.
    """

    id: str
    path: str
    table: Any

    @property
    def columns(self) -> Any:
        """Table of the pass-through columns; None if there are none."""
        names = [name for name in self.table.column_names if name not in _OWN_COLUMNS]
        return self.table.select(names) if names else None

    def digests(self) -> Any:
        """Return the sha256 digests of the photos, dtype S32; all zeros for photos that were not read.

        Raises:
            InputError: a value is not a sha256.
        """
        try:
            return parse_hex_digests(self.table["sha256"], SHA_BYTES)
        except ValueError as error:
            raise InputError(f"{self.path}: in the column sha256 {error}.") from error

    def status_codes(self) -> Any:
        """Return the previous status of each photo, as codes of `batch.output.schema.STATUSES`."""
        return encode_status_column(self.table["status"].combine_chunks())


def _read_info(path: str) -> _FileInfo:
    """Read the footer of a file.

    The statistics of each row group tell which runs its rows are from.

    Raises:
        InputError: the file cannot be read or has other columns.
    """
    with _open_parquet(path) as parquet:
        metadata, columns = parquet.metadata, parquet.schema_arrow
    missing = [name for name in (*_OWN_COLUMNS, *_RUN_COLUMNS) if name not in columns.names]
    if missing:
        raise InputError(
            f"{path} has no column {missing[0]}.",
            remedy="Give the directory that hubhead score --output wrote.",
        )
    at: list[int] = []
    if metadata.num_row_groups:
        names = [metadata.row_group(0).column(i).path_in_schema for i in range(metadata.num_columns)]
        at = [names.index(name) for name in _RUN_COLUMNS]
    runs = set()
    for number in range(metadata.num_row_groups):
        statistics: list[Any] = [metadata.row_group(number).column(i).statistics for i in at]
        if all(one is not None and one.has_min_max for one in statistics):
            runs.add((tuple(one.min for one in statistics), tuple(one.max for one in statistics)))
        else:
            runs.add((("", 0, ""), ("~", 0, "")))  # unknown: least and greatest differ, as of several runs
    passing = [(field.name, str(field.type)) for field in columns if field.name not in COLUMNS]
    return _FileInfo(path, metadata.num_rows, frozenset(runs), tuple(passing))


def _read_table(file: _FileInfo) -> pa.Table:
    names = [*_OWN_COLUMNS, *(name for name, _ in file.columns)]
    with _open_parquet(file.path) as parquet:
        return parquet.read(columns=names).select(names).combine_chunks()


def _select_new(table: pa.Table, seen: Lookup) -> pa.Table:
    """Return the first row of each photo that is not in `seen`, and add these photos to `seen`."""
    uris: Any = table["uri"].to_pylist()
    text = b"".join(hashlib.blake2b(uri.encode(), digest_size=_KEY_BYTES).digest() for uri in uris)
    keys, first = np.unique(np.frombuffer(text, f"S{_KEY_BYTES}"), return_index=True)
    _, found = seen.find(keys)
    seen.add(keys[~found], np.zeros(int((~found).sum()), np.int8))
    chosen = np.sort(first[~found])
    return table if len(chosen) == table.num_rows else table.take(chosen)


def _digest_rows(table: pa.Table, identity: Mapping[str, Any]) -> str:
    """Return a digest of the rows and the identity, independent of the file that the rows come from."""
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    plain = table.replace_schema_metadata(None)
    with pa.ipc.new_stream(sink, plain.schema) as stream:
        stream.write_table(plain)
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode())
    digest.update(sink.getvalue())
    return digest.hexdigest()[:32]


@contextmanager
def _open_parquet(path: str) -> Iterator[Any]:
    """Open a pq.ParquetFile, and report it as unreadable if the `with` block cannot read it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with files.open_file(path) as file:
            yield pq.ParquetFile(file)
    except (OSError, pa.ArrowException) as error:
        raise InputError(
            f"{path} cannot be read: {error}.", remedy="Run the same hubhead score again with --overwrite."
        ) from error
