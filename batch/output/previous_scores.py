"""The rows of earlier scorings, as the list of photos for another one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from batch.embeddings import SHA_BYTES
from batch.embeddings.lookup import Lookup
from batch.output.schema import COLUMNS, encode_status_column, parse_hex_digests
from serving.errors import InputError
from serving.storage import files

if TYPE_CHECKING:
    import pyarrow as pa

_KEY_BYTES = 16
_OURS = ("uri", "sha256", "status", "detail")
_RUN_FILE, _WORK_DIRECTORY = "run.json", "_hubhead"


@dataclass(frozen=True)
class _File:
    """A file of rows, by its metadata.

    Attributes:
        path: of it.
        rows: how many.
        runs: the (model, version, scored_at) that its row groups span: a pair of the least and the
            greatest for each.
        columns: names and types of what passes through.
    """

    path: str
    rows: int
    runs: frozenset[Any]
    columns: tuple[tuple[str, str], ...]

    @property
    def newest(self) -> Any:
        return max(str(last[2]) for _, last in self.runs)


class PreviousScores:
    """A scores dataset: the directory that was given to `--output`, or the `scores` in it.

    Of a photo that has several rows, of several models or runs, the newest counts.

    Raises:
        InputError: there are no scores, those of a run that is not through, or no files of ours.
    """

    def __init__(self, directory: str) -> None:
        self.directory = files.absolute(directory)
        names = set(files.list_names(self.directory)) if not files.is_remote(self.directory) else set()
        below = files.join(self.directory, "scores")
        if _WORK_DIRECTORY in names and _RUN_FILE not in names:
            raise InputError(
                f"The scores in {self.directory} are not complete: there is no {_RUN_FILE}.",
                remedy="Run the hubhead score that made them again; it does what is left.",
            )
        for top in (below, self.directory):
            paths = sorted(path for path, _ in files.walk_files(top) if path.endswith(".parquet"))
            paths = [path for path in paths if not any(part[0] in "._" for part in path.split("/"))]
            if paths:
                break
        else:
            raise InputError(
                f"There are no scores in {self.directory}.", remedy="Give the --output of a hubhead score."
            )
        found = [_about(files.join(top, path)) for path in paths]
        kinds = sorted({file.columns for file in found})
        if len(kinds) > 1:
            raise InputError(
                f"The scores in {self.directory} have columns that differ: {_listed(kinds[0])} here,"
                f" {_listed(kinds[1])} there.",
                remedy="Rescore the outputs of the different manifests apart.",
            )
        self.columns: Sequence[Sequence[str]] = kinds[0]
        self.rows = sum(file.rows for file in found)
        runs = frozenset().union(*(file.runs for file in found))
        # One model and one run have a row a photo; only else photos may be there more than once.
        self._single = len(runs) == 1 and all(first == last for first, last in runs)
        self._files = found if self._single else sorted(found, key=lambda file: file.newest, reverse=True)

    def iter_files(self, identity: Mapping[str, Any]) -> Iterator[PreviousFile]:
        """The photos, those of each file together.

        Args:
            identity: what the new rows depend on beside them, as JSON values.

        Raises:
            InputError: a file cannot be read.
        """
        seen = Lookup(_KEY_BYTES, np.int8)
        for file in self._files:
            table = _read(file)
            if not self._single:
                table = _newest(table, seen)
            if table.num_rows:
                yield PreviousFile(_id(table, identity), file.path, table)


@dataclass(frozen=True)
class PreviousFile:
    """The photos of one file, which become one shard of the new scores.

    Attributes:
        id: digest of the photos and of everything that their rows depend on.
        path: of the file.
        table: uri, sha256, status, detail, and what passes through; a row a photo.
    """

    id: str
    path: str
    table: Any

    @property
    def columns(self) -> Any:
        """What passes through; None for nothing."""
        names = [name for name in self.table.column_names if name not in _OURS]
        return self.table.select(names) if names else None

    def digests(self) -> Any:
        """The digests, dtype S32; all zeros where the bytes were not read.

        Raises:
            InputError: something else stands there.
        """
        try:
            return parse_hex_digests(self.table["sha256"], SHA_BYTES)
        except ValueError as error:
            raise InputError(f"{self.path}: in the column sha256 {error}.") from error

    def status_codes(self) -> Any:
        """What became of each photo before, as codes of `batch.output.schema.STATUSES`."""
        return encode_status_column(self.table["status"].combine_chunks())


def _about(path: str) -> _File:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with files.open_file(path) as file:
            parquet = pq.ParquetFile(file)
            about, columns = parquet.metadata, parquet.schema_arrow
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(path, error) from error
    lacking = [name for name in (*_OURS, "model", "version", "scored_at") if name not in columns.names]
    if lacking:
        raise InputError(
            f"{path} has no column {lacking[0]}.", remedy="Give the --output of a hubhead score."
        )
    at = (
        [
            [about.row_group(0).column(i).path_in_schema for i in range(about.num_columns)].index(name)
            for name in ("model", "version", "scored_at")
        ]
        if about.num_row_groups
        else []
    )
    runs = set()
    for number in range(about.num_row_groups):
        told: list[Any] = [about.row_group(number).column(i).statistics for i in at]
        if all(one is not None and one.has_min_max for one in told):
            runs.add((tuple(one.min for one in told), tuple(one.max for one in told)))
        else:
            runs.add((("", 0, ""), ("~", 0, "")))  # unknown: as if there were several
    passing = [(field.name, str(field.type)) for field in columns if field.name not in COLUMNS]
    return _File(path, about.num_rows, frozenset(runs), tuple(passing))


def _read(file: _File) -> pa.Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = [*_OURS, *(name for name, _ in file.columns)]
    try:
        with files.open_file(file.path) as opened:
            return pq.ParquetFile(opened).read(columns=names).select(names).combine_chunks()
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(file.path, error) from error


def _newest(table: pa.Table, seen: Lookup) -> pa.Table:
    """The rows of photos that no newer file has, each once."""
    uris: Any = table["uri"].to_pylist()
    text = b"".join(hashlib.blake2b(uri.encode(), digest_size=_KEY_BYTES).digest() for uri in uris)
    keys, first = np.unique(np.frombuffer(text, f"S{_KEY_BYTES}"), return_index=True)
    _, found = seen.find(keys)
    seen.add(keys[~found], np.zeros(int((~found).sum()), np.int8))
    chosen = np.sort(first[~found])
    return table if len(chosen) == table.num_rows else table.take(chosen)


def _id(table: pa.Table, identity: Mapping[str, Any]) -> str:
    """A digest of what stands in the rows, whatever file they are in."""
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    plain = table.replace_schema_metadata(None)
    with pa.ipc.new_stream(sink, plain.schema) as stream:
        stream.write_table(plain)
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode())
    digest.update(sink.getvalue())
    return digest.hexdigest()[:32]


def _unreadable(path: str, error: Exception) -> InputError:
    return InputError(
        f"{path} cannot be read: {error}.",
        remedy="Run the hubhead score that made it again with --overwrite.",
    )


def _listed(columns: Sequence[Sequence[str]]) -> str:
    return ", ".join(f"{name} ({kind})" for name, kind in columns) or "none"
