"""The rescore job: run new heads over stored embeddings. No photo is read.

The photos of the previous scores are processed in groups of files. The rows of the embedding store that a
group needs are read in the order of the store, each once, whatever the order of the photos. The outputs of
the heads are kept as small arrays (`batch.scoring.head_outputs`), from which the group's files are written.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from batch.embeddings import EmbeddingStore
from batch.embeddings.rows import group_by_rows
from batch.jobs import publish
from batch.jobs.score import describe_model, read_models
from batch.jobs.settings import RunSettings
from batch.monitoring import sample_photos
from batch.monitoring.stats import Meter, Progress, Stats
from batch.output import run_diff, run_record
from batch.output.attempt import check_partitions
from batch.output.dataset import Output, check_run_id
from batch.output.finished import Publication
from batch.output.previous_scores import PreviousFile, PreviousScores
from batch.output.run_record import RunRecord, Summary
from batch.output.schema import STATUSES, USABLE, PhotoColumns, build_scores_table, count_decisions
from batch.output.shard_record import WORK_DIRECTORY, ScoredKeys
from batch.scoring import shard
from batch.scoring.embed import START
from batch.scoring.head_outputs import NOT_STORED, HeadOutputs
from batch.scoring.head_runner import HeadRunner, SignatureFunction
from batch.shards import scored_index
from serving.bundle import Bundle
from serving.errors import InputError
from serving.process import cores, map_ahead
from serving.storage import files

if TYPE_CHECKING:
    import pyarrow as pa

GROUP_PHOTOS = 1 << 19
"""Photos per group; their addresses, digests and outputs take some hundred MB."""

MISSING_FILE = "missing.txt"
"""Manifest for `hubhead score` in the output's work directory, of the photos that have no embedding."""


@dataclass(frozen=True, kw_only=True)
class RescoreSettings(RunSettings):
    """Settings of a rescore job.

    Attributes:
        scores: output directory of a previous score or rescore; its photos are scored.
    """

    scores: str


def rescore(settings: RescoreSettings, progress: Callable[[Progress], None] | None = None) -> Summary:
    """Score the photos of previous scores with other heads. Calling it again does only what is unfinished.

    Raises:
        InputError: there are no previous scores, or some photos have no embedding in the store; the new
            scores of the other photos are kept then.
        BundleError: a model cannot be used, or two do not go together.
        OutputBusy: another run is writing to the output.
        LeaseLost: this run was stopped for so long that another one took over.
        OutputError: the output cannot be written, or has other content.
    """
    started, start = datetime.now(UTC), perf_counter()
    publish.check_dependencies(settings)
    run_id = check_run_id(settings.run_id or started.date().isoformat())
    bundles = read_models(settings.model)
    check_partitions(settings.partition_by, (label for model in bundles for label in model.metadata.labels))
    models = [describe_model(model) for model in bundles]
    output = Output(files.absolute(settings.output), settings.partition_by)
    previous = PreviousScores(settings.scores)
    if previous.directory in (output.directory, output.scores_directory):
        raise InputError(
            f"--output {settings.output} is the directory of the previous scores.",
            remedy="Give another --output.",
        )
    identity = {"photos": previous.directory, "models": models, "partition_by": settings.partition_by}
    output.check(identity, append=False, overwrite=settings.overwrite)
    with ThreadPoolExecutor(1) as pool, output.hold_lease() as output:
        replaces = output.check(identity, append=False, overwrite=settings.overwrite)
        metadata = bundles[0].metadata
        previous_output = _find_output(previous)
        store = EmbeddingStore(settings.store_root, metadata.fingerprint, metadata.dimension)
        run = _Rescoring(
            Publication(output, replace_all=replaces),
            Summary(
                output.directory, run_id=run_id, lines=previous.rows, price_per_hour=settings.price_per_hour
            ),
            started,
            bundles,
            [model["digest"] for model in models],
            store,
            pool.submit(_load, bundles, store),
            Meter(previous.rows, progress),
            previous_output.find_keys,
        )
        opened = run.iter_open(previous.iter_files({"models": models, "of": "rescore"}))
        for group in group_by_rows(opened, lambda file: file.table.num_rows, GROUP_PHOTOS):
            run.score_group(group)
        run.check_complete()
        run.publication.publish(identity, [list(column) for column in previous.columns], run.digests)
        summary = replace(run.summary, seconds=perf_counter() - start)
        record = run_record.build_run_record(
            summary, started=started, models=models, settings=settings.to_json()
        )
        before = run_diff.find_previous_run(output, run_id) or _find_newest_run(previous_output)
        publish.publish_run(record, summary, output, settings, before)
        output.remove_attempts()
    return summary


