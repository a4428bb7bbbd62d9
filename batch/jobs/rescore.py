"""Scoring known photos again: the head alone over stored embeddings, no photo is read.

Photos go through in groups of files of the earlier scores. The rows of the store that a group
needs are read in the order of the store, each once, whatever order the photos have; what the
head says of them is kept as small arrays, from which the group's files are then written.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from batch.embeddings import EmbeddingStore, default_root, layout
from batch.jobs import publish
from batch.jobs.score import describe_model, read_models
from batch.monitoring import sample_photos
from batch.monitoring.stats import Meter, Progress, Stats
from batch.output import dataset as output
from batch.output import run_diff, run_record
from batch.output.dataset import Output, ScoredKeys
from batch.output.previous_scores import PreviousFile, PreviousScores
from batch.output.run_record import Summary
from batch.output.schema import (
    STATUSES,
    USABLE,
    PhotoColumns,
    build_scores_table,
    count_decisions,
    encode_status_column,
)
from batch.scoring import head_runner, shard
from batch.scoring.head_runner import SignatureFunction
from batch.shards import scored_index
from serving import contract
from serving.bundle import Bundle
from serving.contract import Decisions
from serving.errors import InputError, OutputError
from serving.process import cores
from serving.storage import files, lock

if TYPE_CHECKING:
    import pyarrow as pa

GROUP = 1 << 19
"""Photos a group: some hundred MB of file names, digests and answers."""

MISSING_FILE = "missing.txt"
"""In the output's work directory: the photos without an embedding, a manifest for `hubhead score`."""

_COLUMNS = [layout.VECTOR, layout.STATUS, "detail", "height", "width"]
_UNKNOWN = -1
_AHEAD = 2


@dataclass(frozen=True)
class RescoreSettings:
    """What to score again, with what, and where to.

    Attributes:
        scores: output directory of an earlier scoring: its photos are scored.
        model: bundle directories, or the base paths above their versions; all of one backbone.
        output: directory of the new scores, local or remote.
        embedding_store: root of the embedding store; "" for the shared one.
        run_id: of the run; "" for the date (UTC) on which it starts.
        partition_by: one of output.PARTITIONS, or "".
        price_per_hour: of one machine, for the cost in run.json; None leaves it out.
        overwrite: replace the scores of another model or other photos.
        no_report: write no report.html.
        metrics_textfile: file for the node exporter, or "".
        metrics_push: address of a Pushgateway, or "".
    """

    scores: str
    model: tuple[Path, ...]
    output: str
    embedding_store: str = ""
    run_id: str = ""
    partition_by: str = ""
    price_per_hour: float | None = None
    overwrite: bool = False
    no_report: bool = False
    metrics_textfile: str = ""
    metrics_push: str = ""

    @property
    def store_root(self) -> str:
        """The embedding store, the shared one where none is given."""
        return files.absolute(self.embedding_store or default_root())


