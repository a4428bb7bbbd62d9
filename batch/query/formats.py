"""Output formats of query results: aligned table, CSV, JSON and Parquet."""

from __future__ import annotations

import csv
import io
import json
import secrets
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from serving.errors import OutputError
from serving.storage import files

if TYPE_CHECKING:
    import pyarrow as pa

MAX_TABLE_ROWS = 100
"""Rows that the table format prints."""


def write_result(result: pa.RecordBatchReader, kind: str, output: str) -> int:
    """Write a query result to a file atomically, or to stdout, and return its number of rows.

    Args:
        result: batches of the result; read to the end.
        kind: format, a key of `FORMATS`.
        output: path or address of the file; "" for stdout.

    Raises:
        OutputError: the file cannot be written.
    """
    if not output:
        return FORMATS[kind](result, sys.stdout.buffer)
    with _open_output(output) as sink:
        return FORMATS[kind](result, sink)


@contextmanager
def _open_output(output: str) -> Iterator[BinaryIO]:
    """Open a file that appears under its name only if the block succeeds."""
    if files.is_remote(output):
        buffer = io.BytesIO()
        yield buffer
        # Object stores have no rename: the object appears complete when its upload ends.
        files.write(output, buffer.getvalue())
        return
    path = Path(files.absolute(output))
    temporary = path.with_name(f"{files.TEMPORARY_PREFIX}{secrets.token_hex(8)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("xb") as file:
                yield file
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(
            f"Cannot write {output}: {error.strerror or error}.",
            remedy="Choose a directory that is writable and has free space.",
        ) from error


def write_table(result: pa.RecordBatchReader, sink: BinaryIO) -> int:
    """Write the first MAX_TABLE_ROWS rows as an aligned table."""
    import pyarrow.types as is_
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for field in result.schema:
        is_number = is_.is_integer(field.type) or is_.is_floating(field.type) or is_.is_decimal(field.type)
        table.add_column(Text(field.name), justify="right" if is_number else "left", overflow="fold")
    count = 0
    for batch in result:
        for row in batch.slice(0, max(0, MAX_TABLE_ROWS - count)).to_pylist():
            table.add_row(*(Text(_format_cell(value)) for value in row.values()))
        count += batch.num_rows
    text = io.TextIOWrapper(sink, "utf-8", write_through=True)
    # Files and pipes get unwrapped lines, which other programs can process.
    console = Console(file=text, width=None if text.isatty() else 10_000)
    console.print(table)
    if count > MAX_TABLE_ROWS:
        console.print(
            f"First {MAX_TABLE_ROWS} of {count:,} rows. Use --format csv, json or parquet to get all rows."
        )
    text.detach()  # leaves `sink` open for the caller
    return count


def write_csv(result: pa.RecordBatchReader, sink: BinaryIO) -> int:
    """Write CSV (RFC 4180) with a header; lists and structs are written as JSON."""
    text = io.TextIOWrapper(sink, "utf-8", newline="", write_through=True)
    writer = csv.writer(text)
    writer.writerow(result.schema.names)
    count = 0
    for batch in result:
        columns = [[_csv_value(value) for value in column.to_pylist()] for column in batch.columns]
        writer.writerows(zip(*columns, strict=True))
        count += batch.num_rows
    text.detach()
    return count


def write_json(result: pa.RecordBatchReader, sink: BinaryIO) -> int:
    """Write a JSON array with one object per line."""
    count = 0
    sink.write(b"[")
    for batch in result:
        for row in batch.to_pylist():
            sink.write((",\n" if count else "\n").encode())
            sink.write(_to_json(row).encode())
            count += 1
    sink.write(b"\n]\n")
    return count


def write_parquet(result: pa.RecordBatchReader, sink: BinaryIO) -> int:
    """Write Parquet, batch by batch."""
    import pyarrow.parquet as pq

    count = 0
    with pq.ParquetWriter(sink, result.schema, compression="zstd") as writer:
        for batch in result:
            writer.write_batch(batch)
            count += batch.num_rows
    return count


FORMATS: Mapping[str, Callable[[pa.RecordBatchReader, BinaryIO], int]] = {
    "table": write_table,
    "csv": write_csv,
    "json": write_json,
    "parquet": write_parquet,
}
"""Writer of each format: takes the result and a binary file, returns the number of rows."""


def _format_cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return "" if value is None else str(_csv_value(value))


def _csv_value(value: Any) -> Any:
    return _to_json(value) if isinstance(value, (list, dict)) else value


def _to_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
