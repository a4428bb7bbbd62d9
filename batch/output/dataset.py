"""Output directory of scoring runs: its files, and the records of finished shards.

    scores/[date=.../|label=.../]scores-<shard>.<token>.parquet   rows of the scores
    run.json, report.html                                         the newest run, once all rows are there
    _hubhead/runs/<run>.json                                      run.json of every run
    _hubhead/shards/<shard>.<run>~<token>.json                    record of a published shard
    _hubhead/keys/...                                             scored photos (batch.shards.scored_index)
    _hubhead/input.json                                           identity of the job
    _hubhead/lease/                                               lease of the present run
    _hubhead/attempts/<token>/...                                 what is not published (batch.output.attempt)

The rows have a directory of their own, because Parquet readers open every file of a directory. Workers write
none of this but the attempts. The run that holds the lease (serving.storage.lease) publishes the shards when
all are finished, each publication as a whole: docs/decisions/0001-attempts.md has the reasons and the cases.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from batch.output.attempt import ATTEMPTS, SCORES, Attempt, StagedShard
from batch.output.shard_record import (
    UNREADABLE,
    WORK_DIRECTORY,
    PublishedShard,
    ShardRecord,
    key_directory,
    run_name,
)
from batch.shards.scored_index import ScoredIndex, sort_distinct
from serving.errors import InputError, OutputError
from serving.storage import files
from serving.storage.address import base_name
from serving.storage.lease import Lease, Move, hold
from serving.text import redact

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

RUN_FILE = "run.json"
REPORT_FILE = "report.html"
PARTITIONS = ("date", "label")
"""Columns by which the rows can be partitioned in Hive's layout: day of the run, or predicted label."""

