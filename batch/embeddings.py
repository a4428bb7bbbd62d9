"""The embedding store: what a backbone made of a photo, kept for every later run.

`<store>/<fingerprint>/` holds two kinds of Parquet files, written whole and never changed:

* `embeddings-*.parquet`: sha256 of the photo's bytes, embedding, status, detail, height, width
* `index-*.parquet`: (uri, size, modified) to sha256, so that an unchanged photo is not even read

A digest is 32 bytes, not 64 hex digits: half the memory, and it sorts as it is. A refused
photo is kept too, its embedding all zeros, so that it is not decoded again: it is the
status that says whether there is an embedding, since a null in a fixed-size list cannot
be read back from Parquet (seen with pyarrow 25).
"""

from __future__ import annotations

import hashlib
import io
import logging
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from batch import files
from batch.photos import Photo
from serving.contract import Status

if TYPE_CHECKING:
    import pyarrow as pa

_log = logging.getLogger(__name__)

SHA_BYTES = 32
_KEY_BYTES = 16
_EMBEDDINGS, _INDEX = "embeddings-", "index-"


def default_root() -> str:
    """The store that training and scoring share: below the cache directory."""
    return str(files.cache_directory() / "embeddings")


@dataclass(frozen=True)
class Embeddings:
    """What the model made of some photos' bytes, one row a distinct content.

    Attributes:
        shas: N sha256 digests of 32 bytes.
        vectors: float16 [N,D]; zeros where the status is not usable.
        statuses: N statuses.
        details: N phrases about refused photos, None for the others.
        heights, widths: int32 [N], pixels of the upright photo, 0 where unknown.
    """

    shas: Sequence[bytes]
    vectors: NDArray[np.float16]
    statuses: Sequence[Status]
    details: Sequence[str | None]
    heights: NDArray[np.int32]
    widths: NDArray[np.int32]

    def rows(self) -> dict[bytes, int]:
        """The row of each sha256; what is missing here is not in the store."""
        return {sha: row for row, sha in enumerate(self.shas)}

    def sorted(self) -> Embeddings:
        """The same rows in the order of their digests."""
        order = sorted(range(len(self.shas)), key=self.shas.__getitem__)
        return Embeddings(
            shas=[self.shas[row] for row in order],
            vectors=self.vectors[order],
            statuses=[self.statuses[row] for row in order],
            details=[self.details[row] for row in order],
            heights=self.heights[order],
            widths=self.widths[order],
        )