def _load(bundles: Sequence[Bundle], store: EmbeddingStore) -> list[SignatureFunction]:
    """Load the head of each bundle, and the digests of the store, while the previous scores are read."""
    store.refresh()
    return [HeadRunner(bundle).run for bundle in bundles]


def _find_output(previous: PreviousScores) -> Output:
    """Return the output of the previous scores; `--scores` may also be the directory of its rows."""
    top, _, name = previous.directory.rstrip("/").rpartition("/")
    inside = name == "scores" and WORK_DIRECTORY in files.list_names(top)
    return Output(top if inside else previous.directory)


def _find_newest_run(previous: Output) -> RunRecord | None:
    """Return the newest run of the previous scores, with their directory in its id to distinguish it."""
    run = run_diff.find_previous_run(previous, "")
    return run and {**run, "run_id": f"{run['run_id']} of {previous.directory}"}


@dataclass
class _Rescoring:
    """State of a rescore run. Each file of the previous scores becomes one shard of the new ones.

    Attributes:
        publication: shards of this run.
        summary: what was found and done so far.
        digests: digest of each model, in the order of the bundles.
        heads: signature of each bundle, being loaded.
        find_keys: returns the keys (batch.shards.scored_index) that the previous output has of photos, by
            the hashes of their addresses.
    """

    publication: Publication
    summary: Summary
    started: datetime
    bundles: Sequence[Bundle]
    digests: Sequence[str]
    store: EmbeddingStore
    heads: Future[list[SignatureFunction]]
    meter: Meter
    find_keys: Callable[[NDArray[np.bytes_]], NDArray[np.bytes_]]
    _missing_uris: list[str] = field(default_factory=list)

    def iter_open(self, previous_files: Iterable[PreviousFile]) -> Iterator[PreviousFile]:
        """Yield the files that are not rescored yet, and count the finished ones."""
        for file in previous_files:
            if found := self.publication.find(file.id):
                self.summary.add_skipped(found.stats, found.run_id)
                self.meter.add(found.stats.photos, found.stats.rejected, known=True)
            else:
                yield file

    def score_group(self, group: Sequence[PreviousFile]) -> None:
        """Score the photos of some files, and write one shard for each file.

        Raises:
            OutputError: a file cannot be written.
        """
        stats, start = Stats(), perf_counter()
        shas = [file.digests() for file in group]
        before = [file.status_codes() for file in group]
        distinct, places = np.unique(np.concatenate(shas), return_inverse=True)
        uri_hashes = [scored_index.hash_uris(file.table["uri"].to_pylist()) for file in group]
        known = self.find_keys(np.concatenate(uri_hashes))
        outputs = HeadOutputs(distinct, self.bundles)
        with stats.time_stage(START):
            heads = self.heads.result()
        with stats.time_stage("classify"):
            outputs.classify(self.store, heads)
        elapsed = perf_counter() - start - stats.seconds[START]

        def write(number: int) -> tuple[Stats, list[str]]:
            # The stages of the whole group count for its first shard, so that sums over shards are right.
            shard_stats = replace(
                Stats() if number else stats, elapsed=elapsed * len(at[number]) / len(places)
            )
            scored = ScoredKeys(scored_index.select_keys(known, uri_hashes[number]))
            missing = self._write_shard(
                group[number], at[number], before[number], outputs, shard_stats, scored
            )
            return shard_stats, missing

        at = np.split(places, np.cumsum([len(digests) for digests in shas])[:-1])
        written = map_ahead(write, range(len(group)), cores(), cores())
        for file, (shard_stats, missing) in zip(group, written, strict=True):
            if missing:
                self._missing_uris.extend(missing)
                continue
            for _ in self.publication.collect([file.id]):
                self.summary.add_worked(shard_stats)
            self.meter.add(shard_stats.photos, shard_stats.rejected)

    def _write_shard(
        self,
        file: PreviousFile,
        at: NDArray[np.int64],
        before: NDArray[np.int8],
        outputs: HeadOutputs,
        stats: Stats,
        scored: ScoredKeys,
    ) -> list[str]:
        """Write the shard of one file, unless one of its photos lacks an embedding. Thread-safe.

        Args:
            file: file of the previous scores.
            at: position of each photo's content in the outputs.
            before: previous status code of each photo.
            outputs: outputs of the heads for the group.
            stats: statistics of the shard, to which its counts and its time are added.
            scored: keys of the photos.

        Returns:
            Addresses of the photos that lack an embedding.
        """
        import pyarrow as pa

        start = perf_counter()
        stored = outputs.status[at] != NOT_STORED
        # Rejected photos may lack a row, such as those that were never read. Usable ones must have one,
        # and those with a status that this version does not know.
        lacking = np.flatnonzero(~stored & (USABLE[before] | (before < 0)))
        if len(lacking):
            missing: list[str] = file.table["uri"].take(lacking).to_pylist()
            return missing
        status = np.where(stored, outputs.status[at], before)
        columns = PhotoColumns(
            uris=file.table["uri"].combine_chunks(),
            shas=file.table["sha256"].combine_chunks(),
            status=status,
            details=outputs.merge_details(at, stored, file.table["detail"].combine_chunks()),
            heights=np.where(stored, outputs.heights[at], 0),
            widths=np.where(stored, outputs.widths[at], 0),
            columns=file.columns,
        )
        tables: dict[str, pa.Table] = {}
        for number, model in enumerate(self.bundles):
            decisions, name = outputs.decisions(number, at), shard.model_key(model)
            tables[name] = build_scores_table(columns, decisions, model, self.started)
            stats.models[name] = count_decisions(columns, decisions, model)
        stats.examples = sample_photos.choose_examples(tables)
        table = pa.concat_tables(tables.values())
        stats.photos, stats.rows, stats.reused = len(at), table.num_rows, int(stored.sum())
        counts = np.bincount(status, minlength=len(STATUSES))
        stats.statuses = Counter(
            {name.value: int(count) for name, count in zip(STATUSES, counts, strict=True) if count}
        )
        # Each core writes a shard at a time.
        stats.elapsed += (perf_counter() - start) / cores()
        stats.core_seconds = stats.elapsed * cores()
        self.publication.attempt.commit(
            file.id,
            self.summary.run_id,
            table,
            stats,
            dict.fromkeys(self.digests, scored),
            date=self.started.date().isoformat(),
        )
        return []

    def check_complete(self) -> None:
        """Check that no photo was left out.

        Raises:
            InputError: photos have no embedding; they are listed in MISSING_FILE.
        """
        output, name = self.publication.output, f"{WORK_DIRECTORY}/{MISSING_FILE}"
        uri = files.join(output.directory, name)
        if not self._missing_uris:
            output.writer.publish(removes=[name])
            return
        output.writer.publish({name: "".join(f"{uri}\n" for uri in self._missing_uris).encode()})
        model = self.bundles[0].path
        raise InputError(
            f"{len(self._missing_uris)} photos have no embedding in {self.store.directory}"
            f" (first: {self._missing_uris[0]}; all: {uri}).",
            remedy=f"Embed them with `hubhead score --manifest {uri} --model {model} --output DIR`,"
            " then run the same command again; finished shards are kept. Or give the --embedding_store"
            " of the previous scoring.",
        )
