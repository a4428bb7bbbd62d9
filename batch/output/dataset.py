"""The output of scoring runs: where its files stand, and which shards of it are finished.

    scores/[date=.../|label=.../]scores-<shard>.parquet   the rows
    run.json, report.html                                 of the newest run, once all rows are there
    _hubhead/runs/<run>.json                              the same, of every run
    _hubhead/shards/<shard>.<run>.json                    the record of a finished shard
    _hubhead/keys/...                                     what is scored already (batch.shards.scored_index)
    _hubhead/input.json, lock, plan/

The rows stand in a directory of their own because Parquet readers that are given a directory
open every file in it. A shard's record is written after its rows and its keys: it says that
they are there, so files without a record are leftovers of a run that was cut off.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from batch.embeddings import to_parquet
from batch.monitoring.stats import Stats
from batch.shards import scored_index
from serving.errors import InputError, OutputError
from serving.storage import files

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

RUN_FILE = "run.json"
WORK_DIRECTORY = "_hubhead"
"""Parquet readers leave names with a leading underscore out."""

PARTITIONS = ("date", "label")
"""What the rows may be divided by, in Hive's manner: by the day of the run, or by the label."""

_APPENDED, _COLUMNS = "only_new", "columns"
_NO_LABEL = "__HIVE_DEFAULT_PARTITION__"  # Hive's name for null, which every reader knows
_UNREADABLE = "~unreadable"  # no id of a run has the first character
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SCORES_FILE = re.compile(r"scores-([0-9a-f]{32})\.parquet")
_RECORD_FILE = re.compile(r"([0-9a-f]{32})\.(.+)\.json")


def check_run_id(run_id: str) -> str:
    """The id of a run.

    Raises:
        InputError: it cannot be the name of a file.
    """
    if not _RUN_ID.fullmatch(run_id):
        raise InputError(
            f"{run_id!r} is no id of a run.",
            remedy="Use up to 64 letters, digits, dots, dashes and underscores, such as 2026-05-31.",
        )
    return run_id


@dataclass(frozen=True)
class ScoredKeys:
    """The keys (batch.shards.scored_index) of the photos that a shard has rows about.

    Attributes:
        keys: of those whose fate is known.
        open: of those that another run tries again, such as those whose bytes were not to be had.
    """

    keys: Sequence[bytes]
    open: Sequence[bytes] = ()


@dataclass(frozen=True)
class ShardRecord:
    """What is known of a finished shard.

    Attributes:
        files: size in bytes of each of its files, by the path below `scores/`.
        stats: what was counted and timed.
    """

    files: Mapping[str, int]
    stats: Stats

    def to_json(self) -> bytes:
        return json.dumps({"files": dict(self.files), "stats": json.loads(self.stats.to_json())}).encode()

    @classmethod
    def from_json(cls, content: bytes) -> ShardRecord:
        """Read what `to_json` wrote.

        Raises:
            ValueError, TypeError, KeyError, AttributeError: it is something else.
        """
        said = json.loads(content)
        return cls(dict(said["files"]), Stats.from_json(json.dumps(said["stats"])))