class EmbeddingStore:
    """The embeddings of one backbone, shared by any number of processes.

    Writers add whole files, so readers see only whole files. In memory are the digests
    alone: about 100 bytes a photo, once they are needed.

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
        self._index = _Lookup(_KEY_BYTES)
        self._rows = _Lookup(SHA_BYTES)
        self._shas: list[NDArray[np.bytes_]] = []  # by index file
        self._parts: list[str] = []  # names of embeddings files
        self._seen: set[str] = set()
        self._lock = threading.RLock()

    def known(self, photos: Iterable[Photo]) -> dict[Photo, bytes]:
        """sha256 of the photos whose bytes were read before and whose file has not changed since."""
        with self._lock:
            self._refresh()
            wanted = list(photos)
            found = self._index.find([_key(photo) for photo in wanted])
            return {
                photo: self._shas[file][row].tobytes()
                for photo, (file, row) in zip(wanted, found, strict=True)
                if file >= 0
            }

    def have(self, shas: Iterable[bytes]) -> set[bytes]:
        """Which of these contents have a row, as far as was seen at the last call of `known`."""
        with self._lock:
            wanted = list(shas)
            return {sha for sha, (file, _) in zip(wanted, self._rows.find(wanted), strict=True) if file >= 0}

    def get(self, shas: Iterable[bytes]) -> Embeddings:
        """The rows of these contents, each once; those that the store does not have are left out."""
        tables = list(self._read_rows(shas, _COLUMNS))
        return Embeddings(
            shas=[sha for table in tables for sha in table["sha256"].to_pylist()],
            vectors=np.concatenate(
                [np.empty((0, self.dimension), np.float16), *(self._vectors(table) for table in tables)]
            ),
            statuses=[Status(name) for table in tables for name in table["status"].to_pylist()],
            details=[text for table in tables for text in table["detail"].to_pylist()],
            heights=_joined(tables, "height"),
            widths=_joined(tables, "width"),
        )

    def statuses(self, shas: Iterable[bytes]) -> dict[bytes, Status]:
        """The status of these contents, without reading embeddings."""
        return {
            sha: Status(name)
            for table in self._read_rows(shas, ["sha256", "status"])
            for sha, name in zip(table["sha256"].to_pylist(), table["status"].to_pylist(), strict=True)
        }

    def append(self, index: Mapping[Photo, bytes], embeddings: Embeddings) -> None:
        """Keep rows, and which photos they are of.

        Rows are written first, so that a run cut off in between leaves no index entry
        without its row.

        Raises:
            OutputError: the store cannot be written.
        """
        if len(embeddings.shas):
            self._write(_EMBEDDINGS, self._table(embeddings))
        if index:
            self._write(_INDEX, _index_table(index))

    def _refresh(self) -> None:
        """Take in the files that came since the last look."""
        for name in files.names(self.directory):
            if name not in self._seen and name.endswith(".parquet"):
                self._seen.add(name)
                if name.startswith(_EMBEDDINGS):
                    self._take_rows(name)
                elif name.startswith(_INDEX):
                    self._take_index(name)

    def _take_rows(self, name: str) -> None:
        if (table := self._read(name, ["sha256"])) is not None:
            self._parts.append(name)
            self._rows.add(_fixed(table["sha256"]), len(self._parts) - 1)

    def _take_index(self, name: str) -> None:
        if (table := self._read(name, ["photo", "sha256"])) is not None:
            self._shas.append(_fixed(table["sha256"]).view(f"V{SHA_BYTES}"))
            self._index.add(_fixed(table["photo"]), len(self._shas) - 1)

    def _read(self, name: str, columns: list[str]) -> pa.Table | None:
        """Columns of one file; None, said once, where the file is torn or of another layout."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with files.opened(files.join(self.directory, name)) as file:
                table = pq.ParquetFile(file, page_checksum_verification=True).read(columns=columns)
            expected = _index_schema() if name.startswith(_INDEX) else _schema(self.dimension)
            for column in columns:
                if table.schema.field(column).type != expected.field(column).type:
                    raise pa.ArrowInvalid(f"column {column} is {table.schema.field(column).type}")
        except (OSError, KeyError, pa.ArrowException) as error:
            _log.warning(
                "%s in the embedding store %s is unreadable and left out; its photos are embedded again (%s)",
                name,
                self.directory,
                error,
            )
            return None
        return table

    def _read_rows(self, shas: Iterable[bytes], columns: list[str]) -> Iterator[Any]:
        """The rows of these contents, one table a file."""
        wanted = list(dict.fromkeys(shas))
        with self._lock:
            self._refresh()
            rows_of: dict[int, list[int]] = {}
            for file, row in self._rows.find(wanted):
                if file >= 0:
                    rows_of.setdefault(file, []).append(row)
        for file, rows in rows_of.items():
            table = self._read(self._parts[file], columns)
            if table is None:
                with self._lock:
                    self._rows.drop(file)
            else:
                yield table.take(sorted(rows)) if len(rows) < len(table) else table

    def _vectors(self, table: Any) -> NDArray[np.float16]:
        flat = table["embedding"].combine_chunks().flatten()
        return flat.to_numpy(zero_copy_only=False).reshape(-1, self.dimension)

    def _table(self, rows: Embeddings) -> pa.Table:
        import pyarrow as pa

        schema = _schema(self.dimension)
        usable = np.array([status.usable for status in rows.statuses])
        vectors = np.where(usable[:, None], rows.vectors, 0).astype(np.float16)
        embedding: Any = pa.FixedSizeListArray.from_arrays(
            pa.array(vectors.reshape(-1)), type=schema.field("embedding").type
        )
        return pa.table(
            {
                "sha256": pa.array(rows.shas, pa.binary(SHA_BYTES)),
                "embedding": embedding,
                "status": [status.value for status in rows.statuses],
                "detail": rows.details,
                "height": rows.heights,
                "width": rows.widths,
            },
            schema=schema,
        )

    def _write(self, prefix: str, table: pa.Table) -> None:
        """Write a file under a name that its content gives: writing it twice is writing it once."""
        # Embeddings shrink by a seventh, and then take twice as long to read.
        content = to_parquet(table, compression="zstd" if prefix == _INDEX else "none")
        name = f"{prefix}{hashlib.sha256(content).hexdigest()[:32]}.parquet"
        files.write(files.join(self.directory, name), content)
        with self._lock:
            # Where a torn file had this name, the whole one is to be taken in.
            self._seen.discard(name)