_LEASE = f"{WORK_DIRECTORY}/lease"
_IDENTITY = f"{WORK_DIRECTORY}/input.json"
_APPENDED, _COLUMNS = "only_new", "columns"
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SCORES_FILE = re.compile(r"scores-([0-9a-f]{32})(?:\.[0-9a-f]+)?\.parquet")  # without a token before 0.3
_MOVES = 2000  # moves of one publication, whose list is a file of some hundred kB
_RECORD_FILE = re.compile(r"([0-9a-f]{32}\..+)\.json")


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
        return files.join(self.directory, SCORES)

    @property
    def work_directory(self) -> str:
        """Directory of the files that runs leave for later runs."""
        return files.join(self.directory, WORK_DIRECTORY)

    @property
    def run_file(self) -> str:
        """Address of run.json, whose presence means that the newest run is complete."""
        return files.join(self.directory, RUN_FILE)

    @property
    def report_file(self) -> str:
        """Address of the HTML report of the newest run."""
        return files.join(self.directory, REPORT_FILE)

    @property
    def own(self) -> tuple[str, ...]:
        """Addresses of everything that runs write here, which are no photos."""
        return self.scores_directory, self.work_directory, self.run_file, self.report_file

    def run_record_file(self, run_id: str) -> str:
        """Return the address of a run's record."""
        return files.join(self.directory, run_name(run_id))

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
        found = redact(self._read_identity())  # earlier versions kept addresses as they are
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

    # --- Attempts -------------------------------------------------------------------------------------

    def begin_attempt(self) -> Attempt:
        """Return the attempt of the present holder of the lease, after deleting the plans of earlier ones.

        Workers of an earlier attempt that are still running end at their next shard.
        """
        assert self.lease, "an attempt needs the lease of the output"
        for earlier in self.list_attempts():
            files.remove_directory(earlier.plan_directory)
        return Attempt(self.directory, self.lease.token, self.partition_by, self.lease)

    def list_attempts(self) -> list[Attempt]:
        """Return the attempts whose directories exist."""
        tokens = files.list_names(files.join(self.directory, ATTEMPTS))
        return [Attempt(self.directory, token, self.partition_by) for token in tokens]

    def remove_attempts(self) -> None:
        """Delete the directories of all attempts.

        Raises:
            LeaseLost: another run took over; nothing is deleted.
        """
        attempts = self.list_attempts()
        # The attempt of a run that takes over after this check is not in the list.
        self.writer.check()
        for attempt in attempts:
            files.remove_directory(attempt.directory)

    # --- Shards ---------------------------------------------------------------------------------------

    def list_records(self) -> dict[str, list[PublishedShard]]:
        """Return the published shards by id; usually there is one of each."""
        found: dict[str, list[PublishedShard]] = {}
        for name in files.list_names(files.join(self.work_directory, "shards")):
            if match := _RECORD_FILE.fullmatch(name):
                shard = PublishedShard.parse(match[1])
                found.setdefault(shard.id, []).append(shard)
        return found

    def read_record(self, shard: PublishedShard) -> ShardRecord | None:
        """Return the record of a shard; None if there is none or it is corrupt."""
        return ShardRecord.read(files.join(self.directory, shard.record))

    def publish_shards(self, shards: Iterable[StagedShard]) -> None:
        """Move the files of finished shards into place, many shards at a time.

        Raises:
            LeaseLost: another run took over; what it published is unchanged.
            OutputError: a file cannot be moved. What was decided is completed by the next run.
        """
        moves: list[Move] = []
        for shard in shards:
            moves += shard.moves
            if len(moves) >= _MOVES:
                self.writer.publish(moves=moves, unordered=True)
                moves = []
        self.writer.publish(moves=moves, unordered=True)

    def remove_shards(self, finished: Iterable[PublishedShard], models: Sequence[str]) -> None:
        """Delete the records and the keys of published shards; the next `sweep` deletes their rows.

        Args:
            finished: the shards.
            models: digests of the models whose keys are deleted.
        """
        self.writer.publish(
            removes=[
                name
                for shard in finished
                for name in (shard.record, *(key for model in models for key in shard.keys(model)))
            ],
            unordered=True,
        )

    def list_row_files(self) -> dict[str, int]:
        """Return the size in bytes of each of hubhead's files below `scores/`, by path."""
        found = files.walk_files(self.scores_directory)
        return {path: size for path, size in found if _SCORES_FILE.fullmatch(base_name(path))}

    def sweep(self, keep: Callable[[str, str], bool]) -> None:
        """Delete rows that belong to no finished shard, and temporary files.

        Args:
            keep: called with a shard id and a path below `scores/`; returns whether the file stays.
        """
        removes = []
        for path in self.list_row_files():
            match = _SCORES_FILE.fullmatch(base_name(path))
            if match and not keep(match[1], path):
                removes.append(f"{SCORES}/{path}")
        if not files.is_remote(self.directory):  # only local writers use temporary names
            ours = (_LEASE, ATTEMPTS)
            names = (path for path, _ in files.walk_files(self.directory) if not path.startswith(ours))
            removes += [path for path in names if base_name(path).startswith(files.TEMPORARY_PREFIX)]
        self.writer.publish(removes=removes, unordered=True)

    def reset(self) -> None:
        """Delete all records and keys before a takeover; the next `sweep` deletes the rows.

        Until `claim` the directory belongs to no job. So if this run is interrupted, only a run with
        --overwrite can follow.
        """
        removes = [
            f"{WORK_DIRECTORY}/{name}/{path}"
            for name in ("shards", "keys")
            for path, _ in files.walk_files(files.join(self.work_directory, name))
        ]
        self.writer.publish(removes=[RUN_FILE, REPORT_FILE])
        marker = json.dumps({"overwritten": True}).encode()
        self.writer.publish({_IDENTITY: marker}, removes=removes, unordered=True)

    def load_scored_index(self, model: str, run_id: str) -> ScoredIndex:
        """Return the index of the photos that a model has scored, from the point of view of a run.

        Args:
            model: digest of the model.
            run_id: id of the run. For it alone, photos that it could not read are scored too, so that
                a retry of the run does not try them again.
        """
        published = {shard.name for shards in self.list_records().values() for shard in shards}

        def is_valid(name: str) -> bool:
            name, marker, _ = name.partition(UNREADABLE)
            return name in published and (not marker or PublishedShard.parse(name).run_id == run_id)

        return ScoredIndex(self.directory, key_directory(model), is_valid, published.__contains__)

    def find_keys(self, uris: NDArray[np.bytes_]) -> NDArray[np.bytes_]:
        """Return the sorted keys (dtype S24) of photos with these uri hashes, of all models.

        Photos that the next run would try again are left out.

        Args:
            uris: uri hashes as returned by `scored_index.hash_uris`, dtype S16.
        """
        import numpy as np

        models = files.list_names(files.join(self.work_directory, "keys")) if len(uris) else []
        keys = [self.load_scored_index(model, "").find_keys(uris) for model in models]
        return sort_distinct(np.concatenate([uris[:0].astype("S24"), *keys]))


def read_json(uri: str) -> Any:
    """Return the content of a JSON file; None if it is missing or invalid."""
    try:
        return json.loads(files.read(uri))
    except (OSError, ValueError):
        return None


def _describe_difference(found: Mapping[str, Any] | None, wanted: Mapping[str, Any]) -> str:
    found = found or {}
    return "; ".join(
        f"{key} was {_format_identity(found.get(key))}, now {_format_identity(value)}"
        for key, value in wanted.items()
        if found.get(key) != value
    )


def _format_identity(value: Any) -> str:
    """Return a part of an identity as text; models by name and version, and by content if that differs."""
    if isinstance(value, list):
        named = (f"{model['name']} version {model['version']} ({model['digest'][:8]})" for model in value)
        return ", ".join(named)
    return str(value) or "none"
