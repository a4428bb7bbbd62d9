"""One scoring run against what its output holds: what is open, what may go, and whether all is there."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from batch.inputs import listing
from batch.inputs.passthrough import PassThroughColumns
from batch.inputs.sources import Source
from batch.monitoring.stats import Progress, Stats
from batch.output.dataset import Output
from batch.shards import shard as shards
from batch.shards.partition import WHOLE_INPUT, Partition
from batch.shards.scored_index import exclude_scored
from batch.shards.shard import Entry, PlannedShard, PlanWriter, RawShard
from serving.errors import OutputError

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """The open shards.

    Attributes:
        path: of the list.
        shards: how many.
        photos: in all of them.
    """

    path: str
    shards: int
    photos: int


@dataclass
class RunPlanner:
    """What a run does with its output, from planning to the last check; nothing of it grows with the photos.

    Attributes:
        output: of the rows.
        run_id: of the run.
        source: of the photos.
        models: name, version and digest of each model.
        only_new: keep all rows that are there, and add those of photos that no run has scored.
        overwrite: take the output over from another job.
        share: of the photos; the others are not looked at.
        total: figures of the shards that are finished: of all of the input, or with `only_new` of
            those that this run id has made.
        of_id: of these, figures of the shards that this run id has made.
        skipped: how many shards were finished before.
        lines: of the input.
        known: photos that were left out since a run has scored them.
    """

    output: Output
    run_id: str
    source: Source
    models: Sequence[Mapping[str, Any]]
    only_new: bool = False
    overwrite: bool = False
    share: Partition = WHOLE_INPUT
    total: Stats = field(default_factory=Stats)
    of_id: Stats = field(default_factory=Stats)
    skipped: int = 0
    lines: int = 0
    known: int = 0
    _taken_over: bool = False
    _torn: list[tuple[str, str]] = field(default_factory=list)

    @property
    def identity(self) -> dict[str, Any]:
        """What an output is of: where the photos come from, the models by their content, the layout."""
        return {
            "photos": self.source.address,
            "models": list(self.models),
            "partition_by": self.output.partition_by,
            **({"share": str(self.share)} if self.share.of > 1 else {}),
        }

    def check(self) -> None:
        """Make sure that the output may be used; nothing is changed.

        Raises:
            OutputError: it holds another job or something else.
        """
        self._taken_over = self.output.check(self.identity, append=self.only_new, overwrite=self.overwrite)

    def plan(self, shard_size: int, progress: Callable[[Progress], None] | None = None) -> Plan:
        """Write what is open, and remove what no later reader may see.

        Nothing but the plan is written before the whole input was read.

        Raises:
            InputError: there are no photos, or a line of a manifest cannot be used.
            OutputError: the output cannot be written, or its rows have other columns.
        """
        shards.remove_plan(self.output.plan_directory)
        finished = {} if self._taken_over else self.output.list_records()
        earlier = self.output.read_columns() if self.only_new else None
        self.source.columns = PassThroughColumns(dict(earlier or []))
        sizes = {} if self.only_new else self.output.list_file_sizes()
        kept: set[str] = set()  # the paths of rows that stay
        seen: set[str] = set()  # the ids of shards
        photos_open = 0
        with PlanWriter(self.output.plan_directory) as writer:
            entries, columns = self._entries(progress), self.source.columns
            for piece in shards.plan_shards(entries, shard_size, self._rows_depend_on, columns):
                seen.add(piece.id)
                if (paths := self._finished(piece, finished.get(piece.id, ()), sizes)) is not None:
                    kept.update(paths)
                    continue
                writer.add(piece.to_shard(columns), len(self.models))
                photos_open += len(piece.entries)
        if not self.lines:
            raise listing.no_photos_error(self.source.address)
        self._check_columns(earlier)
        if self._taken_over:
            self.output.reset()
        self.output.claim(self.identity, self.source.columns.describe(), append=self.only_new)
        if self.only_new:
            self._count_own(finished)
            self.output.sweep(self.output.list_file_sizes(), lambda shard, _: shard in finished)
        else:
            self._remove_others(seen, finished)
            self.output.sweep(sizes, lambda _, path: path in kept)
        return Plan(writer.path, writer.shards, photos_open)

    @property
    def _rows_depend_on(self) -> dict[str, Any]:
        return {"models": list(self.models), "partition_by": self.output.partition_by}

    def _entries(self, progress: Callable[[Progress], None] | None) -> Iterable[Entry]:
        def read(lines: int) -> None:
            self.lines = lines
            if progress:
                progress(Progress(0, lines, 0, listing=True))

        mine = (line for line in self.source.iter_lines() if self.share.contains(line[0].uri))
        entries = shards.sort_entries(mine, read)
        if not self.only_new:
            return entries
        known = [self.output.scored_index(model["digest"], self.run_id) for model in self.models]
        return exclude_scored(entries, known, self._leave_out)

    def _leave_out(self, photos: int) -> None:
        self.known += photos

    def _finished(self, piece: RawShard, runs: Iterable[str], sizes: Mapping[str, int]) -> list[str] | None:
        """The paths of a shard that is finished, which is counted; None where it is open."""
        if self.only_new:
            return None  # what is finished has no open photos
        for run_id in runs:
            record = self.output.read_record(piece.id, run_id)
            if record and all(sizes.get(path) == size for path, size in record.files.items()):
                self._count(record.stats, run_id)
                self.skipped += 1
                return list(record.files)
            _log.warning("The rows of shard %s are torn or gone; its photos are scored again.", piece.id)
            self._torn.append((piece.id, run_id))
        return None

    def _count(self, stats: Stats, run_id: str) -> None:
        self.total += stats
        if run_id == self.run_id:
            self.of_id += stats

    def _count_own(self, finished: Mapping[str, Iterable[str]]) -> None:
        """Count what this run id made before it was cut off."""
        for shard_id, runs in finished.items():
            if self.run_id in runs and (record := self.output.read_record(shard_id, self.run_id)):
                self._count(record.stats, self.run_id)
                self.skipped += 1

    def _check_columns(self, earlier: Sequence[Sequence[str]] | None) -> None:
        now = self.source.columns.describe()
        if earlier is not None and sorted(map(tuple, earlier)) != sorted(map(tuple, now)):
            raise OutputError(
                f"The rows in {self.output.directory} have the columns {_listed(earlier)} of their manifests,"
                f" and these photos come with {_listed(now)}.",
                remedy="Give the same columns with values of the same types, or another --output.",
            )

    def _remove_others(self, seen: Iterable[str], finished: Mapping[str, Iterable[str]]) -> None:
        """Forget shards that are not of this input any more, and torn ones."""
        models = [model["digest"] for model in self.models]
        gone = [(shard, run) for shard, runs in finished.items() if shard not in seen for run in runs]
        for shard_id, run_id in gone + self._torn:
            self.output.remove_shard(shard_id, run_id, models)

    def finish(self, plan: Plan) -> Stats:
        """Hold what is there against the plan.

        Returns:
            The figures of the shards of the plan, which are now in `total` too.

        Raises:
            OutputError: a shard has no record, or not a row for each of its photos.
        """
        worked = Stats()
        kept: dict[str, set[str]] = {}
        for planned in shards.read_plan(plan.path):
            record = self.output.read_record(planned.id, self.run_id)
            if record is None or not complete(planned, record.stats) or record.stats.rows != planned.rows:
                raise incomplete(planned)
            worked += record.stats
            if self.output.partition_by == "label":
                kept[planned.id] = set(record.files)
        # A first attempt at a shard may have seen other labels than the one that was finished.
        if kept:
            self.output.sweep(
                self.output.list_file_sizes(), lambda shard, path: shard not in kept or path in kept[shard]
            )
        self._count(worked, self.run_id)
        return worked


def complete(planned: PlannedShard, stats: Stats) -> bool:
    """Whether figures are of as many photos as the plan says."""
    return planned.photos == stats.photos == stats.statuses.total()


def incomplete(planned: PlannedShard) -> OutputError:
    """The error that says so."""
    return OutputError(
        f"The shard {planned.id} is not complete although the Beam job ended.",
        remedy="Run the same command again: what is finished is kept.",
    )


def _listed(columns: Sequence[Sequence[str]]) -> str:
    return ", ".join(f"{name} ({kind})" for name, kind in columns) or "none"
