"""Tables that queries can use: `scores`, one row per photo and model, and `runs`, one row per run."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from serving.errors import InputError
from serving.storage import files

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.dataset as pds

_REMEDY = "Give --scores the directory that hubhead score --output wrote."


def open_scores(directory: str) -> pds.Dataset:
    """Return the scores as a dataset that is read while a query runs.

    Args:
        directory: local or remote output directory of `hubhead score`, or the `scores` directory in it.

    Raises:
        InputError: there are no scores, or they cannot be read.
    """
    import pyarrow as pa
    import pyarrow.dataset as pds

    try:
        storage, top = _resolve_filesystem(directory)
        found = _list_parquet_files(storage, f"{top}/scores") or _list_parquet_files(storage, top)
        if found:
            options = pds.FileSystemFactoryOptions(partitioning=_detect_partitioning(found))
            # pyarrow's type stubs know neither lists of files nor promotion.
            new_factory: Any = pds.FileSystemDatasetFactory
            factory = new_factory(storage, found, pds.ParquetFileFormat(), options)
            # All files are inspected, since some of them may lack pass-through columns.
            return factory.finish(factory.inspect(promote_options="permissive", fragments=None))
    except (OSError, pa.ArrowException) as error:
        raise InputError(
            f"The scores in {directory} cannot be read: {str(error).splitlines()[0]}.", remedy=_REMEDY
        ) from error
    raise InputError(f"There are no scores in {directory}.", remedy=_REMEDY)


def _list_parquet_files(storage: Any, top: str) -> list[str]:
    """Return the Parquet files below a directory; names that start with `.` or `_` are hidden."""
    import pyarrow.fs as pfs

    infos = storage.get_file_info(pfs.FileSelector(top, recursive=True, allow_not_found=True))
    return sorted(
        info.path
        for info in infos
        if info.path.endswith(".parquet")
        and not any(part.startswith((".", "_")) for part in info.path[len(top) :].split("/"))
    )


def _detect_partitioning(paths: list[str]) -> Any:
    """Return the Hive partitioning that `hubhead score --partition_by` used; None without partitions."""
    import pyarrow as pa
    import pyarrow.dataset as pds

    kinds: dict[str, Any] = {"date": pa.date32(), "label": pa.string()}
    found = [(name, kind) for name, kind in kinds.items() if f"/{name}=" in paths[0]]
    return pds.partitioning(pa.schema(found), flavor="hive") if found else None


def _resolve_filesystem(directory: str) -> tuple[Any, str]:
    """Return the pyarrow file system of a directory, and the path of the directory in it."""
    import pyarrow.fs as pfs

    address = files.absolute(directory)
    if not files.is_remote(address):
        return pfs.LocalFileSystem(), address
    return pfs.FileSystem.from_uri(address)


def read_runs(directory: str) -> pa.Table:
    """Return the runs that wrote to an output directory, oldest first; empty if none is recorded.

    The columns are `run_id`, `started`, `finished`, the counts and seconds of run.json, and `json`,
    its whole text.

    Args:
        directory: local or remote output directory of `hubhead score`, or the `scores` directory in it.
    """
    import pyarrow as pa

    fields: list[tuple[str, pa.DataType]] = [
        ("run_id", pa.string()),
        ("started", pa.timestamp("s", tz="UTC")),
        ("finished", pa.timestamp("s", tz="UTC")),
        ("photos", pa.int64()),
        ("rejected", pa.int64()),
        ("seconds", pa.float64()),
        ("json", pa.string()),
    ]
    schema = pa.schema(fields)
    found = sorted(_read_run_records(directory), key=lambda run: str(run.get("started")))
    rows = [{**{name: run.get(name) for name in schema.names}, "json": json.dumps(run)} for run in found]
    for row in rows:
        for name in ("started", "finished"):
            row[name] = _parse_time(row[name])
    return pa.Table.from_pylist(rows, schema=schema)


def _parse_time(text: Any) -> Any:
    from datetime import datetime

    try:
        return datetime.fromisoformat(str(text))
    except ValueError:
        return None


def _read_run_records(directory: str) -> list[dict[str, Any]]:
    """Return the record of every run; without kept records, the run.json of the newest run."""
    address = files.absolute(directory)
    if address.rpartition("/")[2] == "scores":
        address = address.rpartition("/")[0]
    kept = files.join(address, "_hubhead", "runs")
    uris = [files.join(kept, name) for name in files.list_names(kept) if name.endswith(".json")]
    found = []
    for uri in uris or [files.join(address, "run.json")]:
        try:
            run = json.loads(files.read(uri))
        except (OSError, ValueError):
            continue  # the run was interrupted while writing, or there is no run.json
        if isinstance(run, dict):
            found.append(run)
    return found
