"""Output directory of scoring runs: its files, and the records of finished shards.

    scores/[date=.../|label=.../]scores-<shard>.parquet   rows of the scores
    run.json, report.html                                 the newest run, once all rows are written
    _hubhead/runs/<run>.json                              run.json of every run
    _hubhead/shards/<shard>.<run>.json                    record of a finished shard
    _hubhead/keys/...                                     scored photos (batch.shards.scored_index)
    _hubhead/input.json                                   identity of the job
    _hubhead/lease/                                       lease of the present run, and its plan

The rows have a directory of their own, because Parquet readers open every file of a directory. A
shard's record is written after its rows and keys, as the commit of the shard: rows and keys without a
record are leftovers of an interrupted run. All changes go through the run's lease (serving.storage.lease).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from batch.embeddings import to_parquet
from batch.monitoring.stats import Stats
from batch.output.shard_record import (
    UNREADABLE,
    WORK_DIRECTORY,
    ScoredKeys,
    ShardRecord,
    key_names,
    record_name,
    run_name,
)
from batch.shards.scored_index import ScoredIndex, encode_keys
from serving.errors import InputError, OutputError
from serving.storage import files
from serving.storage.lease import Lease, hold

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

RUN_FILE = "run.json"
REPORT_FILE = "report.html"
PARTITIONS = ("date", "label")
"""Columns by which the rows can be partitioned in Hive's layout: day of the run, or predicted label."""

_SCORES = "scores"
_LEASE = f"{WORK_DIRECTORY}/lease"
_IDENTITY = f"{WORK_DIRECTORY}/input.json"
_APPENDED, _COLUMNS = "only_new", "columns"
_NO_LABEL = "__HIVE_DEFAULT_PARTITION__"  # Hive's name for null, which Parquet readers know
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SCORES_FILE = re.compile(r"scores-([0-9a-f]{32})\.parquet")
_RECORD_FILE = re.compile(r"([0-9a-f]{32})\.(.+)\.json")


def check_run_id(run_id: str) -> str:
    """Return the id of a run if it is valid.

    Raises:
        InputError: the id cannot be part of a file name.
    """
    if not _RUN_ID.fullmatch(run_id):
        raise InputError(
            f"{run_id!r} is not a valid run id.",
            remedy="Use up to 64 letters, digits, dots, dashes and underscores, such as 2026-05-31.",
        )
    return run_id