def rescore(settings: RescoreSettings, progress: Callable[[Progress], None] | None = None) -> Summary:
    """Score the photos of an earlier scoring with other heads; the same call again does what is left.

    Raises:
        InputError: there are no earlier scores, or some photos have no embedding in the store; the
            scores of the others are kept then.
        BundleError: a model cannot be used, or two do not go together.
        OutputBusy: another run is at work in the output.
        OutputError: the output cannot be written, or holds something else.
    """
    started, start = datetime.now(UTC), perf_counter()
    publish.check_dependencies(settings)
    run_id = output.check_run_id(settings.run_id or started.date().isoformat())
    bundles = read_models(settings.model)
    models = [describe_model(model) for model in bundles]
    place = Output(files.absolute(settings.output), settings.partition_by)
    earlier = PreviousScores(settings.scores)
    if earlier.directory in (place.directory, place.scores_directory):
        raise InputError(
            f"{settings.output} holds the scores that are to be scored again.",
            remedy="Give another --output.",
        )
    identity = {"photos": earlier.directory, "models": models, "partition_by": settings.partition_by}
    place.check(identity, append=False, overwrite=settings.overwrite)
    with lock.hold(place.work_directory):
        if place.check(identity, append=False, overwrite=settings.overwrite):
            place.reset()
        place.claim(identity, [list(column) for column in earlier.columns], append=False)
        metadata = bundles[0].metadata
        store = EmbeddingStore(settings.store_root, metadata.fingerprint, metadata.dimension)
        digests = [model["digest"] for model in models]
        scores = _output_of(earlier)
        run = _Run(
            place, run_id, started, bundles, digests, store, Meter(earlier.rows, progress), scores.find_keys
        )
        for group in _groups(run.open(earlier.iter_files({"models": models, "of": "rescore"}))):
            run.score(group)
        run.clean()
        run.check_complete()
        summary = Summary(
            path=place.directory,
            total=run.total,
            this_run=run.worked,
            of_id=run.of_id,
            skipped_shards=run.skipped,
            worked_shards=run.shards,
            seconds=perf_counter() - start,
            run_id=run_id,
            lines=earlier.rows,
            price_per_hour=settings.price_per_hour,
        )
        described = {**asdict(settings), "model": [str(path) for path in settings.model]}
        described["embedding_store"] = settings.store_root
        about = run_record.build_run_record(summary, started=started, models=models, settings=described)
        before = run_diff.find_previous_run(place, run_id) or _of_scores(scores)
        publish.publish_run(about, summary, place, settings, before)
    return summary


def _output_of(earlier: PreviousScores) -> Output:
    """Where the keys of the earlier scores are: `PreviousScores` takes the directory of the rows as well."""
    top, _, name = earlier.directory.rstrip("/").rpartition("/")
    inside = name == "scores" and output.WORK_DIRECTORY in files.list_names(top)
    return Output(top if inside else earlier.directory)


def _of_scores(earlier: Output) -> run_diff.RunRecord | None:
    """The newest run of the scores that are scored again, under a name that tells it from those here."""
    run = run_diff.find_previous_run(earlier, "")
    return run and {**run, "run_id": f"{run.get('run_id')} of {earlier.directory}"}


def _groups(pieces: Iterable[PreviousFile]) -> Iterator[list[PreviousFile]]:
    held: list[PreviousFile] = []
    for piece in pieces:
        held.append(piece)
        if sum(one.table.num_rows for one in held) >= GROUP:
            yield held
            held = []
    if held:
        yield held


