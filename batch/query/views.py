"""Views that queries read: `scores`, one row per photo and model; `runs`, one per run; tables of the user."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serving.errors import InputError
from serving.storage import files, remote

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

_REMEDY = "Give --scores the directory that hubhead score --output wrote."

_PARTITIONS = {"date": "date", "label": "varchar"}
"""SQL types of the partition columns of `hubhead score --partition_by`. Labels may look like numbers."""

_SCORES = "create view scores as from read_parquet(getvariable('scores'), union_by_name=true, {hive})"

# Files without a JSON object are left out: they belong to a run that was interrupted while writing.
_RUNS = """
create view runs as
select json->>'run_id' as run_id,
    try_cast(json->>'started' as timestamptz) as started,
    try_cast(json->>'finished' as timestamptz) as finished,
    try_cast(json->>'photos' as bigint) as photos,
    try_cast(json->>'rejected' as bigint) as rejected,
    try_cast(json->>'seconds' as double) as seconds,
    json::varchar as json
from (select try(json(decode(content))) as json from read_blob(getvariable('runs')))
where json_type(json) = 'OBJECT'
order by started
"""


def create_views(connection: DuckDBPyConnection, directory: str) -> list[str]:
    """Create the views `scores` and `runs`, and return the files that they read when a query runs.

    Args:
        connection: connection that gets the views, and access to remote storage.
        directory: local or remote output directory of `hubhead score`, or the `scores` directory in it.

    Raises:
        InputError: there are no scores, or they cannot be read.
        StorageError: the storage does not answer.
    """
    import duckdb

    scores, runs = _find_files(connection, files.absolute(directory))
    if not scores:
        raise InputError(f"There are no scores in {directory}.", remedy=_REMEDY)
    partitions = [f"'{name}': {kind}" for name, kind in _PARTITIONS.items() if f"/{name}=" in scores[0]]
    hive = f"hive_types={{{', '.join(partitions)}}}" if partitions else "hive_partitioning=false"
    connection.execute("set variable scores = ?", [scores])
    connection.execute("set variable runs = ?", [runs])
    try:
        connection.execute(_SCORES.format(hive=hive))
        connection.execute(_RUNS)
    except duckdb.Error as error:
        reason = summarize_error(error).splitlines()[0].rstrip(".")
        raise InputError(f"The scores in {directory} cannot be read: {reason}.", remedy=_REMEDY) from error
    return scores + runs


_READERS = {
    ".csv": "read_csv(getvariable('{}'))",
    ".tsv": "read_csv(getvariable('{}'))",
    ".json": "read_json(getvariable('{}'))",
    ".jsonl": "read_json(getvariable('{}'))",
    ".parquet": "read_parquet(getvariable('{}'))",
}
"""Ending of a table's file -> DuckDB's function that reads it."""

_TEXT_COLUMNS = ("label", "uri", "sha256")
"""Columns of the scores that are text, by which tables are joined: values such as 01 stay text."""


def create_tables(connection: DuckDBPyConnection, tables: Mapping[str, str]) -> list[str]:
    """Create a view for each table of the user, and return the files that they read when a query runs.

    Args:
        connection: connection that gets the views.
        tables: local file by the name of the table.

    Raises:
        InputError: a name is not a name of a table or is taken, or a file cannot be read.
    """
    import duckdb

    found = []
    for number, (name, file) in enumerate(tables.items()):
        _check_table(name, file)
        variable = f"table_{number}"
        connection.execute(f"set variable {variable} = ?", [str(Path(file).absolute())])
        try:
            source = _READERS[Path(file).suffix.lower()].format(variable)
            columns = [column for column, *_ in connection.execute(f"describe from {source}").fetchall()]
            text = [column for column in columns if column in _TEXT_COLUMNS]
            if text and source.startswith("read_csv"):
                types = ", ".join(f"'{column}': 'varchar'" for column in text)
                source = f"{source.removesuffix(')')}, types={{{types}}})"
            connection.execute(f'create view "{name}" as from {source}')
        except duckdb.Error as error:
            reason = summarize_error(error).splitlines()[0].rstrip(".")
            raise InputError(f"The table {name} cannot be read from {file}: {reason}.") from error
        found.append(str(Path(file).absolute()))
    return found


def _check_table(name: str, file: str) -> None:
    """Check the name and the file of a table.

    Raises:
        InputError: one of them cannot be used.
    """
    if not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII) or name.lower() in ("scores", "runs"):
        raise InputError(
            f"{name!r} cannot be the name of a table.",
            remedy="Use letters, digits and _, and neither scores nor runs, which are there already.",
        )
    if not Path(file).is_file():
        raise InputError(f"The table {name} is not a local file: {file}.", remedy="Copy it to this machine.")
    if Path(file).suffix.lower() not in _READERS:
        raise InputError(
            f"The table {name} has an unknown format: {file}.",
            remedy=f"Use a file whose name ends in {', '.join(_READERS)}.",
        )


def _find_files(connection: DuckDBPyConnection, address: str) -> tuple[list[str], list[str]]:
    """Return the files of the scores and of the runs; DuckDB gets access to remote ones through fsspec."""
    with suppress(FileNotFoundError), remote.connect(address, "list"):
        import fsspec

        # Unlike connect's file system, it caches the listing, so that no request is needed for a file's size.
        storage, top = fsspec.url_to_fs(address, skip_instance_cache=True)
        if files.is_remote(address):
            connection.register_filesystem(storage)
        top = top.rstrip("/")
        scores = _list_files(storage, f"{top}/scores", ".parquet")
        if not scores:
            scores = _list_files(storage, top, ".parquet")
            top = top.removesuffix("/scores")
        runs = _list_files(storage, f"{top}/_hubhead/runs", ".json")
        return scores, runs or _list_files(storage, f"{top}/run.json", ".json")
    return [], []


def _list_files(storage: Any, top: str, ending: str) -> list[str]:
    """Return the paths or addresses of files below a directory, without hidden ones: `.name` or `_name`."""
    protocols = (storage.protocol,) if isinstance(storage.protocol, str) else storage.protocol
    # DuckDB addresses remote files by the first protocol of their file system.
    prefix = "" if "file" in protocols else f"{protocols[0]}://"
    return [
        f"{prefix}{path}"
        for path in sorted(storage.find(top))
        if path.endswith(ending)
        and not any(part.startswith((".", "_")) for part in path[len(top) :].split("/"))
    ]


def summarize_error(error: Exception) -> str:
    """Return the message of an error.

    For an error of fsspec, DuckDB's message is the traceback and then the position in the statement;
    of it the last line of the traceback is returned.
    """
    text = str(error).strip() or type(error).__name__
    return text.split("\n\n")[0].splitlines()[-1] if text.startswith("Traceback") else text