def photo_sha(content: bytes) -> bytes:
    """The key of a photo's bytes in the store."""
    return hashlib.sha256(content).digest()


def to_parquet(table: pa.Table, *, compression: Literal["zstd", "none"]) -> bytes:
    """A table as the bytes of one Parquet file."""
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression=compression, use_dictionary=False, write_page_checksum=True)
    return buffer.getvalue()


_COLUMNS = ["sha256", "embedding", "status", "detail", "height", "width"]


class _Lookup:
    """Sorted fixed-width keys, each with the file and the row that it stands in.

    numpy instead of a dict: 40 bytes a sha256, and a shard is added to a million of them by
    merging two sorted runs, in 40 to 90 ms.
    """

    def __init__(self, width: int) -> None:
        self._dtype = np.dtype(f"S{width}")
        self._keys = np.empty(0, self._dtype)
        self._places = np.empty((0, 2), np.int32)

    def add(self, keys: NDArray[np.bytes_], file: int) -> None:
        places = np.stack([np.full(len(keys), file, np.int32), np.arange(len(keys), dtype=np.int32)], axis=1)
        merged = np.concatenate([self._keys, keys])
        order = np.argsort(merged, kind="stable")
        self._keys, self._places = merged[order], np.concatenate([self._places, places])[order]

    def drop(self, file: int) -> None:
        kept = self._places[:, 0] != file
        self._keys, self._places = self._keys[kept], self._places[kept]

    def find(self, keys: Sequence[bytes]) -> list[tuple[int, int]]:
        """(file, row) of each key, (-1, -1) where there is none."""
        if not len(self._keys):
            return [(-1, -1)] * len(keys)
        wanted = np.frombuffer(b"".join(keys), self._dtype)
        at = np.minimum(np.searchsorted(self._keys, wanted), len(self._keys) - 1)
        places = np.where((self._keys[at] == wanted)[:, None], self._places[at], -1)
        return [(int(file), int(row)) for file, row in places]


def _key(photo: Photo) -> bytes:
    text = f"{photo.size} {photo.modified} {photo.uri}"
    return hashlib.blake2b(text.encode(), digest_size=_KEY_BYTES).digest()


def _fixed(column: Any) -> NDArray[np.bytes_]:
    """A column of fixed-size binary as a numpy array."""
    return np.frombuffer(b"".join(column.to_pylist()), f"S{column.type.byte_width}")


def _joined(tables: Sequence[pa.Table], column: str) -> NDArray[np.int32]:
    return np.concatenate([np.empty(0, np.int32), *(table[column].to_numpy() for table in tables)])


def _schema(dimension: int) -> pa.Schema:
    import pyarrow as pa

    # Not nullable down to the element: a third of the time to read.
    embedding: Any = pa.list_(pa.field("element", pa.float16(), nullable=False), dimension)
    fields: list[Any] = [
        pa.field("sha256", pa.binary(SHA_BYTES), nullable=False),
        pa.field("embedding", embedding, nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("detail", pa.string()),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
    ]
    return pa.schema(fields)


def _index_schema() -> pa.Schema:
    import pyarrow as pa

    fields: list[Any] = [
        pa.field("photo", pa.binary(_KEY_BYTES), nullable=False),  # digest of the next three
        pa.field("uri", pa.string(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("modified", pa.int64(), nullable=False),
        pa.field("sha256", pa.binary(SHA_BYTES), nullable=False),
    ]
    return pa.schema(fields)


def _index_table(index: Mapping[Photo, bytes]) -> pa.Table:
    import pyarrow as pa

    columns = {
        "photo": [_key(photo) for photo in index],
        "uri": [photo.uri for photo in index],
        "size": [photo.size for photo in index],
        "modified": [photo.modified for photo in index],
        "sha256": list(index.values()),
    }
    return pa.table(columns, schema=_index_schema())