@dataclass
class _Run:
    """A rescoring, group by group.

    Attributes:
        digests: of the models, in the order of the bundles.
        known: the keys of photos (batch.shards.scored_index) in the earlier output, by their hashes.
        total: figures of all finished shards.
        worked: of those of this call.
        of_id: of those of this run id.
        missing: how many photos have no embedding; the first of them is kept.
    """

    output: Output
    run_id: str
    started: datetime
    bundles: Sequence[Bundle]
    digests: Sequence[str]
    store: EmbeddingStore
    meter: Meter
    known: Callable[[NDArray[np.bytes_]], NDArray[np.bytes_]]
    total: Stats = field(default_factory=Stats)
    worked: Stats = field(default_factory=Stats)
    of_id: Stats = field(default_factory=Stats)
    skipped: int = 0
    shards: int = 0
    missing: int = 0
    _missing: list[str] = field(default_factory=list)
    _kept: set[str] = field(default_factory=set)
    _seen: set[str] = field(default_factory=set)
    _heads: list[SignatureFunction] = field(default_factory=list)

    def open(self, pieces: Iterable[PreviousFile]) -> Iterator[PreviousFile]:
        """The pieces that are not finished; the others are count_decisions."""
        finished, sizes = self.output.list_records(), self.output.list_file_sizes()
        for piece in pieces:
            self._seen.add(piece.id)
            for run_id in finished.get(piece.id, ()):
                record = self.output.read_record(piece.id, run_id)
                if record and all(sizes.get(path) == size for path, size in record.files.items()):
                    self._count(record.stats, run_id)
                    self._kept.update(record.files)
                    self.skipped += 1
                    self.meter.add(record.stats.photos, record.stats.rejected, known=True)
                    break
            else:
                yield piece

    def score(self, group: Sequence[PreviousFile]) -> None:
        """Score some pieces, and write the file of each.

        Raises:
            OutputError: one cannot be written.
        """
        stats, start = Stats(), perf_counter()
        shas = [piece.digests() for piece in group]
        before = [piece.status_codes() for piece in group]
        wanted = np.unique(np.concatenate(shas))
        answers = _Answers(wanted, self.bundles)
        with stats.time_stage(shard.START):
            if not self._heads:
                from serving.runtime import single_signature

                self._heads = [
                    single_signature.load(m.path, contract.CLASSIFY_EMBEDDING) for m in self.bundles
                ]
        with stats.time_stage("classify"):
            answers.fill(self.store, self._heads)
        begun, rows = perf_counter() - start - stats.seconds[shard.START], sum(map(len, shas))
        uris = [scored_index.hash_uris(piece.table["uri"].to_pylist()) for piece in group]
        known = self.known(np.concatenate(uris))
        for piece, digests, codes, of_piece in zip(group, shas, before, uris, strict=True):
            at = np.searchsorted(wanted, digests)
            scored = ScoredKeys(list(scored_index.select_keys(known, of_piece)))
            self._write(piece, at, codes, answers, stats, begun / rows, scored)
            stats = Stats()

    def _write(
        self,
        piece: PreviousFile,
        at: NDArray[np.int64],
        before: NDArray[np.int8],
        answers: _Answers,
        stats: Stats,
        seconds_a_photo: float,
        scored: ScoredKeys,
    ) -> None:
        import pyarrow as pa

        start = perf_counter()
        there = answers.status[at] != _UNKNOWN
        lacking = np.flatnonzero(~there & (USABLE[before] | (before < 0)))
        if len(lacking):
            self.missing += len(lacking)
            self._missing.extend(piece.table["uri"].take(lacking).to_pylist())
            return
        status = np.where(there, answers.status[at], before)
        about = PhotoColumns(
            uris=piece.table["uri"].combine_chunks(),
            shas=piece.table["sha256"].combine_chunks(),
            status=status,
            details=answers.details(at, there, piece.table["detail"].combine_chunks()),
            heights=np.where(there, answers.heights[at], 0),
            widths=np.where(there, answers.widths[at], 0),
            columns=piece.columns,
        )
        tables: dict[str, pa.Table] = {}
        for number, model in enumerate(self.bundles):
            decisions, name = answers.of(number, at), shard.model_key(model)
            tables[name] = build_scores_table(about, decisions, model, self.started)
            stats.models[name] = count_decisions(about, decisions, model)
        stats.examples = sample_photos.choose_examples(tables)
        table = pa.concat_tables(tables.values())
        stats.photos, stats.rows, stats.reused = len(at), table.num_rows, int(there.sum())
        counts = np.bincount(status, minlength=len(STATUSES))
        stats.statuses = Counter(
            {name.value: int(count) for name, count in zip(STATUSES, counts, strict=True) if count}
        )
        stats.elapsed = seconds_a_photo * len(at) + perf_counter() - start
        stats.core_seconds = stats.elapsed * cores()
        record = self.output.commit(
            piece.id,
            self.run_id,
            table,
            stats,
            dict.fromkeys(self.digests, scored),
            date=self.started.date().isoformat(),
        )
        self._kept.update(record.files)
        self._count(stats, self.run_id)
        self.worked += stats
        self.shards += 1
        self.meter.add(stats.photos, stats.rejected)

    def _count(self, stats: Stats, run_id: str) -> None:
        self.total += stats
        if run_id == self.run_id:
            self.of_id += stats

    def clean(self) -> None:
        """Remove the rows of photos that are not among the earlier scores any more, and leftovers."""
        for shard_id, runs in self.output.list_records().items():
            if shard_id not in self._seen:
                for run_id in runs:
                    self.output.remove_shard(shard_id, run_id, self.digests)
        self.output.sweep(self.output.list_file_sizes(), lambda _, path: path in self._kept)

    def check_complete(self) -> None:
        """Make sure that no photo was left out.

        Raises:
            InputError: some have no embedding; their files are listed.
        """
        uri = files.join(self.output.work_directory, MISSING_FILE)
        if not self.missing:
            files.remove(uri)
            return
        files.write(uri, "".join(f"{name}\n" for name in self._missing).encode())
        model = self.bundles[0].path
        raise InputError(
            f"{self.missing} photos have no embedding in {self.store.directory}"
            f" (first: {self._missing[0]}; all: {uri}).",
            remedy=f"Embed them with `hubhead score --manifest {uri} --model {model} --output DIR`,"
            " then run the same command again; what is finished is kept. Or give the --embedding_store"
            " of the earlier scoring.",
        )


