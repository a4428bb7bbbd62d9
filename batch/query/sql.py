"""One statement over the tables: read only, and with nothing else in reach."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from batch.query import tables
from serving.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

_ROWS = 65_536
"""Rows a batch of the answer, so that a large one is never whole in memory."""

_READING = {"SELECT", "EXPLAIN", "MULTI"}
"""DuckDB's kinds of statements that read; PIVOT is of the third."""


def run_query(statement: str, directory: str) -> pa.RecordBatchReader:
    """The answer to one statement, as it comes.

    Args:
        statement: in DuckDB's SQL, over `scores` and `runs`.
        directory: the output of `hubhead score`, or the `scores` in it.

    Raises:
        InputError: the statement is wrong, writes, or is not one; no scores; DuckDB is missing.
    """
    try:
        import duckdb
    except ImportError as error:
        raise InputError("DuckDB is not installed.", remedy="pip install 'hubhead[query]'") from error
    connection = duckdb.connect(":memory:")
    try:
        _check(connection.extract_statements(statement))
        connection.register("scores", tables.open_scores(directory))
        connection.register("runs", tables.read_runs(directory))
        # From here on no files, no network, no Python objects: what was registered, and nothing else.
        for setting in ("enable_external_access", "python_enable_replacements"):
            connection.execute(f"set {setting}=false")
        connection.execute("set lock_configuration=true")
        return _answer(connection, statement)
    except duckdb.Error as error:
        raise InputError(f"The query cannot be answered. {error}") from error


def _answer(connection: Any, statement: str) -> Any:
    import duckdb

    try:
        return connection.sql(statement).to_arrow_reader(_ROWS)
    except duckdb.BinderException:
        connection.execute(statement)  # whose error says where
        raise


def _check(statements: list[Any]) -> None:
    if len(statements) != 1:
        raise InputError(
            f"One statement is wanted, and there are {len(statements)}.",
            remedy="Such as: select label, count(*) from scores group by label",
        )
    kind = statements[0].type.name
    if kind not in _READING:
        raise InputError(
            f"{kind} does more than read.",
            remedy="Only SELECT and the like can be asked; scores stay as they are.",
        )
