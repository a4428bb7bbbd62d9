"""Reading and appending the embeddings of one backbone."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from batch.embeddings import layout
from batch.embeddings.layout import COLUMNS, EMBEDDINGS, INDEX, KEY_BYTES, SHA, SHA_BYTES, STATUS, VECTOR
from batch.embeddings.lookup import SPILL, Lookup
from batch.embeddings.rows import Embeddings
from batch.inputs.listing import Photo
from serving.contract import Status
from serving.storage import files

if TYPE_CHECKING:
    import pyarrow as pa

_log = logging.getLogger(__name__)

BLOCK_ROWS = 4096
"""Rows that `EmbeddingStore.iter_blocks` gives at a time: 10 MB of 1280 floats each."""

_READERS = 8
_FILE_BITS = 32


def default_root() -> str:
    """The store that training and scoring share: below the cache directory."""
    return str(files.cache_directory() / "embeddings")


class EmbeddingStore:
    """The embeddings of one backbone, shared by any number of processes.

    Writers add whole files, so readers see only whole files; files that are merged or pruned by
    another process meanwhile are looked for anew. In memory are digests alone, 100 bytes a photo,
    of half a million photos at most; the others are mapped from a temporary file.

    Args:
        root: directory of the store, local or remote.
        fingerprint: of the backbone and the preprocessing.
        dimension: D, floats an embedding.
    """

    def __init__(self, root: str, fingerprint: str, dimension: int) -> None:
        self.root = files.absolute(root)
        self.fingerprint = fingerprint
        self.directory = files.join(self.root, fingerprint)
        self.dimension = dimension
        self._index = Lookup(KEY_BYTES, f"V{SHA_BYTES}")
        self._rows = Lookup(SHA_BYTES, np.int64)  # value: number of the file, row
        self._names: list[str] = []  # of embeddings files, by number
        self._numbers: dict[str, int] = {}  # of those that are there and whole
        self._seen: set[str] = set()
        self._lock = threading.RLock()

    def lookup_digests(self, photos: Iterable[Photo]) -> dict[Photo, bytes]:
        """sha256 of the photos whose bytes were read before and whose file has not changed since."""
        wanted = list(photos)
        keys = _keys([layout.photo_key(photo) for photo in wanted], KEY_BYTES)
        with self._lock:
            self._refresh()
            shas, found = self._index.find(keys)
        return {wanted[row]: shas[row].tobytes() for row in np.flatnonzero(found)}

    def filter_present(self, shas: Iterable[bytes]) -> set[bytes]:
        """Which of these contents have a row, as far as was seen at the last call of `known`."""
        wanted = list(shas)
        with self._lock:
            _, found = self._rows.find(_keys(wanted, SHA_BYTES))
        return {wanted[row] for row in np.flatnonzero(found)}

    def get(self, shas: Iterable[bytes]) -> Embeddings:
        """The rows of these contents, each once; those that the store does not have are left out."""
        wanted = list(dict.fromkeys(shas))
        blocks = list(self.iter_blocks(_keys(wanted, SHA_BYTES), COLUMNS))
        tables: list[Any] = [content for _, content in blocks]
        blank: Any = np.empty((0, self.dimension), np.float16)
        return Embeddings(
            shas=[wanted[position] for positions, _ in blocks for position in positions],
            vectors=np.concatenate([blank, *(layout.to_vectors(t, self.dimension) for t in tables)]),
            statuses=[Status(name) for t in tables for name in t[STATUS].to_pylist()],
            details=[text for t in tables for text in t["detail"].to_pylist()],
            heights=_joined(tables, "height"),
            widths=_joined(tables, "width"),
        )

    def get_statuses(self, shas: Iterable[bytes]) -> dict[bytes, Status]:
        """The status of these contents, without reading embeddings."""
        wanted = list(dict.fromkeys(shas))
        blocks: Iterable[tuple[Any, Any]] = self.iter_blocks(_keys(wanted, SHA_BYTES), [STATUS])
        return {
            wanted[position]: Status(name)
            for positions, content in blocks
            for position, name in zip(positions, content[STATUS].to_pylist(), strict=True)
        }

    def iter_blocks(
        self, wanted: NDArray[np.bytes_], columns: Sequence[str] = COLUMNS
    ) -> Iterator[tuple[NDArray[np.int64], pa.Table]]:
        """The rows of many contents, some thousands at a time, in the order of the store.

        Each file is opened once, and only the groups of rows in which one is wanted are read.

        Args:
            wanted: N distinct sha256 digests, dtype S32.
            columns: of the embeddings files.

        Yields:
            Which of `wanted` the rows of the table are, and the table. What the store does not
            have is in none.
        """
        open_rows = np.arange(len(wanted))
        while len(open_rows):
            with self._lock:
                self._refresh()
                places, found = self._rows.find(wanted[open_rows])
                names = list(self._names)
            open_rows, places = open_rows[found], places[found]
            if not len(open_rows):
                return
            order = np.argsort(places, kind="stable")
            open_rows, places = open_rows[order], places[order]
            numbers, starts = np.unique(places >> _FILE_BITS, return_index=True)
            lost = []
            for number, positions, at in zip(
                numbers, np.split(open_rows, starts[1:]), np.split(places, starts[1:]), strict=True
            ):
                rows, done = at & ((1 << _FILE_BITS) - 1), 0
                for content in self._read(names[number], columns, rows):
                    yield positions[done : done + len(content)], content
                    done += len(content)
                if done < len(rows):
                    self._drop([int(number)])
                    lost.append(positions[done:])
            # Another file may have the rows of one that is torn, or was merged since the last look.
            open_rows = np.concatenate([np.empty(0, np.int64), *lost])

    def append(self, index: Mapping[Photo, bytes], embeddings: Embeddings) -> None:
        """Keep rows, and which photos they are of.

        Rows are written first, so that a run cut off in between leaves no index entry
        without its row.

        Raises:
            OutputError: the store cannot be written.
        """
        if len(embeddings.shas):
            self._write(EMBEDDINGS, layout.to_table(embeddings, self.dimension))
        if index:
            self._write(INDEX, layout.to_index_table(index))

    def _write(self, prefix: str, content: pa.Table) -> None:
        name = layout.write_file(self.directory, prefix, content)
        with self._lock:
            if name not in self._numbers:
                # Where a torn file had this name, the whole one is to be taken in.
                self._seen.discard(name)

    def _refresh(self) -> None:
        """Take in the files that came since the last look, and forget those that went."""
        there = set(files.list_names(self.directory))
        self._drop([number for name, number in self._numbers.items() if name not in there])
        self._seen &= there
        new = sorted(name for name in there - self._seen if layout.file_kind(name))
        self._seen.update(new)
        with ExitStack() as stack:
            take: Any = map
            if len(new) > 1:
                take = stack.enter_context(ThreadPoolExecutor(_READERS)).map
            self._take(EMBEDDINGS, [name for name in new if layout.file_kind(name) == EMBEDDINGS], take)
            self._take(INDEX, [name for name in new if layout.file_kind(name) == INDEX], take)

    def _take(self, prefix: str, names: Sequence[str], take: Any) -> None:
        """Add what files of one kind hold to its lookup, half a million keys at a time."""
        lookup = self._rows if prefix == EMBEDDINGS else self._index
        keys: list[Any] = []
        values: list[Any] = []
        for name, read in zip(names, take(self._digests, names), strict=True):
            if read is None:
                continue
            if prefix == EMBEDDINGS:
                self._numbers[name] = number = len(self._names)
                self._names.append(name)
                keys.append(read[0])
                values.append((number << _FILE_BITS) + np.arange(len(read[0])))
            else:
                keys.append(read[1])
                values.append(read[0].view(f"V{SHA_BYTES}"))
            if sum(map(len, keys)) >= SPILL:
                lookup.add(np.concatenate(keys), np.concatenate(values))
                keys, values = [], []
        if keys:
            lookup.add(np.concatenate(keys), np.concatenate(values))

    def _digests(self, name: str) -> list[NDArray[np.bytes_]] | None:
        """The digests of a file: the contents', and in an index the photos'."""
        columns = [SHA, "photo"] if layout.file_kind(name) == INDEX else [SHA, VECTOR]
        try:
            with layout.open_parquet(files.join(self.directory, name)) as parquet:
                layout.check_types(parquet.schema_arrow, self._schema(name), columns)
                content = parquet.read([column for column in columns if column != VECTOR], use_threads=False)
                return [layout.to_digest_array(content[column]) for column in content.column_names]
        except FileNotFoundError:  # merged since it was listed: the next look finds where it went
            self._seen.discard(name)
            return None
        except layout.read_errors() as error:
            self._leave_out(name, error)
            return None

    def _read(self, name: str, columns: Sequence[str], rows: NDArray[np.int64]) -> Iterator[pa.Table]:
        """Rows of a file, ascending, in blocks; fewer than were asked for where it is torn or gone."""
        try:
            with layout.open_parquet(files.join(self.directory, name)) as parquet:
                about = parquet.metadata
                sizes = np.array([about.row_group(i).num_rows for i in range(about.num_row_groups)], np.int64)
                starts = np.cumsum(sizes) - sizes
                group_of = np.searchsorted(starts, rows, side="right") - 1
                for groups in _together(np.unique(group_of), sizes):
                    content = parquet.read_row_groups(groups, columns=list(columns), use_threads=False)
                    layout.check_types(content.schema, self._schema(name), columns)
                    # Where each group begins in what was read.
                    begins = np.cumsum(sizes[groups]) - sizes[groups]
                    here = np.isin(group_of, groups)
                    at = rows[here] - starts[group_of[here]] + begins[np.searchsorted(groups, group_of[here])]
                    yield content if len(at) == len(content) else content.take(at)
        except FileNotFoundError:
            return
        except layout.read_errors() as error:
            self._leave_out(name, error)

    def _leave_out(self, name: str, error: Exception) -> None:
        """Say that a file is torn or of another layout."""
        _log.warning(
            "%s in the embedding store %s is unreadable and left out; its photos are embedded again (%s)",
            name,
            self.directory,
            error,
        )

    def _drop(self, numbers: Sequence[int]) -> None:
        """Forget the rows of files that are torn or gone."""
        if not numbers:
            return
        with self._lock:
            for number in numbers:
                self._numbers.pop(self._names[number], None)
            self._rows.keep(lambda places: ~np.isin(places >> _FILE_BITS, numbers))

    def _schema(self, name: str) -> pa.Schema:
        return (
            layout.index_schema()
            if layout.file_kind(name) == INDEX
            else layout.embeddings_schema(self.dimension)
        )


def _together(groups: NDArray[np.int64], sizes: NDArray[np.int64]) -> Iterator[list[int]]:
    """Row groups in lists of BLOCK_ROWS rows, or of one group."""
    held: list[int] = []
    for group in groups.tolist():
        if held and sizes[held].sum() + sizes[group] > BLOCK_ROWS:
            yield held
            held = []
        held.append(group)
    if held:
        yield held


def _keys(digests: Sequence[bytes], width: int) -> NDArray[np.bytes_]:
    return np.frombuffer(b"".join(digests), f"S{width}")


def _joined(tables: Sequence[pa.Table], column: str) -> NDArray[np.int32]:
    return np.concatenate([np.empty(0, np.int32), *(table[column].to_numpy() for table in tables)])
