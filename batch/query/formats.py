"""The answer as a table for people, as CSV, as JSON, or as Parquet."""

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

SHOWN = 100
"""Rows of a table for people."""


def write_result(answer: pa.RecordBatchReader, kind: str, output: str) -> int:
    """Write an answer to a file, whole or not at all; how many rows it has.

    Args:
        answer: to be read to its end.
        kind: a key of `FORMATS`.
        output: path or address; "" for stdout.

    Raises:
        OutputError: the place cannot be written.
    """
    if not output:
        return FORMATS[kind](answer, sys.stdout.buffer)
    with _sink(output) as sink:
        return FORMATS[kind](answer, sink)


@contextmanager
def _sink(output: str) -> Iterator[BinaryIO]:
    """Where bytes go that become a file at the end, if all went well."""
    if files.is_remote(output):
        held = io.BytesIO()
        yield held
        files.write(output, held.getvalue())
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
            remedy="Choose a place you may write to, with room left.",
        ) from error


def write_table(answer: pa.RecordBatchReader, sink: BinaryIO) -> int:
    """The first SHOWN rows, aligned."""
    import pyarrow.types as is_
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for field in answer.schema:
        is_number = is_.is_integer(field.type) or is_.is_floating(field.type) or is_.is_decimal(field.type)
        table.add_column(Text(field.name), justify="right" if is_number else "left", overflow="fold")
    count = 0
    for batch in answer:
        for row in batch.slice(0, max(0, SHOWN - count)).to_pylist():
            table.add_row(*(Text(_shown(value)) for value in row.values()))
        count += batch.num_rows
    text = io.TextIOWrapper(sink, "utf-8", write_through=True)
    console = Console(file=text, width=None if text.isatty() else 10_000)
    console.print(table)
    if count > SHOWN:
        console.print(f"The first {SHOWN} of {count:,} rows; --format csv, json or parquet have them all.")
    text.detach()
    return count


def write_csv(answer: pa.RecordBatchReader, sink: BinaryIO) -> int:
    """RFC 4180 with a line of names; lists and structs as JSON."""
    text = io.TextIOWrapper(sink, "utf-8", newline="", write_through=True)
    writer = csv.writer(text)
    writer.writerow(answer.schema.names)
    count = 0
    for batch in answer:
        columns = [[_cell(value) for value in column.to_pylist()] for column in batch.columns]
        writer.writerows(zip(*columns, strict=True))
        count += batch.num_rows
    text.detach()
    return count


def write_json(answer: pa.RecordBatchReader, sink: BinaryIO) -> int:
    """One array of objects, a row a line."""
    count = 0
    sink.write(b"[")
    for batch in answer:
        for row in batch.to_pylist():
            sink.write((",\n" if count else "\n").encode())
            sink.write(_json(row).encode())
            count += 1
    sink.write(b"\n]\n")
    return count


def write_parquet(answer: pa.RecordBatchReader, sink: BinaryIO) -> int:
    """Parquet, as it comes."""
    import pyarrow.parquet as pq

    count = 0
    with pq.ParquetWriter(sink, answer.schema, compression="zstd") as writer:
        for batch in answer:
            writer.write_batch(batch)
            count += batch.num_rows
    return count


FORMATS: Mapping[str, Callable[[pa.RecordBatchReader, BinaryIO], int]] = {
    "table": write_table,
    "csv": write_csv,
    "json": write_json,
    "parquet": write_parquet,
}


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return "" if value is None else str(_cell(value))


def _cell(value: Any) -> Any:
    return _json(value) if isinstance(value, (list, dict)) else value


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
