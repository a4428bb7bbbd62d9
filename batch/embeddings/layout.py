"""Files of the embedding store: names, columns, reading and writing."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from batch.embeddings.rows import Embeddings
from batch.inputs.listing import Photo
from serving.storage import files

if TYPE_CHECKING:
    import pyarrow as pa

SHA_BYTES = 32
KEY_BYTES = 16
_NUMBER_BYTES = 2

EMBEDDINGS, INDEX = "embeddings-", "index-"
"""Prefixes of the names of the two kinds of files."""

SHA, VECTOR, STATUS = "sha256", "embedding", "status"
COLUMNS = [SHA, VECTOR, STATUS, "detail", "height", "width"]

ROW_GROUP = 1024
"""Rows per row group, the unit of reading: a few rows of a large file are read without the rest."""


def file_kind(name: str) -> str | None:
    """Return EMBEDDINGS or INDEX; None if the name is not that of a file of the store."""
    if not name.endswith(".parquet"):
        return None
    return next((prefix for prefix in (EMBEDDINGS, INDEX) if name.startswith(prefix)), None)


def file_schema(name: str, dimension: int) -> pa.Schema:
    """Return the schema of a file.

    Args:
        name: name of the file, or its prefix.
        dimension: D, floats per embedding; of no effect on index files.
    """
    import pyarrow as pa

    types: dict[str, Any] = {
        "photo": pa.binary(KEY_BYTES),  # digest of the next three columns: `photo_key`
        "uri": pa.string(),
        "size": pa.int64(),
        "modified": pa.int64(),
        SHA: pa.binary(SHA_BYTES),
    }
    if name.startswith(EMBEDDINGS):
        types = {
            SHA: pa.binary(SHA_BYTES),
            # D float16 numbers, little-endian. As a list of numbers they take ten times as long to read.
            VECTOR: pa.binary(_NUMBER_BYTES * dimension),
            STATUS: pa.string(),
            "detail": pa.string(),
            "height": pa.int32(),
            "width": pa.int32(),
        }
    return pa.schema([pa.field(name, kind, nullable=name == "detail") for name, kind in types.items()])


def to_table(rows: Embeddings, dimension: int) -> pa.Table:
    """Return embeddings as a table with the schema of an embeddings file.

    Args:
        rows: embeddings; vectors of rows that are not usable are replaced with zeros.
        dimension: D, floats per embedding.
    """
    import pyarrow as pa

    schema = file_schema(EMBEDDINGS, dimension)
    usable = np.array([status.usable for status in rows.statuses])
    vectors = make_vector_column(np.where(usable[:, None], rows.vectors, 0))
    statuses = [status.value for status in rows.statuses]
    columns: list[Any] = [rows.shas, vectors, statuses, rows.details, rows.heights, rows.widths]
    return pa.table(columns, schema=schema)


def to_index_table(index: Mapping[Photo, bytes]) -> pa.Table:
    """Return the sha256 of each photo as a table with the schema of an index file."""
    import pyarrow as pa

    rows = [(photo_key(photo), photo.uri, photo.size, photo.modified, sha) for photo, sha in index.items()]
    columns: list[Any] = list(zip(*rows, strict=True))
    return pa.table(columns, schema=file_schema(INDEX, 0))


def photo_key(photo: Photo) -> bytes:
    """Return a digest of 16 bytes that identifies an unchanged photo by uri, size and modification time."""
    text = f"{photo.size} {photo.modified} {photo.uri}"
    return hashlib.blake2b(text.encode(), digest_size=KEY_BYTES).digest()


def encode_file(prefix: str, content: pa.Table) -> tuple[str, bytes]:
    """Return name and content of a file. The content determines the name: writing twice has no effect.

    Args:
        prefix: EMBEDDINGS or INDEX.
        content: rows of the file.
    """
    # Compression makes embeddings smaller by a seventh only, and reading them takes twice as long.
    compression: Literal["zstd", "none"] = "zstd" if prefix == INDEX else "none"
    data = to_parquet(content, compression=compression, row_group=ROW_GROUP if prefix == EMBEDDINGS else None)
    return f"{prefix}{hashlib.sha256(data).hexdigest()[:32]}.parquet", data


def to_parquet(
    table: pa.Table, *, compression: Literal["zstd", "none"], row_group: int | None = None
) -> bytes:
    """Return a table as the bytes of a Parquet file."""
    import pyarrow.parquet as pq

    # Statistics of embeddings are useless, and would take two thirds of the time to write.
    with_statistics: Any = [name for name in table.column_names if name != VECTOR]
    buffer = io.BytesIO()
    pq.write_table(
        table,
        buffer,
        compression=compression,
        use_dictionary=False,
        write_page_checksum=True,
        write_statistics=with_statistics,
        row_group_size=row_group,
    )
    return buffer.getvalue()


@contextmanager
def open_parquet(uri: str) -> Iterator[Any]:
    """Open a pq.ParquetFile whose pages are verified with their checksums when they are read.

    Raises:
        OSError: the file cannot be opened.
        pa.ArrowException: the file is not a Parquet file, or truncated.
    """
    import pyarrow.parquet as pq

    # Given a path, Arrow reads without the GIL.
    opened: Any = files.open_file(uri) if files.is_remote(uri) else nullcontext(uri)
    with opened as source, pq.ParquetFile(source, page_checksum_verification=True) as parquet:
        yield parquet


def get_dimension(schema: pa.Schema) -> int:
    """Return the floats per embedding of an embeddings file; 0 if it has no such column."""
    import pyarrow as pa

    kind = schema.field(VECTOR).type
    if pa.types.is_fixed_size_binary(kind):
        return int(kind.byte_width) // _NUMBER_BYTES
    return int(getattr(kind, "list_size", 0))


def check_types(found: pa.Schema, expected: pa.Schema, columns: Sequence[str] = ()) -> None:
    """Check that columns of a file have the expected types, or the list of numbers of earlier versions.

    Args:
        found: schema of the file.
        expected: expected schema.
        columns: names of the columns to check; none for all of the expected schema.

    Raises:
        KeyError: a column is missing.
        pa.ArrowException: a column has another type.
    """
    import pyarrow as pa

    for column in columns or expected.names:
        kind = found.field(column).type
        is_list = column == VECTOR and kind == _list_type(get_dimension(expected))
        if not is_list and kind != expected.field(column).type:
            raise pa.ArrowInvalid(f"column {column} is {kind}")


def upgrade(content: pa.Table) -> pa.Table:
    """Return the content of a file with embeddings as this version writes them."""
    import pyarrow as pa

    if VECTOR not in content.column_names or not pa.types.is_fixed_size_list(content[VECTOR].type):
        return content
    size = content[VECTOR].type.list_size
    numbers: Any = content[VECTOR].combine_chunks()
    vectors = numbers.flatten().to_numpy(zero_copy_only=False).reshape(-1, size)
    field = file_schema(EMBEDDINGS, size).field(VECTOR)
    return content.set_column(content.column_names.index(VECTOR), field, make_vector_column(vectors))


def _list_type(dimension: int) -> Any:
    """Return the type of embeddings in files of earlier versions."""
    import pyarrow as pa

    return pa.list_(pa.field("element", pa.float16(), nullable=False), dimension)


def make_vector_column(vectors: NDArray[Any]) -> Any:
    """Return embeddings [N,D] as a column."""
    import pyarrow as pa

    count, dimension = vectors.shape
    content = pa.py_buffer(np.ascontiguousarray(vectors, "<f2").tobytes())
    kind = pa.binary(_NUMBER_BYTES * dimension)
    return pa.FixedSizeBinaryArray.from_buffers(kind, count, [None, content])


def to_digest_array(column: Any) -> NDArray[np.bytes_]:
    """Return a fixed-size binary column without nulls as a numpy array of dtype S<width>."""
    import pyarrow as pa

    array: Any = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    width = array.type.byte_width
    # Arrow may give an empty array no buffer.
    buffer = array.buffers()[1] if len(array) else b""
    return np.frombuffer(buffer, f"S{width}", len(array), array.offset * width)


def to_vectors(content: pa.Table, dimension: int) -> NDArray[np.float16]:
    """Return the embeddings of a table as float16 [N,D]."""
    chunks: Any = content[VECTOR]
    # `combine_chunks` copies a single chunk too.
    column = chunks.chunk(0) if chunks.num_chunks == 1 else chunks.combine_chunks()
    buffer = column.buffers()[1] if len(column) else b""
    start = column.offset * _NUMBER_BYTES * dimension
    flat = np.frombuffer(buffer, "<f2", len(column) * dimension, start)
    return flat.reshape(-1, dimension)


def read_errors() -> tuple[type[Exception], ...]:
    """Return the exception types that mean that a file is corrupt or has another layout."""
    import pyarrow as pa

    return OSError, KeyError, pa.ArrowException
