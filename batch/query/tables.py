"""The tables that can be asked: `scores`, one row a photo and model, and `runs`, one row a run."""

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
    """The rows, as a dataset that is read while it is asked.

    Args:
        directory: the output of `hubhead score`, or the `scores` in it; local or remote.

    Raises:
        InputError: there are none, or they cannot be read.
    """
    import pyarrow as pa
    import pyarrow.dataset as pds

    try:
        storage, top = _filesystem(directory)
        found = _files(storage, f"{top}/scores") or _files(storage, top)
        if found:
            options = pds.FileSystemFactoryOptions(partitioning=_partitioning(found))
            new: Any = pds.FileSystemDatasetFactory  # its types know neither lists of files nor promotion
            factory = new(storage, found, pds.ParquetFileFormat(), options)
            # Of all files: columns that pass through may be in some of them only.
            return factory.finish(factory.inspect(promote_options="permissive", fragments=None))
    except (OSError, pa.ArrowException) as error:
        raise InputError(
            f"The scores in {directory} cannot be read: {str(error).splitlines()[0]}.", remedy=_REMEDY
        ) from error
    raise InputError(f"There are no scores in {directory}.", remedy=_REMEDY)


def _files(storage: Any, top: str) -> list[str]:
    """The Parquet files below a directory, without leftovers and what is not for readers."""
    import pyarrow.fs as pfs

    infos = storage.get_file_info(pfs.FileSelector(top, recursive=True, allow_not_found=True))
    return sorted(
        info.path
        for info in infos
        if info.path.endswith(".parquet")
        and not any(part.startswith((".", "_")) for part in info.path[len(top) :].split("/"))
    )


def _partitioning(paths: list[str]) -> Any:
    """The columns that stand in the names of directories, as hubhead score --partition_by makes them."""
    import pyarrow as pa
    import pyarrow.dataset as pds

    kinds: dict[str, Any] = {"date": pa.date32(), "label": pa.string()}
    named = [(name, kind) for name, kind in kinds.items() if f"/{name}=" in paths[0]]
    return pds.partitioning(pa.schema(named), flavor="hive") if named else None


def _filesystem(directory: str) -> tuple[Any, str]:
    """pyarrow's file system, and the path in it."""
    import pyarrow.fs as pfs

    place = files.absolute(directory)
    if not files.is_remote(place):
        return pfs.LocalFileSystem(), place
    return pfs.FileSystem.from_uri(place)


def read_runs(directory: str) -> pa.Table:
    """What is known of the runs that wrote there, the oldest first; empty where nothing is.

    PassThroughColumns: `run_id`, `started`, `finished`, what is counted in run.json, and `json`, all of it.
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
    found = sorted(_records(directory), key=lambda run: str(run.get("started")))
    rows = [{**{name: run.get(name) for name in schema.names}, "json": json.dumps(run)} for run in found]
    for row in rows:
        for name in ("started", "finished"):
            row[name] = _time(row[name])
    return pa.Table.from_pylist(rows, schema=schema)


def _time(text: Any) -> Any:
    from datetime import datetime

    try:
        return datetime.fromisoformat(str(text))
    except ValueError:
        return None


def _records(directory: str) -> list[dict[str, Any]]:
    """Every run's record; where none are kept, the newest run's run.json."""
    place = files.absolute(directory)
    if place.rpartition("/")[2] == "scores":
        place = place.rpartition("/")[0]
    kept = files.join(place, "_hubhead", "runs")
    uris = [files.join(kept, name) for name in files.list_names(kept) if name.endswith(".json")]
    found = []
    for uri in uris or [files.join(place, "run.json")]:
        try:
            run = json.loads(files.read(uri))
        except (OSError, ValueError):
            continue  # a run that was cut off, or none at all
        if isinstance(run, dict):
            found.append(run)
    return found
