"""Execution of a single read-only SQL statement over the scores, isolated from files and network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from batch.query import tables
from serving.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

_BATCH_ROWS = 65_536
"""Rows per batch of the result, which bounds the memory that a large result takes."""

_READ_ONLY_STATEMENTS = {"SELECT", "EXPLAIN", "MULTI"}
"""DuckDB's types of statements that only read; PIVOT has the type MULTI."""


def run_query(statement: str, directory: str) -> pa.RecordBatchReader:
    """Run a SQL statement and return its result as a stream of batches.

    Args:
        statement: one statement in DuckDB's SQL over the tables `scores` and `runs`.
        directory: output directory of `hubhead score`, or the `scores` directory in it.

    Raises:
        InputError: the statement is invalid or not read-only, there is not exactly one, no scores are
            found, or DuckDB is not installed.
    """
    try:
        import duckdb
    except ImportError as error:
        raise InputError("DuckDB is not installed.", remedy="pip install 'hubhead[query]'") from error
    connection = duckdb.connect(":memory:")
    try:
        _check_read_only(connection.extract_statements(statement))
        connection.register("scores", tables.open_scores(directory))
        connection.register("runs", tables.read_runs(directory))
        # From here on the statement can reach the registered tables only: no files, no network and no
        # Python variables, and it cannot change these settings back.
        for setting in ("enable_external_access", "python_enable_replacements"):
            connection.execute(f"set {setting}=false")
        connection.execute("set lock_configuration=true")
        return _execute(connection, statement)
    except duckdb.Error as error:
        raise InputError(f"The query failed. {error}") from error


def _execute(connection: Any, statement: str) -> Any:
    import duckdb

    try:
        return connection.sql(statement).to_arrow_reader(_BATCH_ROWS)
    except duckdb.BinderException:
        # sql() reports binding errors without their position in the statement; execute() adds it.
        connection.execute(statement)
        raise


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
