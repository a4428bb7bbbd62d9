"""The finished shards that a run finds, and the publication of those that it leaves."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, TypeVar

from batch.monitoring.stats import Stats
from batch.output.attempt import Attempt, StagedShard
from batch.output.dataset import Output
from batch.output.shard_record import WORK_DIRECTORY, PublishedShard, ShardRecord
from batch.shards.scored_index import ScoredIndex
from serving.errors import OutputError
from serving.process import map_ahead
from serving.storage import files

_log = logging.getLogger(__name__)

_THREADS = 32
"""Files that are read at a time; on object stores each takes some ten milliseconds."""

_CHUNK = 256
"""Shards whose statistics are in memory at a time."""

T = TypeVar("T")


@dataclass(frozen=True)
class FinishedShard:
    """A shard that an earlier run or attempt finished.

    Attributes:
        run_id: id of the run.
        stats: its statistics.
    """

    run_id: str
    stats: Stats


@dataclass
class Publication:
    """The shards of a run: those that it found, and those that its workers finish.

    It changes nothing until `publish`. Its memory grows with the number of shards.

    Args:
        output: the output, with its lease.
        append: whether all published rows stay. Then published shards are not found by `find`, since
            their photos are not part of the run.
        replace_all: whether the published rows are of another job, and are replaced.

    Attributes:
        attempt: where the workers leave what they finish.
    """

    output: Output
    append: bool = False
    replace_all: bool = False
    _seen: set[str] = field(default_factory=set)
    _kept: dict[str, int] = field(default_factory=dict)  # sizes of the published files that stay, by path
    _torn: list[PublishedShard] = field(default_factory=list)
    _shards: list[StagedShard] = field(default_factory=list)  # without statistics
    _indexes: list[ScoredIndex] = field(default_factory=list)
    _rows: int = 0

    def __post_init__(self) -> None:
        output = self.output
        self.attempt = output.begin_attempt()
        # Only the holder of the lease publishes, so nothing changes between these two listings.
        self.published = {} if self.replace_all else output.list_records()
        self._sizes = {} if self.append or self.replace_all else output.list_row_files()
        self._adoptable: dict[str, Attempt] = {}
        for earlier in output.list_attempts():
            for shard in _map_in_threads(
                self._read_intact, ((earlier, id_) for id_ in earlier.list_finished())
            ):
                if shard:
                    self._adoptable[shard.id] = earlier

    def load_scored_indexes(self, models: Iterable[str], run_id: str) -> list[ScoredIndex]:
        """Return the index of what each model has scored; merged files are published with the rows.

        Args:
            models: digests of the models.
            run_id: id of the run.
        """
        self._indexes = [self.output.load_scored_index(model, run_id) for model in models]
        for index in self._indexes:
            index.merge_files(self.output.writer.staging)
        return self._indexes

    def find(self, shard_id: str) -> FinishedShard | None:
        """Return a shard of this run that is finished, with all of its files intact, and count it in."""
        self._seen.add(shard_id)
        for shard in () if self.append else self.published.get(shard_id, ()):
            record = self.output.read_record(shard)
            if record and all(self._sizes.get(path) == size for path, size in record.files.items()):
                self._kept |= record.files
                self._rows += record.stats.rows
                return FinishedShard(shard.run_id, record.stats)
            _log.warning("The files of shard %s are torn or missing; its photos are scored again.", shard_id)
            self._torn.append(shard)
        if shard_id in self._adoptable and (staged := self._adoptable[shard_id].read(shard_id)):
            self._add(staged)
            return FinishedShard(staged.run_id, staged.record.stats)
        return None

    def collect(self, shard_ids: Iterable[str]) -> Iterator[StagedShard | None]:
        """Yield the shards that the workers of this attempt finished, and add them; None for the others.

        Raises:
            OutputError: a file of a finished shard is missing or torn.
        """
        for shard in _map_in_threads(
            self._read_checked, ((self.attempt, shard_id) for shard_id in shard_ids)
        ):
            if shard:
                self._add(shard)
            yield shard

    def _add(self, shard: StagedShard) -> None:
        self._seen.add(shard.id)
        light = Stats(rows=shard.record.stats.rows)  # the rest would take much memory
        self._shards.append(replace(shard, record=ShardRecord(shard.record.files, light)))

    def _read_checked(self, attempt: Attempt, shard_id: str) -> StagedShard | None:
        shard = attempt.read(shard_id)
        if shard and (fault := self._find_fault(shard)):
            raise OutputError(
                f"The shard {shard_id} was finished, but {fault}.",
                remedy="Check the storage, and run the same command again; the other shards are kept.",
            )
        return shard

    def _read_intact(self, attempt: Attempt, shard_id: str) -> StagedShard | None:
        shard = attempt.read(shard_id)
        return None if shard is None or self._find_fault(shard) else shard

    def _find_fault(self, shard: StagedShard) -> str:
        """Return what is wrong with the sizes or the rows of a shard's staged files; "" for nothing."""
        rows = 0
        for path, name in shard.row_files.items():
            try:
                size, number = _read_size_and_rows(files.join(self.output.directory, name))
            except (OSError, ValueError) as error:  # Arrow's errors are ValueErrors
                return f"{name} cannot be read: {error}"
            if size != shard.record.files.get(path):
                return f"{name} has {size} bytes, not {shard.record.files.get(path)}"
            rows += number
        return "" if rows == shard.record.stats.rows else f"it has {rows} rows, not {shard.record.stats.rows}"

    def publish(
        self, identity: Mapping[str, Any], columns: Sequence[Sequence[str]], models: Iterable[str]
    ) -> None:
        """Make the rows of this run the rows of the output, and verify them.

        Args:
            identity: identity of the job, as in `Output.check`.
            columns: name and type of each pass-through column.
            models: digests of the models.

        Raises:
            LeaseLost: another run took over; what it published is unchanged.
            OutputError: a file cannot be written, or the rows are not those that were published.
        """
        output, published = self.output, self.published
        if self.replace_all:
            output.reset()
        output.claim(identity, columns, append=self.append)
        if self.append:
            output.sweep(lambda shard, _: shard in published)
            for index in self._indexes:
                output.writer.publish(moves=index.merged, removes=index.replaced, unordered=True)
        else:
            outdated = [shard for id_ in published.keys() - self._seen for shard in published[id_]]
            output.remove_shards(outdated + self._torn, list(models))
            output.sweep(lambda _, path: path in self._kept)
        output.publish_shards(self._shards)
        self._verify()

    def _verify(self) -> None:
        """Check that the dataset has the rows of this run once, and without `append` no others."""
        found = self.output.list_row_files()
        new = {path: size for shard in self._shards for path, size in shard.record.files.items()}
        wanted = self._kept | new
        names = wanted.keys() if self.append else wanted.keys() | found.keys()
        wrong = sorted(path for path in names if found.get(path) != wanted.get(path))
        fault = f"{wrong[0]} is missing, torn or not of this run" if wrong else self._find_missing()
        if not fault:
            uris = ((files.join(self.output.scores_directory, path),) for path in wanted)
            rows = sum(number for _, number in _map_in_threads(_read_size_and_rows, uris))
            expected = self._rows + sum(shard.record.stats.rows for shard in self._shards)
            fault = "" if rows == expected else f"they have {rows} rows, not {expected}"
        if fault:
            raise OutputError(
                f"The scores in {self.output.scores_directory} are not what this run wrote: {fault}.",
                remedy="Remove what other programs wrote there, and run the same command again.",
            )

    def _find_missing(self) -> str:
        """Return which record or file of keys is missing, without which a later run scores photos twice."""
        moves = chain(*(shard.moves for shard in self._shards), *(index.merged for index in self._indexes))
        names: dict[str, set[str]] = {}
        for _, name in moves:
            directory, _, base = name.rpartition("/")
            if name.startswith(WORK_DIRECTORY):
                names.setdefault(directory, set()).add(base)
        for directory, wanted in names.items():
            listed = files.list_names(files.join(self.output.directory, directory))
            if missing := wanted.difference(listed):
                return f"{directory}/{min(missing)} is missing"
        return ""


def _read_size_and_rows(uri: str) -> tuple[int, int]:
    """Return the size of a Parquet file in bytes, and the number of rows in its footer.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is torn.
    """
    import pyarrow.parquet as pq

    with files.open_file(uri) as file:
        rows = pq.read_metadata(file).num_rows
        return file.seek(0, 2), rows


def _map_in_threads(function: Callable[..., T], arguments: Iterable[tuple[Any, ...]]) -> Iterator[T]:
    """Call a function with each tuple of arguments, some at a time, and yield the results in order."""
    return map_ahead(lambda given: function(*given), arguments, _THREADS, _CHUNK)
