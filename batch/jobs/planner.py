"""Planning of a scoring run: compare the input with the output, plan the open shards, verify completeness."""

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
    """The open shards of a run.

    Attributes:
        path: file with one planned shard per line.
        shards: number of shards.
        photos: number of photos in them.
    """

    path: str
    shards: int
    photos: int


@dataclass
class RunPlanner:
    """Planner of a run: from checking the output to verifying that all rows are there.

    Its memory grows with the number of shards, not of photos.

    Attributes:
        output: output directory.
        run_id: id of the run.
        source: source of the photos.
        models: name, version and digest of each model.
        only_new: keep all existing rows, and add rows of photos that no run has scored.
        overwrite: replace the scores of another job.
        share: partition of the photos that this run scores.
        total: statistics of all finished shards of the input; with `only_new`, of the shards that were
            made under this run id.
        of_id: statistics of the shards that were made under this run id.
        skipped: number of shards that were finished before.
        lines: number of lines of the input.
        known: number of photos that were left out because a run has scored them.
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
        """Identity of the output's content: source of the photos, models by content, partitioning."""
        return {
            "photos": self.source.address,
            "models": list(self.models),
            "partition_by": self.output.partition_by,
            **({"share": str(self.share)} if self.share.of > 1 else {}),
        }

    def check(self) -> None:
        """Check that the output may be used. Changes no file.

        Raises:
            OutputError: the output has the scores of another job, or other files.
        """
        self._taken_over = self.output.check(self.identity, append=self.only_new, overwrite=self.overwrite)

    def plan(self, shard_size: int, progress: Callable[[Progress], None] | None = None) -> Plan:
        """Write the plan of open shards, and remove rows that are outdated.

        Before the whole input was read, nothing but the plan is written.

        Raises:
            InputError: there are no photos, or a line of a manifest cannot be used.
            OutputError: the output cannot be written, or its existing rows have other columns.
        """
        finished = {} if self._taken_over else self.output.list_records()
        earlier = self.output.read_columns() if self.only_new else None
        self.source.columns = PassThroughColumns(dict(earlier or []))
        sizes = {} if self.only_new else self.output.list_file_sizes()
        kept: set[str] = set()  # paths of row files that stay
        seen: set[str] = set()  # ids of the input's shards
        open_photos = 0
        with PlanWriter(self.output.plan_directory) as writer:
            entries, columns = self._read_entries(progress), self.source.columns
            # A shard's id is a digest of its photos and of all that its rows depend on. So a finished
            # shard of the same id has the very rows that this run would write.
            for raw in shards.plan_shards(entries, shard_size, self._row_inputs, columns):
                seen.add(raw.id)
                if (paths := self._skip_finished(raw, finished.get(raw.id, ()), sizes)) is not None:
                    kept.update(paths)
                    continue
                writer.add(raw.to_shard(columns), len(self.models))
                open_photos += len(raw.entries)
        if not self.lines:
            raise listing.no_photos_error(self.source.address)
        self._check_columns(earlier)
        # From here on the output changes. `reset` comes first: a run that is killed now can only be
        # followed by one that replaces the old scores as well.
        if self._taken_over:
            self.output.reset()
        self.output.claim(self.identity, self.source.columns.describe(), append=self.only_new)
        if self.only_new:
            self._count_previous_attempt(finished)
            self.output.sweep(self.output.list_file_sizes(), lambda shard, _: shard in finished)
        else:
            self._remove_outdated(seen, finished)
            self.output.sweep(sizes, lambda _, path: path in kept)
        return Plan(writer.path, writer.shards, open_photos)

    @property
    def _row_inputs(self) -> dict[str, Any]:
        """Everything beside the photos that rows depend on."""
        return {"models": list(self.models), "partition_by": self.output.partition_by}

    def _read_entries(self, progress: Callable[[Progress], None] | None) -> Iterable[Entry]:
        """Read the input: entries of this partition sorted by hash, with `only_new` without scored photos."""

        def count_lines(lines: int) -> None:
            self.lines = lines
            if progress:
                progress(Progress(0, lines, 0, listing=True))

        own = (line for line in self.source.iter_lines() if self.share.contains(line[0].uri))
        entries = shards.sort_entries(own, count_lines)
        if not self.only_new:
            return entries
        scored = [self.output.load_scored_index(model["digest"], self.run_id) for model in self.models]
        return exclude_scored(entries, scored, self._count_known)

    def _count_known(self, photos: int) -> None:
        self.known += photos

    def _skip_finished(
        self, raw: RawShard, runs: Iterable[str], sizes: Mapping[str, int]
    ) -> list[str] | None:
        """Count a finished shard and return the paths of its files; return None if the shard is open.

        Args:
            raw: shard of the input.
            runs: ids of the runs that have a record of the shard.
            sizes: size of each existing file of rows. A file of another size than recorded is torn.
        """
        if self.only_new:
            return None  # photos of finished shards were already left out
        for run_id in runs:
            record = self.output.read_record(raw.id, run_id)
            if record and all(sizes.get(path) == size for path, size in record.files.items()):
                self._count(record.stats, run_id)
                self.skipped += 1
                return list(record.files)
            _log.warning("The files of shard %s are torn or missing; its photos are scored again.", raw.id)
            self._torn.append((raw.id, run_id))
        return None

    def _count(self, stats: Stats, run_id: str) -> None:
        self.total += stats
        if run_id == self.run_id:
            self.of_id += stats

    def _count_previous_attempt(self, finished: Mapping[str, Iterable[str]]) -> None:
        """Count the shards that an interrupted run of the same id finished."""
        for shard_id, runs in finished.items():
            if self.run_id in runs and (record := self.output.read_record(shard_id, self.run_id)):
                self._count(record.stats, self.run_id)
                self.skipped += 1

    def _check_columns(self, earlier: Sequence[Sequence[str]] | None) -> None:
        now = self.source.columns.describe()
        if earlier is not None and sorted(map(tuple, earlier)) != sorted(map(tuple, now)):
            raise OutputError(
                f"The rows in {self.output.directory} have the manifest columns {_format_columns(earlier)},"
                f" but these photos have {_format_columns(now)}.",
                remedy="Give a manifest with the same columns and types, or another --output.",
            )

    def _remove_outdated(self, seen: Iterable[str], finished: Mapping[str, Iterable[str]]) -> None:
        """Remove the records of shards that are no longer part of the input, and of torn ones."""
        models = [model["digest"] for model in self.models]
        outdated = [(shard, run) for shard, runs in finished.items() if shard not in seen for run in runs]
        self.output.remove_shards(outdated + self._torn, models)

    def finish(self, plan: Plan) -> Stats:
        """Verify that every shard of the plan is complete, and add it to `total`.

        Returns:
            Statistics of the shards of the plan.

        Raises:
            OutputError: a shard has no record, or fewer or more rows than planned.
        """
        worked = Stats()
        kept: dict[str, set[str]] = {}
        for planned in shards.read_plan(plan.path):
            record = self.output.read_record(planned.id, self.run_id)
            if record is None or not is_complete(planned, record.stats) or record.stats.rows != planned.rows:
                raise incomplete_error(planned)
            worked += record.stats
            if self.output.partition_by == "label":
                kept[planned.id] = set(record.files)
        # An attempt that was cut off may have left files of labels that the finished attempt did not write.
        if kept:
            self.output.sweep(
                self.output.list_file_sizes(), lambda shard, path: shard not in kept or path in kept[shard]
            )
        self._count(worked, self.run_id)
        return worked


def is_complete(planned: PlannedShard, stats: Stats) -> bool:
    """Return whether statistics cover as many photos as the plan."""
    return planned.photos == stats.photos == stats.statuses.total()


def incomplete_error(planned: PlannedShard) -> OutputError:
    """Return the error for a shard that is incomplete."""
    return OutputError(
        f"The shard {planned.id} is incomplete although the Beam job has ended.",
        remedy="Run the same command again; finished shards are kept.",
    )


def _format_columns(columns: Sequence[Sequence[str]]) -> str:
    return ", ".join(f"{name} ({kind})" for name, kind in columns) or "none"
