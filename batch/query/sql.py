"""Execution of a single read-only SQL statement over the scores, isolated from files and network."""

from __future__ import annotations

import io
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from batch.query.views import create_tables, create_views, summarize_error
from serving.errors import InputError
from serving.storage import files
from serving.text import escape_controls

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection, DuckDBPyRelation

MAX_TABLE_ROWS = 100
"""Rows that the table format prints."""

_COPY_OPTIONS = {"csv": "header", "json": "array", "parquet": "compression zstd"}

_READ_ONLY_STATEMENTS = {"SELECT", "EXPLAIN", "MULTI"}
"""DuckDB's types of statements that only read; PIVOT has the type MULTI."""

_NESTED_AS_JSON = dict.fromkeys(("array", "list", "map", "struct", "union"), "to_json({})")
_SHORT_FLOATS = dict.fromkeys(("double", "float"), "printf('%.6g', {})")


def run_query(
    statement: str, directory: str, kind: str, output: str, tables: Mapping[str, str] | None = None
) -> int:
    """Run a SQL statement over `scores`, `runs` and the given tables, write its result, and count its rows.

    Args:
        statement: one statement in DuckDB's SQL.
        directory: local or remote output directory of `hubhead score`, or the `scores` directory in it.
        kind: one of batch.query.FORMATS.
        output: path or address of the file, which is written atomically; "" for stdout.
        tables: local file of each further table, by the name of the table.

    Raises:
        InputError: the statement is invalid or not read-only, there is not exactly one, no scores are
            found, or DuckDB is not installed.
        OutputError: the file cannot be written.
    """
    try:
        import duckdb
    except ImportError as error:
        raise InputError("DuckDB is not installed.", remedy="pip install 'hubhead[query]'") from error
    sink: Any = files.create_file(files.absolute(output)) if output else nullcontext(sys.stdout.buffer)
    try:
        with _connect(statement, directory, tables or {}) as (connection, scratch):
            relation = _bind(connection, statement)
            with sink as file:
                if kind == "table":
                    return _write_table(relation, file)
                return _write_file(relation, kind, file, scratch)
    except duckdb.Error as error:
        raise InputError(f"The query failed. {summarize_error(error)}") from error


@contextmanager
def _connect(
    statement: str, directory: str, tables: Mapping[str, str]
) -> Iterator[tuple[DuckDBPyConnection, Path]]:
    """Provide a connection that can read the views, and a temporary directory that it can also write.

    It accesses no other file, no network and no Python variable, and its settings cannot be changed.
    """
    import duckdb

    with tempfile.TemporaryDirectory() as scratch:
        # Files do not change during a query, so they need not be checked again whenever they are opened.
        config: dict[str, Any] = {"temp_directory": scratch, "validate_external_file_cache": "NO_VALIDATION"}
        with duckdb.connect(":memory:", config=config) as connection:
            connection.execute("set parquet_metadata_cache = true")
            _check_read_only(connection.extract_statements(statement))
            settings = {
                "allowed_paths": create_views(connection, directory) + create_tables(connection, tables),
                "allowed_directories": [scratch],
                "enable_external_access": False,
                "python_enable_replacements": False,
                "lock_configuration": True,
            }
            for name, value in settings.items():
                connection.execute(f"set {name} = ?", [value])
            yield connection, Path(scratch)


def _check_read_only(statements: list[Any]) -> None:
    if len(statements) != 1:
        raise InputError(
            f"Expected one SQL statement, found {len(statements)}.",
            remedy="Example: select label, count(*) from scores group by label",
        )
    kind = statements[0].type.name
    if kind not in _READ_ONLY_STATEMENTS:
        raise InputError(
            f"{kind} statements are not allowed: queries are read-only.",
            remedy="Use SELECT, EXPLAIN or PIVOT.",
        )


def _bind(connection: DuckDBPyConnection, statement: str) -> DuckDBPyRelation:
    import duckdb

    try:
        return connection.sql(statement)
    except duckdb.BinderException:
        # sql() reports binding errors without their position in the statement; execute() adds it.
        connection.execute(statement)
        raise


def _write_file(relation: DuckDBPyRelation, kind: str, file: BinaryIO, scratch: Path) -> int:
    """Write the result as CSV, JSON or Parquet; in CSV, nested values are written as JSON."""
    path = scratch / "result"
    if kind == "csv":
        relation = _convert_to_text(relation, _NESTED_AS_JSON)
    copied: Any = relation.query("result", f"copy result to '{path}' (format {kind}, {_COPY_OPTIONS[kind]})")
    [(count,)] = copied.fetchall()
    with path.open("rb") as result:
        shutil.copyfileobj(result, file, 1 << 20)
    return int(count)


def _write_table(relation: DuckDBPyRelation, file: BinaryIO) -> int:
    """Write the first MAX_TABLE_ROWS rows as an aligned table."""
    from duckdb import NUMBER  # type: ignore[attr-defined]  # its stubs lack it
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name, kind, *_ in relation.description:
        justify: Any = "right" if kind == NUMBER else "left"
        table.add_column(Text(escape_controls(name)), justify=justify, overflow="fold")
    rows = _convert_to_text(relation, _NESTED_AS_JSON | _SHORT_FLOATS).limit(MAX_TABLE_ROWS).fetchall()
    for row in rows:
        table.add_row(*(Text(escape_controls(value or "")) for value in row))
    count = len(relation) if len(rows) == MAX_TABLE_ROWS else len(rows)
    out = io.TextIOWrapper(file, "utf-8", write_through=True)
    # Files and pipes get unwrapped lines, which other programs can process.
    console = Console(file=out, width=None if out.isatty() else 10_000)
    console.print(table)
    if count > MAX_TABLE_ROWS:
        console.print(
            f"First {MAX_TABLE_ROWS} of {count:,} rows. Use --format csv, json or parquet to get all rows."
        )
    out.detach()  # leaves `file` open for the caller
    return count


def _convert_to_text(relation: DuckDBPyRelation, expressions: Mapping[str, str]) -> DuckDBPyRelation:
    """Return a relation with all columns as text.

    Args:
        relation: relation to convert; its columns are addressed by position, since names may repeat.
        expressions: expression for each type that is not merely cast, with {} in place of the column.
    """
    columns = []
    for position, (name, kind) in enumerate(zip(relation.columns, relation.types, strict=True), 1):
        value = expressions.get(kind.id, "{}").format(f"#{position}")
        quoted = name.replace('"', '""')
        columns.append(f'({value})::varchar as "{quoted}"')
    return relation.project(", ".join(columns))
