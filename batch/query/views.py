"""Views that queries read: `scores`, one row per photo and model, and `runs`, one row per run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from serving.errors import InputError
from serving.storage import files
from serving.storage.address import EXTRAS

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
    """
    try:
        storage, top = _open_storage(connection, directory)
        scores = _list_files(storage, f"{top}/scores", ".parquet") or _list_files(storage, top, ".parquet")
        if scores:
            found = [f"'{name}': {kind}" for name, kind in _PARTITIONS.items() if f"/{name}=" in scores[0]]
            hive = f"hive_types={{{', '.join(found)}}}" if found else "hive_partitioning=false"
            connection.execute("set variable scores = ?", [scores])
            connection.execute(_SCORES.format(hive=hive))
            top = top.removesuffix("/scores")
            runs = _list_files(storage, f"{top}/_hubhead/runs", ".json")
            runs = runs or _list_files(storage, f"{top}/run.json", ".json")
            connection.execute("set variable runs = ?", [runs])
            connection.execute(_RUNS)
            return scores + runs
    except InputError:
        raise
    except Exception as error:  # every storage client has classes of its own
        reason = summarize_error(error).splitlines()[0].rstrip(".")
        raise InputError(f"The scores in {directory} cannot be read: {reason}.", remedy=_REMEDY) from error
    raise InputError(f"There are no scores in {directory}.", remedy=_REMEDY)


def summarize_error(error: Exception) -> str:
    """Return the message of an error.

    For an error of fsspec, DuckDB's message is the traceback and then the position in the statement;
    of it the last line of the traceback is returned.
    """
    text = str(error).strip() or type(error).__name__
    return text.split("\n\n")[0].splitlines()[-1] if text.startswith("Traceback") else text


def _open_storage(connection: DuckDBPyConnection, directory: str) -> tuple[Any, str]:
    """Return fsspec's file system of a directory and its path there; DuckDB reads remote files through it."""
    address = files.absolute(directory)
    try:
        import fsspec

        storage, top = fsspec.url_to_fs(address)
    except ImportError as error:
        scheme = address.partition("://")[0]
        raise InputError(
            f"{scheme}:// addresses need a package that is not installed: {error}.",
            remedy=f"Install it with: pip install 'hubhead[{EXTRAS.get(scheme) or scheme}]'",
        ) from error
    if files.is_remote(address):
        connection.register_filesystem(storage)
    return storage, top.rstrip("/")


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