class _Answers:
    """What the store and the heads say of some contents.

    Attributes:
        wanted: [N] sha256 digests, sorted.
        status: int8 [N], codes; -1 where the store has no row.
        heights, widths: int32 [N].
    """

    def __init__(self, wanted: NDArray[np.bytes_], bundles: Sequence[Bundle]) -> None:
        self.wanted, self._bundles = wanted, bundles
        self.status = np.full(len(wanted), _UNKNOWN, np.int8)
        self.heights, self.widths = np.zeros(len(wanted), np.int32), np.zeros(len(wanted), np.int32)
        self._details: dict[int, str] = {}  # of refused photos alone
        sizes = [min(model.metadata.top_k, len(model.metadata.labels)) for model in bundles]
        self._top = [np.zeros((len(wanted), k), np.int32) for k in sizes]
        self._scores = [np.zeros((len(wanted), k), np.float32) for k in sizes]
        self._label = [np.full(len(wanted), -1, np.int32) for _ in sizes]

    def fill(self, store: EmbeddingStore, heads: Sequence[SignatureFunction]) -> None:
        """Have the heads look at every row that the store has, on all cores."""
        waiting: deque[Future[None]] = deque()
        with ThreadPoolExecutor(cores(), "head") as pool:
            for positions, content in store.iter_blocks(self.wanted, _COLUMNS):
                waiting.append(pool.submit(self._take, positions, content, store.dimension, heads))
                if len(waiting) > _AHEAD * cores():
                    waiting.popleft().result()
            while waiting:
                waiting.popleft().result()

    def _take(
        self,
        positions: NDArray[np.int64],
        content: pa.Table,
        dimension: int,
        heads: Sequence[SignatureFunction],
    ) -> None:
        import pyarrow.compute as pc

        codes = encode_status_column(content[layout.STATUS].combine_chunks())
        if (codes < 0).any():
            raise OutputError("The embedding store has a status that this hubhead does not know.")
        self.status[positions] = codes
        self.heights[positions] = content["height"].to_numpy()
        self.widths[positions] = content["width"].to_numpy()
        said: Any = content["detail"].combine_chunks()
        if said.null_count < len(said):
            rows = np.flatnonzero(pc.is_valid(said).to_numpy(zero_copy_only=False))
            self._details.update(zip(positions[rows].tolist(), said.take(rows).to_pylist(), strict=True))
        vectors = layout.to_vectors(content, dimension)
        for number, (run, about) in enumerate(zip(heads, self._bundles, strict=True)):
            decisions = head_runner.classify_embeddings(run, about, vectors, USABLE[codes])
            self._top[number][positions] = decisions.top
            self._scores[number][positions] = decisions.scores
            self._label[number][positions] = decisions.label

    def of(self, model: int, at: NDArray[np.int64]) -> Decisions:
        """What a model says of some contents, by their rows."""
        top = self._top[model][at].astype(np.int64)
        return Decisions(top, self._scores[model][at], self._label[model][at].astype(np.int64))

    def details(self, at: NDArray[np.int64], there: NDArray[np.bool_], before: Any) -> Any:
        """The details of some contents; of those that the store does not have, what was said before."""
        import pyarrow as pa
        import pyarrow.compute as pc

        wanted = np.flatnonzero(there & ~USABLE[self.status[at]])
        said: Any = pa.array([self._details.get(int(row)) for row in at[wanted]], pa.string())
        kept = pc.if_else(pa.array(there), pa.scalar(None, pa.string()), before)
        mask = np.zeros(len(at), bool)
        mask[wanted] = True
        return pc.replace_with_mask(kept, pa.array(mask), said)
