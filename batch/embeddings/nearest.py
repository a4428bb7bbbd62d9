"""Nearest photos by cosine similarity: an exact search over all embeddings of one backbone.

The embeddings are scanned in an index: a file for each embeddings file of the store, with the embeddings,
their inverse lengths and their digests one after the other. So they are read and multiplied at the speed of
memory, where Parquet would take several times as long. Files of the store never change and are named by their
content: only new ones are indexed, and index files whose store file is gone are deleted.

An index takes as much disk as the embeddings, and of memory a few megabytes for each core and 4 bytes for
each photo: blocks are read into the same buffers instead of being mapped.

Maintenance of the store may merge its files during a search, and deletes their index. Then the search ends
with IndexChanged, and may be repeated after `NearestIndex.update`.
"""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from io import FileIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batch.embeddings import layout
from batch.embeddings.half_floats import BIAS, widen
from batch.embeddings.layout import EMBEDDINGS, SHA, SHA_BYTES, STATUS, VECTOR
from serving.contract import Status
from serving.errors import InputError
from serving.process import cores
from serving.storage import files

_log = logging.getLogger(__name__)

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Digests = NDArray[np.bytes_]

DIRECTORY = "nearest"
"""Name of the directory of the index: in that of a local store, else below the cache directory."""

SUFFIX = ".rows"

BLOCK_ROWS = 256
"""Rows read and multiplied at a time; they stay in the cache of the core."""

_GROUPS = 4
"""Row groups of the store read at a time to be indexed."""

_FIRST = 1024
"""Rows that are put in order first; rarely more are needed."""

_CHUNK = 1 << 16

_NORM_BYTES = 4


@dataclass(frozen=True)
class _Segment:
    """Index file of one file of the store.

    Attributes:
        path: path of the file.
        start: number of rows before it in the index.
        count: number of its rows.
    """

    path: Path
    start: int
    count: int


class IndexChanged(Exception):
    """An index file was deleted while it was needed, since its file of the store is gone."""


