"""Planning of a scoring run: compare the input with the output, plan the open shards, verify completeness."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, tee
from typing import Any

from batch.inputs import listing
from batch.inputs.passthrough import PassThroughColumns
from batch.inputs.sources import Source
from batch.monitoring.stats import Progress, Stats
from batch.output.dataset import Output
from batch.output.finished import Publication
from batch.output.run_record import Summary
from batch.output.schema import format_columns
from batch.shards import shard as shards
from batch.shards.partition import WHOLE_INPUT, Partition
from batch.shards.scored_index import exclude_scored
from batch.shards.shard import Entry, PlannedShard, PlanWriter
from serving.errors import OutputError
from serving.text import redact


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
        summary: what was found and done so far.
        publication: shards of this run, since `plan`.
    """

    output: Output
    run_id: str
    source: Source
    models: Sequence[Mapping[str, Any]]
    only_new: bool = False
    overwrite: bool = False
    share: Partition = WHOLE_INPUT
    summary: Summary = field(init=False)
    publication: Publication = field(init=False)
    _taken_over: bool = False

    def __post_init__(self) -> None:
        self.summary = Summary(self.output.directory, run_id=self.run_id)

    @property
    def identity(self) -> dict[str, Any]:
        """Identity of the output's content: source of the photos, models by content, partitioning."""
        return {
            "photos": redact(self.source.address),
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
        """Write the plan of open shards; the rows of the output stay as they are until `finish`.

        Raises:
            InputError: there are no photos, or a line of a manifest cannot be used.
            OutputError: the output cannot be written, or its existing rows have other columns.
        """
        self.publication = Publication(self.output, append=self.only_new, replace_all=self._taken_over)
        earlier = self.output.read_columns() if self.only_new else None
        self.source.columns = PassThroughColumns(dict(earlier or []))
        open_photos = 0
        with PlanWriter(self.publication.attempt.plan_directory) as writer:
            entries, columns = self._read_entries(progress), self.source.columns
            # A shard's id is a digest of its photos and of all that its rows depend on. So a finished
            # shard of the same id has the very rows that this run would write.
            for raw in shards.plan_shards(entries, shard_size, self._row_inputs, columns):
                if found := self.publication.find(raw.id):
                    self.summary.add_skipped(found.stats, found.run_id)
                    continue
                writer.add(raw.to_shard(columns), len(self.models))
                open_photos += len(raw.entries)
        if not self.summary.lines:
            raise listing.no_photos_error(self.source.address)
        self._check_columns(earlier)
        if self.only_new:
            self._count_previous_attempt()
        return Plan(writer.path, writer.shards, open_photos)

    @property
    def _row_inputs(self) -> dict[str, Any]:
        """Everything beside the photos that rows depend on."""
        return {"models": list(self.models), "partition_by": self.output.partition_by}

    def _read_entries(self, progress: Callable[[Progress], None] | None) -> Iterable[Entry]:
        """Read the input: entries of this partition sorted by hash, with `only_new` without scored photos."""

        def count_lines(lines: int) -> None:
            self.summary.lines = lines
            if progress:
                progress(Progress(0, lines, 0, listing=True))

        own = (line for line in self.source.iter_lines() if self.share.contains(line[0].uri))
        entries = shards.sort_entries(own, count_lines)
        if not self.only_new:
            return entries
        digests = [model["digest"] for model in self.models]
        scored = self.publication.load_scored_indexes(digests, self.run_id)
        return exclude_scored(entries, scored, self._count_known)

    def _count_known(self, photos: int) -> None:
        self.summary.known += photos

    def _count_previous_attempt(self) -> None:
        """Count the shards that a run of the same id published."""
        for shard in chain.from_iterable(self.publication.published.values()):
            if shard.run_id == self.run_id and (record := self.output.read_record(shard)):
                self.summary.add_skipped(record.stats, self.run_id)

    def _check_columns(self, earlier: Sequence[Sequence[str]] | None) -> None:
        now = self.source.columns.describe()
        if earlier is not None and sorted(map(tuple, earlier)) != sorted(map(tuple, now)):
            raise OutputError(
                f"The rows in {self.output.directory} have the manifest columns {format_columns(earlier)},"
                f" but these photos have {format_columns(now)}.",
                remedy="Give a manifest with the same columns and types, or another --output.",
            )

    def finish(self, plan: Plan) -> None:
        """Verify that every shard of the plan is complete, and make the rows of this run those of the output.

        Raises:
            LeaseLost: another run took over; what it published is unchanged.
            OutputError: a shard is incomplete, or a file cannot be written.
        """
        worked = Stats()
        all_planned, ids = tee(shards.read_plan(plan.path))
        finished = self.publication.collect(planned.id for planned in ids)
        for planned, shard in zip(all_planned, finished, strict=True):
            stats = shard.record.stats if shard else Stats()
            if not is_complete(planned, stats) or stats.rows != planned.rows:
                raise incomplete_error(planned)
            worked += stats
        digests = [model["digest"] for model in self.models]
        self.publication.publish(self.identity, self.source.columns.describe(), digests)
        self.summary.add_worked(worked, plan.shards)


def is_complete(planned: PlannedShard, stats: Stats) -> bool:
    """Return whether statistics cover as many photos as the plan."""
    return planned.photos == stats.photos == stats.statuses.total()


def incomplete_error(planned: PlannedShard) -> OutputError:
    """Return the error for a shard that is incomplete."""
    return OutputError(
        f"The shard {planned.id} is incomplete although the Beam job has ended.",
        remedy="Run the same command again; finished shards are kept.",
    )