@dataclass(frozen=True)
class Output:
    """An output directory, local or remote.

    Attributes:
        directory: absolute path or address.
        partition_by: one of PARTITIONS, or "" for files side by side.
    """

    directory: str
    partition_by: str = ""

    @property
    def scores_directory(self) -> str:
        """The Parquet dataset."""
        return files.join(self.directory, "scores")

    @property
    def work_directory(self) -> str:
        """What is between runs; no reader looks at it."""
        return files.join(self.directory, WORK_DIRECTORY)

    @property
    def plan_directory(self) -> str:
        """The open shards of a run."""
        return files.join(self.work_directory, "plan")

    @property
    def run_file(self) -> str:
        """What says that the newest run is through."""
        return files.join(self.directory, RUN_FILE)

    @property
    def report_file(self) -> str:
        """The newest run for people to look at."""
        return files.join(self.directory, "report.html")

    def run_record(self, run_id: str) -> str:
        """What is kept of a run."""
        return files.join(self.work_directory, "runs", f"{run_id}.json")

    def key_directory(self, model: str) -> str:
        """The keys of what the model of that digest has scored."""
        return files.join(self.work_directory, "keys", model)

    def _record(self, shard_id: str, run_id: str) -> str:
        return files.join(self.work_directory, "shards", f"{shard_id}.{run_id}.json")

    # --- Claiming -------------------------------------------------------------------------------------

    def check(self, identity: Mapping[str, Any], *, append: bool, overwrite: bool) -> bool:
        """Make sure that the directory is empty or holds this very job; nothing is changed.

        Args:
            identity: photos, models and layout of the job, as JSON values.
            append: whether rows are to be added to those that are there, of whatever job.
            overwrite: take it over from another job; files that are not hubhead's stay.

        Returns:
            Whether it holds another job, which is to be taken over.

        Raises:
            OutputError: it holds another job or something else.
        """
        found = self._identity()
        if found is None and set(files.list_names(self.directory)) - {WORK_DIRECTORY}:
            raise OutputError(
                f"{self.directory} is not empty and holds no scores of hubhead.",
                remedy="Give another --output.",
            )
        wanted = {**identity, _APPENDED: append}
        if append and found:
            wanted = {**found, "partition_by": identity["partition_by"]}
        others = found not in (None, wanted)
        if others and not overwrite:
            raise OutputError(
                f"{self.directory} holds other scores: {_difference(found, wanted)}.",
                remedy="Give another --output, or replace them with --overwrite.",
            )
        return others

    def claim(self, identity: Mapping[str, Any], columns: Sequence[Sequence[str]], *, append: bool) -> None:
        """Say what is made here, and that it is not complete.

        Args:
            identity: as in `check`.
            columns: name and type of each that passes through.
            append: as in `check`.

        Raises:
            OutputError: it cannot be written.
        """
        files.check_writable(self.work_directory)
        # Until this run is through, no run.json may say that the rows are complete.
        files.remove(self.run_file)
        files.remove(self.report_file)
        content = {**identity, _APPENDED: append, _COLUMNS: columns}
        files.write(self._identity_file, json.dumps(content, indent=2, ensure_ascii=False).encode())

    def read_columns(self) -> list[list[str]] | None:
        """Name and type of each column that passes through to the rows that are there; None without rows."""
        found = read_json(self._identity_file)
        return found.get(_COLUMNS) if isinstance(found, dict) else None

    @property
    def _identity_file(self) -> str:
        return files.join(self.work_directory, "input.json")

    def _identity(self) -> dict[str, Any] | None:
        found = read_json(self._identity_file)
        if not isinstance(found, dict):
            return None
        return {name: value for name, value in found.items() if name != _COLUMNS}

    # --- Shards ---------------------------------------------------------------------------------------

    def list_records(self) -> dict[str, list[str]]:
        """The ids of the runs that finished each shard, by the id of the shard; mostly it is one."""
        found: dict[str, list[str]] = {}
        for name in files.list_names(files.join(self.work_directory, "shards")):
            if match := _RECORD_FILE.fullmatch(name):
                found.setdefault(match[1], []).append(match[2])
        return found

    def read_record(self, shard_id: str, run_id: str) -> ShardRecord | None:
        """The record of a shard; None where there is none, or no whole one."""
        try:
            return ShardRecord.from_json(files.read(self._record(shard_id, run_id)))
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
        """Write a shard's rows, its keys, and last its record.

        Args:
            shard_id: of the shard.
            run_id: of the run.
            table: its rows.
            stats: what was counted and timed.
            scored: keys of the photos that the rows are about, by the digest of the model.
            date: the day of the run, as 2026-05-31.

        Raises:
            OutputError: a file cannot be written.
        """
        written = {}
        for directory, rows in self._partitions(table, date):
            path = f"{directory}scores-{shard_id}.parquet"
            content = to_parquet(rows, compression="zstd")
            files.write(files.join(self.scores_directory, path), content)
            written[path] = len(content)
        for model, photos in scored.items():
            scored_index.write_keys(self.key_directory(model), f"{shard_id}.{run_id}", photos.keys)
            scored_index.write_keys(
                self.key_directory(model), f"{shard_id}.{run_id}{_UNREADABLE}", photos.open
            )
        record = ShardRecord(written, stats)
        files.write(self._record(shard_id, run_id), record.to_json())
        return record

    def _partitions(self, table: pa.Table, date: str) -> Iterator[tuple[str, pa.Table]]:
        """The rows by the directory that they go to."""
        if self.partition_by == "label":
            import pyarrow.compute as pc

            for label in sorted(set(table["label"].to_pylist()), key=lambda label: (label is None, label)):
                of_label = pc.is_null(table["label"]) if label is None else pc.equal(table["label"], label)
                name = _NO_LABEL if label is None else quote(label, safe="")
                # Readers take the column from the directory's name, and stumble where it is in both.
                yield f"label={name}/", table.filter(of_label).drop_columns(["label"])
        else:
            yield (f"date={date}/" if self.partition_by == "date" else ""), table

    def remove_shard(self, shard_id: str, run_id: str, models: Sequence[str]) -> None:
        """Forget a finished shard; its files go with the next `sweep`."""
        files.remove(self._record(shard_id, run_id))
        for model in models:
            scored_index.remove_keys(self.key_directory(model), f"{shard_id}.{run_id}")
            scored_index.remove_keys(self.key_directory(model), f"{shard_id}.{run_id}{_UNREADABLE}")

    def list_file_sizes(self) -> dict[str, int]:
        """Every file of rows that is there, by its path below `scores/`, and its size."""
        return dict(files.walk_files(self.scores_directory))

    def sweep(self, found: Iterable[str], keep: Callable[[str, str], bool]) -> None:
        """Remove files that no finished shard has.

        Args:
            found: paths below `scores/`.
            keep: told a shard's id and a path, whether the file stays.
        """
        for path in found:
            name = path.rpartition("/")[2]
            match = _SCORES_FILE.fullmatch(name)
            if name.startswith(files.TEMPORARY_PREFIX) or (match and not keep(match[1], path)):
                files.remove(files.join(self.scores_directory, path))
        for top in () if files.is_remote(self.directory) else (self.work_directory, self.directory):
            for path, _ in files.walk_files(top):
                if path.rpartition("/")[2].startswith(files.TEMPORARY_PREFIX):
                    files.remove(files.join(top, path))

    def reset(self) -> None:
        """Forget every finished shard and every key; the rows go with the next `sweep`.

        Until `claim` the output is of no job, so that a run that is cut off here can only be followed
        by one that takes the output over too.
        """
        files.write(self._identity_file, json.dumps({"overwritten": True}).encode())
        for name in ("shards", "keys"):  # in this order: keys without a record do not count
            top = files.join(self.work_directory, name)
            for path, _ in files.walk_files(top):
                files.remove(files.join(top, path))

    def scored_index(self, model: str, run_id: str) -> scored_index.ScoredIndex:
        """What the model of that digest has scored, as a run of that id sees it."""
        records = self.list_records()

        def stays(name: str) -> bool:
            shard_id, _, of_run = name.partition(".")
            return of_run in records.get(shard_id, ())

        def counts(name: str) -> bool:
            return stays(name) or (
                name.endswith(f".{run_id}{_UNREADABLE}") and stays(name.removesuffix(_UNREADABLE))
            )

        return scored_index.ScoredIndex(self.key_directory(model), counts, stays)

    def find_keys(self, uris: NDArray[np.bytes_]) -> NDArray[np.bytes_]:
        """Return the sorted keys (dtype S24) of photos with these hashes, whichever model scored them.

        Without those of photos that another run would try again.
        """
        import numpy as np

        models = files.list_names(files.join(self.work_directory, "keys")) if len(uris) else []
        return np.unique(
            np.concatenate(
                [uris[:0].astype("S24"), *(self.scored_index(m, "").find_keys(uris) for m in models)]
            )
        )


def read_json(uri: str) -> Any:
    """The content, None where there is no file or not a whole one."""
    try:
        return json.loads(files.read(uri))
    except (OSError, ValueError):
        return None


def _difference(found: Mapping[str, Any] | None, wanted: Mapping[str, Any]) -> str:
    found = found or {}
    return "; ".join(
        f"{key} was {found.get(key)}, now {value}" for key, value in wanted.items() if found.get(key) != value
    )