class NearestIndex:
    """Embeddings of one backbone for exact search.

    Args:
        directory: directory of the store for this backbone (`EmbeddingStore.directory`).
        dimension: D, floats per embedding.
    """

    def __init__(self, directory: str, dimension: int) -> None:
        self._store = directory
        self.dimension = dimension
        self.path = Path(locate_index(directory))
        self._segments: list[_Segment] = []

    def __len__(self) -> int:
        """Number of embeddings, copies of a content in several files of the store included."""
        return sum(segment.count for segment in self._segments)

    def update(self, say: Callable[[str], None] | None = None) -> None:
        """Index the files that are new in the store, and delete the index of those that are gone.

        Args:
            say: called with a line of text before new files are indexed.

        Raises:
            OutputError: the index cannot be written.
        """
        with files.output_errors(str(self.path)):
            self.path.mkdir(parents=True, exist_ok=True)
        names = self._list_store()
        while True:
            self._update(names, say)
            found = self._list_store()
            # What was merged meanwhile may be missing. New files alone are no reason to begin again.
            if set(names) <= set(found):
                return
            names = found

    def _list_store(self) -> list[str]:
        """Return the names of the embeddings files of the store."""
        return [name for name in files.list_names(self._store) if layout.file_kind(name) == EMBEDDINGS]

    def _update(self, names: Sequence[str], say: Callable[[str], None] | None) -> None:
        """Index the files with these names, and delete the index of others."""
        remove_stale(self._store, names)
        present = set(files.list_names(str(self.path)))
        new = [name for name in names if name + SUFFIX not in present]
        if new and say:
            say(f"Indexing {len(new)} new files of embeddings in {self._store}")
        for name in new:
            self._add(name)
        self._segments = list(self._open(names))

    def _open(self, names: Sequence[str]) -> Iterator[_Segment]:
        start = 0
        for name in names:
            path = self.path / (name + SUFFIX)
            try:
                count = path.stat().st_size // (2 * self.dimension + _NORM_BYTES + SHA_BYTES)
            except FileNotFoundError:  # unreadable in the store, or deleted by maintenance meanwhile
                continue
            yield _Segment(path, start, count)
            start += count

    def _add(self, name: str) -> None:
        """Write the index of a file of the store; a file that cannot be read is left out."""
        target = self.path / (name + SUFFIX)
        staged = self.path / f".{name}-{secrets.token_hex(4)}"
        # Around each write alone: an error of reading is not one of the index.
        writing = partial(files.output_errors, str(target))
        try:
            with writing():
                opened = staged.open("wb")
            with opened as file:
                norms, digests = [], []
                for vectors, shas in self._read_store(name):
                    with writing():
                        vectors.tofile(file)
                    norms.append(_invert_lengths(vectors))
                    digests.append(shas)
                with writing():
                    for part in (*norms, *digests):
                        file.write(part.tobytes())
                    file.flush()
            with writing():
                staged.replace(target)
        except layout.read_errors() as error:
            if files.exists(files.join(self._store, name)):
                _log.warning("Ignoring unreadable file %s in %s (%s)", name, self._store, error)
        finally:
            staged.unlink(missing_ok=True)

    def _read_store(self, name: str) -> Iterator[tuple[NDArray[np.float16], Digests]]:
        """Yield embeddings float16 [n,D] and digests of the usable photos of a file of the store."""
        import pyarrow as pa
        import pyarrow.compute as pc

        usable = pa.array([status.value for status in Status if status.usable])
        columns = [SHA, VECTOR, STATUS]
        with layout.open_parquet(files.join(self._store, name)) as parquet:
            layout.check_types(parquet.schema_arrow, layout.file_schema(name, self.dimension), columns)
            for first in range(0, parquet.metadata.num_row_groups, _GROUPS):
                groups = range(first, min(first + _GROUPS, parquet.metadata.num_row_groups))
                content = layout.upgrade(parquet.read_row_groups(list(groups), columns=columns))
                content = content.filter(pc.is_in(content[STATUS], value_set=usable)).combine_chunks()
                yield layout.to_vectors(content, self.dimension), layout.to_digest_array(content[SHA])

    def read_digests(self) -> Digests:
        """Return the digests of all rows, dtype S32."""
        return np.concatenate([np.zeros(0, f"S{SHA_BYTES}"), *map(self._read_digests, self._segments)])

    def _read_digests(self, segment: _Segment) -> Digests:
        offset = segment.count * (2 * self.dimension + _NORM_BYTES)
        with _open_segment(segment) as file:
            return np.fromfile(file, f"S{SHA_BYTES}", segment.count, offset=offset)

    def find_digests(self, rows: Ints) -> list[bytes]:
        """Return the digests of some rows."""
        found = []
        for segment, places in self._locate(rows):
            begin = segment.count * (2 * self.dimension + _NORM_BYTES)
            with _open_segment(segment) as file:
                for place in places.tolist():
                    found.append(os.pread(file.fileno(), SHA_BYTES, begin + SHA_BYTES * place))
        order = np.argsort(rows, kind="stable")
        result = [b""] * len(rows)
        for at, sha in zip(order.tolist(), found, strict=True):
            result[at] = sha
        return result

    def read_vectors(self, rows: Ints) -> NDArray[np.float16]:
        """Return the embeddings of some rows, float16 [n,D]."""
        size = 2 * self.dimension
        found = np.empty((len(rows), self.dimension), "<f2")
        filled = 0
        for segment, places in self._locate(rows):
            with _open_segment(segment) as file:
                for run in np.split(places, np.flatnonzero(np.diff(places) != 1) + 1):
                    file.seek(size * int(run[0]))
                    _read_into(file, found[filled : filled + len(run)])
                    filled += len(run)
        result = np.empty_like(found)
        result[np.argsort(rows, kind="stable")] = found
        return result

    def _locate(self, rows: Ints) -> Iterator[tuple[_Segment, Ints]]:
        """Yield each segment with the places of rows in it, in ascending order."""
        ordered = np.sort(rows)
        for segment in self._segments:
            low, high = np.searchsorted(ordered, [segment.start, segment.start + segment.count])
            if low < high:
                yield segment, ordered[low:high] - segment.start

    def find_vector(self, sha: bytes) -> Floats | None:
        """Return the embedding of a content, float32 [D]; None if it has none."""
        for segment in self._segments:
            places = np.flatnonzero(self._read_digests(segment) == sha)
            if len(places):
                return self.read_vectors(places[:1] + segment.start)[0].astype(np.float32)
        return None

    def iter_blocks(self, start: int, end: int) -> Iterator[tuple[int, Floats]]:
        """Yield the first row and the embeddings of each block of rows, float32 [n,D], divided by BIAS.

        The array is overwritten by the next block.
        """
        raw = np.empty((BLOCK_ROWS, self.dimension), "<i2")
        wide = np.empty((BLOCK_ROWS, self.dimension), np.int32)
        size = 2 * self.dimension
        for segment in self._segments:
            low, high = max(start - segment.start, 0), min(end - segment.start, segment.count)
            if low >= high:
                continue
            with _open_segment(segment) as file:
                file.seek(size * low)
                for place in range(low, high, BLOCK_ROWS):
                    count = min(BLOCK_ROWS, high - place)
                    block, out = raw[:count], wide[:count]
                    _read_into(file, block)
                    yield segment.start + place, widen(block, out)

    def compute_similarities(self, query: Floats) -> Floats:
        """Return the cosine of each row with an embedding float32 [D]; 0 for embeddings of length zero."""
        length = float(np.linalg.norm(query))
        direction = query.astype(np.float32) / np.float32(length or 1.0) * BIAS
        found = np.empty(len(self), np.float32)

        def compute(part: tuple[int, int]) -> None:
            for start, block in self.iter_blocks(*part):
                # Without BLAS, whose threads would wait for one another: these threads divide the rows.
                np.einsum("nd,d->n", block, direction, out=found[start : start + len(block)])

        with ThreadPoolExecutor(cores()) as pool:
            list(pool.map(compute, split_rows(len(self), cores())))
        for segment in self._segments:
            found[segment.start : segment.start + segment.count] *= self._read_norms(segment)
        return found

    def _read_norms(self, segment: _Segment) -> Floats:
        """Return the inverse length of each embedding of a segment, float32 [n]."""
        offset = 2 * self.dimension * segment.count
        with _open_segment(segment) as file:
            return np.fromfile(file, "<f4", segment.count, offset=offset)


