"""Reading and appending of the embeddings of one backbone."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from batch.embeddings import layout
from batch.embeddings.layout import COLUMNS, EMBEDDINGS, INDEX, KEY_BYTES, SHA, SHA_BYTES, STATUS, VECTOR
from batch.embeddings.lookup import SPILL_KEYS, Lookup
from batch.embeddings.rows import Embeddings, group_by_rows
from batch.inputs.listing import Photo
from serving.contract import Status
from serving.storage import files

if TYPE_CHECKING:
    import pyarrow as pa

_log = logging.getLogger(__name__)

BLOCK_ROWS = 4096
"""Maximum rows per block of `EmbeddingStore.iter_blocks`: 10 MB at 1280 float16 values each."""

_READERS = 8

_ROW_BITS = 32
"""Bits of a position that hold the row; the bits above hold the number of the file."""


def default_root() -> str:
    """Return the directory of the store that training and scoring share, below the cache directory."""
    return str(files.cache_directory() / "embeddings")


class EmbeddingStore:
    """Embeddings of one backbone, shared by any number of threads and processes.

    Files appear atomically, so readers see complete files only. If another process merges or prunes
    files in the meantime, readers list the files again. Only digests are kept in memory, about 100
    bytes per photo, for half a million photos at most; beyond that they are in memory-mapped files.

    Args:
        root: directory of the store, local or remote.
        fingerprint: fingerprint of the backbone and its preprocessing.
        dimension: D, floats per embedding.
    """

    def __init__(self, root: str, fingerprint: str, dimension: int) -> None:
        self.root = files.absolute(root)
        self.fingerprint = fingerprint
        self.directory = files.join(self.root, fingerprint)
        self.dimension = dimension
        self._index = Lookup(KEY_BYTES, f"V{SHA_BYTES}")
        # Position of each content: the number of its file above _ROW_BITS, the row in it below.
        self._rows = Lookup(SHA_BYTES, np.int64)
        self._names: list[str] = []  # names of embeddings files by number, including those deleted
        self._numbers: dict[str, int] = {}  # numbers of the embeddings files that exist and are readable
        self._seen: set[str] = set()  # names of files whose digests were loaded, or failed to load
        self._lock = threading.RLock()

    def lookup_digests(self, photos: Iterable[Photo]) -> dict[Photo, bytes]:
        """Return the sha256 of the photos that were read before and have not changed since.

        Photos that are not in the index are left out. New files of other processes are loaded first.
        """
        wanted = list(photos)
        keys = _to_key_array([layout.photo_key(photo) for photo in wanted], KEY_BYTES)
        with self._lock:
            self._refresh()
            shas, found = self._index.find(keys)
        return {wanted[row]: shas[row].tobytes() for row in np.flatnonzero(found)}

    def filter_present(self, shas: Iterable[bytes]) -> set[bytes]:
        """Return the digests that have a row, as of the last call of `lookup_digests`."""
        wanted = list(shas)
        with self._lock:
            _, found = self._rows.find(_to_key_array(wanted, SHA_BYTES))
        return {wanted[row] for row in np.flatnonzero(found)}

    def get(self, shas: Iterable[bytes]) -> Embeddings:
        """Return the distinct rows of these digests, sorted by digest; those without a row are left out."""
        import pyarrow as pa

        wanted = sorted(set(shas))
        blocks = list(self.iter_blocks(_to_key_array(wanted, SHA_BYTES)))
        positions = np.concatenate([np.empty(0, np.int64), *(at for at, _ in blocks)])
        none = layout.file_schema(EMBEDDINGS, self.dimension).empty_table()
        order = np.argsort(positions)
        rows: Any = pa.concat_tables([none, *(content for _, content in blocks)]).take(order)
        return Embeddings(
            shas=[wanted[position] for position in positions[order]],
            vectors=layout.to_vectors(rows, self.dimension),
            statuses=[Status(name) for name in rows[STATUS].to_pylist()],
            details=rows["detail"].to_pylist(),
            heights=rows["height"].to_numpy(),
            widths=rows["width"].to_numpy(),
        )

    def get_statuses(self, shas: Iterable[bytes]) -> dict[bytes, Status]:
        """Return the status of each digest that has a row, without reading embeddings."""
        wanted = list(dict.fromkeys(shas))
        blocks: Iterable[tuple[Any, Any]] = self.iter_blocks(_to_key_array(wanted, SHA_BYTES), [STATUS])
        return {
            wanted[position]: Status(name)
            for positions, content in blocks
            for position, name in zip(positions, content[STATUS].to_pylist(), strict=True)
        }

    def find_uris(self, shas: Iterable[bytes]) -> dict[bytes, list[str]]:
        """Return the addresses that contents were read from; all index files are read for it."""
        import pyarrow as pa
        import pyarrow.compute as pc

        wanted = pa.array(list(shas), pa.binary(SHA_BYTES))
        found: dict[bytes, list[str]] = {}
        for name in files.list_names(self.directory):
            if layout.file_kind(name) != INDEX:
                continue
            with self._skip_unreadable(name), self._open(name) as parquet:
                for batch in parquet.iter_batches(columns=["uri", SHA]):
                    rows = batch.filter(pc.is_in(batch[SHA], value_set=wanted))
                    for uri, sha in zip(rows["uri"].to_pylist(), rows[SHA].to_pylist(), strict=True):
                        found.setdefault(sha, []).append(uri)
        return found

    def iter_blocks(
        self, wanted: NDArray[np.bytes_], columns: Sequence[str] = COLUMNS
    ) -> Iterator[tuple[NDArray[np.int64], pa.Table]]:
        """Yield the rows of many digests in blocks of up to BLOCK_ROWS, in the order of the store.

        Each file is opened once, and only the row groups that contain wanted rows are read. Digests
        without a row appear in no block.

        Args:
            wanted: N distinct sha256 digests, dtype S32.
            columns: names of the columns to read.

        Yields:
            Positions in `wanted` of the rows of a block, and the block.
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
            # Sort by position, which is by file and then by row, and split the rows by file.
            order = np.argsort(places, kind="stable")
            open_rows, places = open_rows[order], places[order]
            numbers, starts = np.unique(places >> _ROW_BITS, return_index=True)
            lost = []
            for number, positions, at in zip(
                numbers, np.split(open_rows, starts[1:]), np.split(places, starts[1:]), strict=True
            ):
                rows, done = at & ((1 << _ROW_BITS) - 1), 0
                for content in self._read(names[number], columns, rows):
                    yield positions[done : done + len(content)], content
                    done += len(content)
                if done < len(rows):
                    self._forget_files([int(number)])
                    lost.append(positions[done:])
            # Rows of a file that is corrupt, or that was merged since the last refresh, may also be
            # in another file. Each round forgets such a file, so the loop ends.
            open_rows = np.concatenate([np.empty(0, np.int64), *lost])

    def append(self, index: Mapping[Photo, bytes], embeddings: Embeddings) -> None:
        """Write new rows, and then new index entries.

        An interruption in between leaves no index entry without its row.

        Args:
            index: sha256 of each photo, for photos whose content is in the store or in `embeddings`.
            embeddings: rows of contents that are not in the store.

        Raises:
            OutputError: the store cannot be written.
        """
        if len(embeddings.shas):
            self._write(EMBEDDINGS, layout.to_table(embeddings, self.dimension))
        if index:
            self._write(INDEX, layout.to_index_table(index))

    def _write(self, prefix: str, content: pa.Table) -> None:
        name, data = layout.encode_file(prefix, content)
        files.write(files.join(self.directory, name), data)
        with self._lock:
            if name not in self._numbers:
                # If the name belonged to a corrupt file, the new file has to be loaded.
                self._seen.discard(name)

    def refresh(self) -> None:
        """Load files that are new since the last call, and forget those that were deleted."""
        with self._lock:
            self._refresh()

    def _refresh(self) -> None:
        present = set(files.list_names(self.directory))
        self._forget_files([number for name, number in self._numbers.items() if name not in present])
        self._seen &= present
        new = sorted(name for name in present - self._seen if layout.file_kind(name))
        self._seen.update(new)
        with ExitStack() as stack:
            run: Any = map
            if len(new) > 1:
                run = stack.enter_context(ThreadPoolExecutor(_READERS)).map
            self._load(EMBEDDINGS, [name for name in new if layout.file_kind(name) == EMBEDDINGS], run)
            self._load(INDEX, [name for name in new if layout.file_kind(name) == INDEX], run)

    def _load(self, prefix: str, names: Sequence[str], run: Any) -> None:
        """Add the digests of files of one kind to its lookup, half a million keys at a time.

        Args:
            prefix: EMBEDDINGS or INDEX.
            names: names of the files.
            run: `map`, or the `map` of a thread pool.
        """
        lookup = self._rows if prefix == EMBEDDINGS else self._index
        contents: Iterator[Any] = filter(None, map(self._register, names, run(self._read_digests, names)))
        for group in group_by_rows(contents, lambda content: len(content[0]), SPILL_KEYS):
            keys, values = zip(*group, strict=True)
            lookup.add(np.concatenate(keys), np.concatenate(values))

    def _register(self, name: str, digests: list[NDArray[np.bytes_]]) -> tuple[Any, Any] | None:
        """Return the keys and the values of a file for its lookup; None if it is unreadable.

        Args:
            name: name of the file; an embeddings file gets a number.
            digests: as returned by `_read_digests`.
        """
        if not digests:
            return None
        if layout.file_kind(name) == INDEX:
            return digests[1], digests[0].view(f"V{SHA_BYTES}")
        self._numbers[name] = number = len(self._names)
        self._names.append(name)
        return digests[0], (number << _ROW_BITS) + np.arange(len(digests[0]))

    def _read_digests(self, name: str) -> list[NDArray[np.bytes_]]:
        """Return the content digests of a file, and the photo keys of an index file; [] if unreadable."""
        columns = [SHA, "photo"] if layout.file_kind(name) == INDEX else [SHA, VECTOR]
        with self._skip_unreadable(name), self._open(name) as parquet:
            layout.check_types(parquet.schema_arrow, layout.file_schema(name, self.dimension), columns)
            content = parquet.read([column for column in columns if column != VECTOR], use_threads=False)
            return [layout.to_digest_array(content[column]) for column in content.column_names]
        return []

    def _read(self, name: str, columns: Sequence[str], rows: NDArray[np.int64]) -> Iterator[pa.Table]:
        """Yield rows of a file in blocks; fewer than requested if it is corrupt or deleted.

        Args:
            name: name of the file.
            columns: names of the columns to read.
            rows: row numbers, ascending.
        """
        expected = layout.file_schema(name, self.dimension)
        with self._skip_unreadable(name), self._open(name) as parquet:
            metadata = parquet.metadata
            sizes = np.array([metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)], int)
            starts = np.cumsum(sizes) - sizes
            group_of = np.searchsorted(starts, rows, side="right") - 1
            for groups in _batch_row_groups(np.unique(group_of), sizes):
                content = parquet.read_row_groups(groups, columns=list(columns), use_threads=False)
                layout.check_types(content.schema, expected, columns)
                content = layout.upgrade(content)
                # Translate row numbers of the file to rows of `content`, in which the chosen row
                # groups are adjacent: subtract the group's start in the file, add that in `content`.
                begins = np.cumsum(sizes[groups]) - sizes[groups]
                here = np.isin(group_of, groups)
                at = rows[here] - starts[group_of[here]] + begins[np.searchsorted(groups, group_of[here])]
                yield content if len(at) == len(content) else content.take(at)

    def _open(self, name: str) -> AbstractContextManager[Any]:
        return layout.open_parquet(files.join(self.directory, name))

    @contextmanager
    def _skip_unreadable(self, name: str) -> Iterator[None]:
        """End a `with` block early if the file that it reads is corrupt or deleted."""
        try:
            yield
        except FileNotFoundError:  # merged since it was listed: the next refresh loads the merged file
            self._seen.discard(name)
        except layout.read_errors() as error:
            text = "Ignoring unreadable file %s in the embedding store %s; its photos are embedded again (%s)"
            _log.warning(text, name, self.directory, error)

    def _forget_files(self, numbers: Sequence[int]) -> None:
        """Remove the rows of files that are corrupt or deleted from the lookup."""
        if not numbers:
            return
        with self._lock:
            for number in numbers:
                self._numbers.pop(self._names[number], None)
            self._rows.filter(lambda places: ~np.isin(places >> _ROW_BITS, numbers))


def _batch_row_groups(groups: NDArray[np.int64], sizes: NDArray[np.int64]) -> Iterator[list[int]]:
    """Yield lists of row groups with up to BLOCK_ROWS rows together, or with a single group.

    Args:
        groups: numbers of the row groups to read.
        sizes: number of rows of each row group of the file.
    """
    batch: list[int] = []
    for group in groups.tolist():
        if batch and sizes[batch].sum() + sizes[group] > BLOCK_ROWS:
            yield batch
            batch = []
        batch.append(group)
    if batch:
        yield batch


def _to_key_array(digests: Sequence[bytes], width: int) -> NDArray[np.bytes_]:
    return np.frombuffer(b"".join(digests), f"S{width}")