@dataclass(frozen=True)
class Output:
    """An output directory, local or remote.

    Attributes:
        directory: absolute path or address.
        partition_by: one of PARTITIONS; "" for no partitions.
        lease: lease of the run that changes it; None changes it without a lease.
    """

    directory: str
    partition_by: str = ""
    lease: Lease | None = None

    @property
    def scores_directory(self) -> str:
        """Directory of the Parquet dataset."""
        return files.join(self.directory, _SCORES)

    @property
    def work_directory(self) -> str:
        """Directory of the files that runs leave for later runs."""
        return files.join(self.directory, WORK_DIRECTORY)

    @property
    def plan_directory(self) -> str:
        """Directory of the plan: the open shards of a run."""
        return files.join(self.directory, self.lease.staging if self.lease else WORK_DIRECTORY, "plan")

    @property
    def run_file(self) -> str:
        """Address of run.json, whose presence means that the newest run is complete."""
        return files.join(self.directory, RUN_FILE)

    @property
    def report_file(self) -> str:
        """Address of the HTML report of the newest run."""
        return files.join(self.directory, REPORT_FILE)

    def run_record_file(self, run_id: str) -> str:
        """Return the address of a run's record."""
        return files.join(self.directory, run_name(run_id))

    def key_directory(self, model: str) -> str:
        """Return the directory of the keys of what a model has scored.

        Args:
            model: digest of the model.
        """
        return files.join(self.work_directory, "keys", model)

    @property
    def writer(self) -> Lease:
        """Lease through which everything is changed; names are relative to the output directory."""
        return self.lease or Lease(self.directory)

    # --- Claiming -------------------------------------------------------------------------------------

    @contextmanager
    def hold_lease(self) -> Iterator[Output]:
        """Provide the output as the only run that may change it.

        Raises:
            OutputBusy: another run is writing to the output.
        """
        with hold(self.directory, _LEASE, "Another run is writing to") as lease:
            yield replace(self, lease=lease)

    def check(self, identity: Mapping[str, Any], *, append: bool, overwrite: bool) -> bool:
        """Check that the directory is empty or belongs to this job, without changing anything.

        Args:
            identity: photos, models and layout of the job, as JSON values.
            append: whether rows are added to those of any previous job.
            overwrite: allow to take the directory over from another job; files that are not hubhead's
                stay.

        Returns:
            True if the directory belongs to another job and has to be taken over.

        Raises:
            OutputError: the directory belongs to another job or contains something else.
        """
        found = self._read_identity()
        if found is None and set(files.list_names(self.directory)) - {WORK_DIRECTORY}:
            raise OutputError(
                f"{self.directory} is not empty and contains no scores of hubhead.",
                remedy="Give another --output.",
            )
        wanted = {**identity, _APPENDED: append}
        if append and found:
            # Any job may append; only the layout of the rows has to be the same.
            wanted = {**found, "partition_by": identity["partition_by"]}
        differs = found not in (None, wanted)
        if differs and not overwrite:
            raise OutputError(
                f"{self.directory} contains other scores: {_describe_difference(found, wanted)}.",
                remedy="Give another --output, or replace them with --overwrite.",
            )
        return differs

    def claim(self, identity: Mapping[str, Any], columns: Sequence[Sequence[str]], *, append: bool) -> None:
        """Write the identity of the job, and delete run.json and the report of the previous run.

        Args:
            identity: as in `check`.
            columns: name and type of each pass-through column.
            append: as in `check`.

        Raises:
            OutputError: the directory cannot be written.
        """
        # Until this run is complete, no run.json may claim that the rows are.
        self.writer.publish(removes=[RUN_FILE, REPORT_FILE])
        content = {**identity, _APPENDED: append, _COLUMNS: columns}
        self.writer.publish({_IDENTITY: json.dumps(content, indent=2, ensure_ascii=False).encode()})

    def read_columns(self) -> list[list[str]] | None:
        """Return name and type of each pass-through column of the existing rows; None without rows."""
        found = read_json(files.join(self.directory, _IDENTITY))
        return found.get(_COLUMNS) if isinstance(found, dict) else None

    def _read_identity(self) -> dict[str, Any] | None:
        found = read_json(files.join(self.directory, _IDENTITY))
        if not isinstance(found, dict):
            return None
        return {name: value for name, value in found.items() if name != _COLUMNS}

    def publish_run(self, run_id: str, record: bytes, report: bytes | None) -> None:
        """Write run.json, whose presence means that the scores are complete, its copy, and the report.

        Args:
            run_id: id of the run.
            record: content of run.json.
            report: content of the report; None to write none.

        Raises:
            LeaseLost: another run took over; nothing is written.
            OutputError: a file cannot be written.
        """
        reports = {REPORT_FILE: report} if report is not None else {}
        self.writer.publish({**reports, run_name(run_id): record, RUN_FILE: record})

    # --- Shards ---------------------------------------------------------------------------------------

    def list_records(self) -> dict[str, list[str]]:
        """Return the ids of the runs that finished each shard, by shard id; usually there is one run."""
        found: dict[str, list[str]] = {}
        for name in files.list_names(files.join(self.work_directory, "shards")):
            if match := _RECORD_FILE.fullmatch(name):
                found.setdefault(match[1], []).append(match[2])
        return found

    def read_record(self, shard_id: str, run_id: str) -> ShardRecord | None:
        """Return the record of a shard; None if there is none or it is corrupt."""
        try:
            return ShardRecord.from_json(
                files.read(files.join(self.directory, record_name(shard_id, run_id)))
            )
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None

    def commit(
        self,
        shard_id: str,
        run_id: str,
        table: pa.Table,
        stats: Stats,
        scored: Mapping[str, ScoredKeys],
        *,
        date: str,
    ) -> ShardRecord:
        """Write a shard's rows, then its keys, and finally its record.

        Args:
            shard_id: id of the shard.
            run_id: id of the run.
            table: rows of the shard.
            stats: statistics of the shard.
            scored: keys of the photos that the rows are about, by the digest of the model.
            date: day of the run, such as 2026-05-31.

        Raises:
            LeaseLost: another run took over; what it wrote is unchanged.
            OutputError: a file cannot be written.
        """
        rows = {
            f"{directory}scores-{shard_id}.parquet": to_parquet(part, compression="zstd")
            for directory, part in self._split_by_partition(table, date)
        }
        keys = {
            name: content
            for model, photos in scored.items()
            for name, part in zip(
                key_names(model, shard_id, run_id), (photos.keys, photos.retryable), strict=True
            )
            if (content := encode_keys(part))
        }
        record = ShardRecord({path: len(content) for path, content in rows.items()}, stats)
        self.writer.write(
            {
                **{f"{_SCORES}/{path}": content for path, content in rows.items()},
                **keys,
                record_name(shard_id, run_id): record.to_json(),
            }
        )
        return record

    def _split_by_partition(self, table: pa.Table, date: str) -> Iterator[tuple[str, pa.Table]]:
        """Yield the directory and the rows of each partition."""
        if self.partition_by == "label":
            import pyarrow.compute as pc

            for label in sorted(set(table["label"].to_pylist()), key=lambda label: (label is None, label)):
                has_label = pc.is_null(table["label"]) if label is None else pc.equal(table["label"], label)
                name = _NO_LABEL if label is None else quote(label, safe="")
                # Readers take the column from the directory's name, and fail if the file has it too.
                yield f"label={name}/", table.filter(has_label).drop_columns(["label"])
        else:
            yield (f"date={date}/" if self.partition_by == "date" else ""), table

    def remove_shards(self, finished: Iterable[tuple[str, str]], models: Sequence[str]) -> None:
        """Delete the records and the keys of finished shards; the next `sweep` deletes their rows.

        Args:
            finished: id of each shard, and of the run that finished it.
            models: digests of the models whose keys are deleted.
        """
        self.writer.publish(
            removes=[
                name
                for shard in finished
                for name in (record_name(*shard), *(key for m in models for key in key_names(m, *shard)))
            ]
        )

    def list_file_sizes(self) -> dict[str, int]:
        """Return the size in bytes of every file below `scores/`, by path."""
        return dict(files.walk_files(self.scores_directory))

    def sweep(self, found: Iterable[str], keep: Callable[[str, str], bool]) -> None:
        """Delete rows that belong to no finished shard, and temporary files.

        Args:
            found: paths below `scores/`.
            keep: called with a shard id and a path; returns whether the file stays.
        """
        removes = [
            f"{_SCORES}/{path}"
            for path in found
            if (match := _SCORES_FILE.fullmatch(path.rpartition("/")[2])) and not keep(match[1], path)
        ]
        if not files.is_remote(self.directory):  # only local writers use temporary names
            names = (path for path, _ in files.walk_files(self.directory) if not path.startswith(_LEASE))
            removes += [path for path in names if path.rpartition("/")[2].startswith(files.TEMPORARY_PREFIX)]
        self.writer.publish(removes=removes)

    def reset(self) -> None:
        """Delete all records and keys before a takeover; the next `sweep` deletes the rows.

        Until `claim` the directory belongs to no job. So if this run is interrupted, only a run with
        --overwrite can follow.
        """
        removes = [
            f"{WORK_DIRECTORY}/{name}/{path}"
            for name in ("shards", "keys")  # records first: keys without a record are not valid
            for path, _ in files.walk_files(files.join(self.work_directory, name))
        ]
        self.writer.publish({_IDENTITY: json.dumps({"overwritten": True}).encode()}, removes=removes)

    def load_scored_index(self, model: str, run_id: str) -> ScoredIndex:
        """Return the index of the photos that a model has scored, from the point of view of a run.

        Args:
            model: digest of the model.
            run_id: id of the run. For it alone, photos that it could not read are scored too, so that
                a retry of the run does not try them again.
        """
        records = self.list_records()

        def is_permanent(name: str) -> bool:
            shard_id, _, finished_by = name.partition(".")
            return finished_by in records.get(shard_id, ())

        def is_valid(name: str) -> bool:
            return is_permanent(name) or (
                name.endswith(f".{run_id}{UNREADABLE}") and is_permanent(name.removesuffix(UNREADABLE))
            )

        return ScoredIndex(self.key_directory(model), is_valid, is_permanent)

    def find_keys(self, uris: NDArray[np.bytes_]) -> NDArray[np.bytes_]:
        """Return the sorted keys (dtype S24) of photos with these uri hashes, of all models.

        Photos that the next run would try again are left out.

        Args:
            uris: uri hashes as returned by `scored_index.hash_uris`, dtype S16.
        """
        import numpy as np

        models = files.list_names(files.join(self.work_directory, "keys")) if len(uris) else []
        keys = [self.load_scored_index(model, "").find_keys(uris) for model in models]
        return np.unique(np.concatenate([uris[:0].astype("S24"), *keys]))


def read_json(uri: str) -> Any:
    """Return the content of a JSON file; None if it is missing or invalid."""
    try:
        return json.loads(files.read(uri))
    except (OSError, ValueError):
        return None


def _describe_difference(found: Mapping[str, Any] | None, wanted: Mapping[str, Any]) -> str:
    found = found or {}
    return "; ".join(
        f"{key} was {found.get(key)!r}, now {value!r}"
        for key, value in wanted.items()
        if found.get(key) != value
    )
