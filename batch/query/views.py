"""Views that queries read: `scores`, one row per photo and model, and `runs`, one row per run."""

from __future__ import annotations

from contextlib import suppress
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
