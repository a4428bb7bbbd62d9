"""Attempts at a run: where workers leave finished shards, outside the dataset, until they are published.

    _hubhead/attempts/<token>/plan/...              open shards (batch.shards.shard)
                              job.json              the engine's job that runs the workers (batch.beam.engine)
                              shards/<shard>.json   record of a finished shard
                              files/<name>/...      its files, with the names that they get in the output

The token is that of the lease under which the attempt began, so no two attempts share a file. Workers may
outlive their attempt, since an engine goes on with a job whose driver has ended. All that they can do then is
to add to the directory of their own attempt: only the holder of the lease moves files into the dataset. A
record is created once, after its files, and neither changes afterwards. So a later attempt adopts finished
shards, whatever is still running.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote

from batch.embeddings import to_parquet
from batch.monitoring.json_record import JsonRecord
from batch.monitoring.stats import Stats
from batch.output.shard_record import WORK_DIRECTORY, PublishedShard, ScoredKeys, ShardRecord
from batch.shards.scored_index import encode_keys
from serving.errors import InputError
from serving.storage import files
from serving.storage.lease import Lease, Move

if TYPE_CHECKING:
    import pyarrow as pa

ATTEMPTS = f"{WORK_DIRECTORY}/attempts"
"""Name of the directory of all attempts, relative to the output."""

SCORES = "scores"
"""Name of the directory of the rows, relative to the output."""

_NO_LABEL = "__HIVE_DEFAULT_PARTITION__"  # Hive's name for null, which Parquet readers know

_NAME_BYTES = 255
"""Longest name of a directory (NAME_MAX of Linux; the same on macOS and Windows)."""


@dataclass(frozen=True)
class StagedShard(JsonRecord):
    """A finished shard that is not published yet.

    Attributes:
        id: id of the shard.
        run_id: id of the run that it belongs to.
        record: its record.
        moves: names of its files, and the names that they get; relative to the output.
    """

    id: str
    run_id: str
    record: ShardRecord
    moves: Sequence[Move]

    @property
    def row_files(self) -> dict[str, str]:
        """Names of its staged files of rows, relative to the output, by path below `scores/`."""
        prefix = f"{SCORES}/"
        return {to.removeprefix(prefix): name for name, to in self.moves if to.startswith(prefix)}


@dataclass(frozen=True)
class Attempt:
    """One attempt at a run. Beam pickles it for every worker.

    Attributes:
        root: path or address of the output.
        token: token of the lease under which it began.
        partition_by: one of batch.output.dataset.PARTITIONS; "" for no partitions.
        lease: lease of the run, by which workers notice that another run took over; None if there is none.
    """

    root: str
    token: str
    partition_by: str = ""
    lease: Lease | None = None

    @property
    def directory(self) -> str:
        """Address of its directory."""
        return files.join(self.root, ATTEMPTS, self.token)

    @property
    def plan_directory(self) -> str:
        """Address of the directory of its plan."""
        return files.join(self.directory, "plan")

    @property
    def job_file(self) -> str:
        """Address of the file that names the job of the engine."""
        return files.join(self.directory, "job.json")

    def check(self) -> None:
        """Check that no other run has taken the output over.

        Raises:
            LeaseLost: another run has.
        """
        if self.lease:
            self.lease.check()

    def commit(
        self,
        shard_id: str,
        run_id: str,
        table: pa.Table,
        stats: Stats,
        scored: Mapping[str, ScoredKeys],
        *,
        date: str,
    ) -> StagedShard:
        """Write a shard's rows and keys, and finally its record.

        Args:
            shard_id: id of the shard.
            run_id: id of the run.
            table: rows of the shard.
            stats: statistics of the shard.
            scored: keys of the photos that the rows are about, by the digest of the model.
            date: day of the run, such as 2026-05-31.

        Returns:
            The finished shard; that of another worker if it was faster with the same shard.

        Raises:
            LeaseLost: another run took over.
            OutputError: a file cannot be written.
        """
        rows = {
            f"{directory}{SCORES}-{shard_id}.{self.token}.parquet": to_parquet(part, compression="zstd")
            for directory, part in _split_by_partition(table, self.partition_by, date)
        }
        names = PublishedShard(shard_id, run_id, self.token)
        keys = {
            name: content
            for model, photos in scored.items()
            for name, part in zip(names.keys(model), (photos.keys, photos.retryable), strict=True)
            if (content := encode_keys(part))
        }
        record = ShardRecord({path: len(content) for path, content in rows.items()}, stats)
        contents = {f"{SCORES}/{path}": content for path, content in rows.items()} | keys
        contents[names.record] = record.encode()
        # Two workers may process one shard: their files have different names, and one record wins.
        staged = files.join(ATTEMPTS, self.token, "files", secrets.token_hex(8))
        moves = [(files.join(staged, name), name) for name in contents]
        self.check()
        for (name, _), content in zip(moves, contents.values(), strict=True):
            files.write(files.join(self.root, name), content)
        shard = StagedShard(shard_id, run_id, record, moves)
        if not files.create_if_absent(self._record_file(shard_id), shard.encode()):
            return self.read(shard_id) or shard
        return shard

    def list_finished(self) -> set[str]:
        """Return the ids of the finished shards."""
        names = files.list_names(files.join(self.directory, "shards"))
        return {name.removesuffix(".json") for name in names if name.endswith(".json")}

    def read(self, shard_id: str) -> StagedShard | None:
        """Return a finished shard; None if it is not finished or its record is damaged."""
        return StagedShard.read(self._record_file(shard_id))

    def _record_file(self, shard_id: str) -> str:
        return files.join(self.directory, "shards", f"{shard_id}.json")


def _split_by_partition(table: pa.Table, partition_by: str, date: str) -> Iterator[tuple[str, pa.Table]]:
    """Yield the directory and the rows of each partition."""
    if partition_by == "label":
        import pyarrow.compute as pc

        for label in sorted(set(table["label"].to_pylist()), key=lambda label: (label is None, label)):
            has_label = pc.is_null(table["label"]) if label is None else pc.equal(table["label"], label)
            # Readers take the column from the directory's name, and fail if the file has it too.
            yield f"{_name_partition(label)}/", table.filter(has_label).drop_columns(["label"])
    else:
        yield (f"date={date}/" if partition_by == "date" else ""), table


def _name_partition(label: str | None) -> str:
    """Return the name of the directory of a label's rows, in Hive's layout; None for rows without a label."""
    return f"label={_NO_LABEL if label is None else quote(label, safe='')}"


def check_partitions(partition_by: str, labels: Iterable[str]) -> None:
    """Check that the rows of each label can be written, before the work is done.

    Args:
        partition_by: one of batch.output.dataset.PARTITIONS; "" for no partitions.
        labels: labels of the models.

    Raises:
        InputError: file systems do not allow the name of a label's directory, or readers take it for another.
    """
    for label in labels if partition_by == "label" else ():
        if label == _NO_LABEL:  # in any encoding: Arrow decodes the name before it compares
            raise InputError(
                f"With --partition_by label the rows of the label {label!r} cannot be told from those "
                "without a label: it is Hive's name for these.",
                remedy="Rename the label, leave out --partition_by, or partition by date.",
            )
        if len(_name_partition(label)) > _NAME_BYTES:
            raise InputError(
                f"With --partition_by label the directory of the label {label!r} would have a name of "
                f"{len(_name_partition(label))} bytes, and file systems allow {_NAME_BYTES}: letters outside "
                "ASCII take three bytes for each of theirs.",
                remedy="Leave out --partition_by, or partition by date.",
            )