def locate_index(directory: str) -> str:
    """Return the directory of the index of a store's backbone."""
    if not files.is_remote(directory):
        return files.join(directory, DIRECTORY)
    name = hashlib.sha256(directory.encode()).hexdigest()[:32]
    return str(files.cache_directory() / DIRECTORY / name)


def remove_stale(directory: str, names: Sequence[str]) -> None:
    """Delete the index of files that are no longer in a store.

    Args:
        directory: directory of the store for one backbone.
        names: names of its files.
    """
    index = locate_index(directory)
    wanted = {name + SUFFIX for name in names}
    for name in files.list_names(index):
        if name.endswith(SUFFIX) and name not in wanted:
            files.remove(files.join(index, name))


def iter_ranked(similarities: Floats) -> Iterator[Ints]:
    """Yield the rows in descending order of similarity, chunk by chunk; equal ones in ascending order."""
    count = min(_FIRST, len(similarities))
    first = np.argpartition(-similarities, count - 1)[:count] if count else np.zeros(0, np.int64)
    yield first[np.lexsort((first, -similarities[first]))]
    if count < len(similarities):
        rest = np.argsort(-similarities, kind="stable")
        rest = rest[~np.isin(rest, first)]
        for start in range(0, len(rest), _CHUNK):
            yield rest[start : start + _CHUNK]


def split_rows(count: int, parts: int) -> list[tuple[int, int]]:
    """Return (first row, row after the last one) of about equal parts of some rows."""
    bounds = np.linspace(0, count, parts + 1).astype(int).tolist()
    return list(pairwise(bounds))


def read_dimension(directory: str) -> int:
    """Return the floats per embedding of a store's backbone.

    Raises:
        InputError: there are no embeddings.
    """
    for name in files.list_names(directory):
        if layout.file_kind(name) != EMBEDDINGS:
            continue
        try:
            with layout.open_parquet(files.join(directory, name)) as parquet:
                if dimension := layout.get_dimension(parquet.schema_arrow):
                    return dimension
        except layout.read_errors():
            continue
    raise InputError(
        f"There are no embeddings in {directory}.",
        remedy="Score or train the photos first, or give their --embedding_store.",
    )


@contextmanager
def _open_segment(segment: _Segment) -> Iterator[FileIO]:
    """Open the file of a segment without a buffer.

    Raises:
        IndexChanged: it is gone.
    """
    try:
        file = FileIO(segment.path)
    except FileNotFoundError as error:
        raise IndexChanged(f"{segment.path} was deleted") from error
    with file:
        yield file


def _invert_lengths(vectors: NDArray[np.float16]) -> Floats:
    wide = vectors.astype(np.float32)
    lengths = np.sqrt(np.einsum("nd,nd->n", wide, wide))
    return np.divide(1, lengths, out=np.zeros(len(lengths), "<f4"), where=lengths > 0)


def _read_into(file: Any, block: Any) -> None:
    """Fill an array with the next bytes of a file.

    Raises:
        OSError: the file ends before.
    """
    view = memoryview(block).cast("B")
    while len(view):
        count = file.readinto(view)
        if not count:
            raise OSError(f"{file.name} is too short")
        view = view[count:]
