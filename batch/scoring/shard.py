"""What happens to one shard, without Beam: photos read, embedded where they are new, scored.

Reading, decoding and the model overlap: reader threads stay a little ahead of the
micro-batches that the model takes on all cores (`serving.runtime`), or of the requests that a
model server works on (`batch.scoring.remote_backbone`). What the graph does not decode is converted in these
threads (`serving.photos.converter`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from batch.embeddings import Embeddings, EmbeddingStore
from batch.inputs.listing import Photo
from batch.monitoring import sample_photos
from batch.monitoring.drift import Moments
from batch.monitoring.stats import Meter, Stats
from batch.output import schema
from batch.output.schema import PhotoColumns
from batch.scoring import head_runner
from batch.scoring.head_runner import HeadRunner
from batch.scoring.prefetch import Read, Reader
from batch.shards.shard import Shard
from serving import contract
from serving.bundle import Bundle
from serving.contract import Decisions, PhotoRejection, Status
from serving.errors import OutputError
from serving.process import cores

if TYPE_CHECKING:
    import pyarrow as pa

START = "start"
"""The stage of loading and warming the model, which is left out of a shard's elapsed time."""

UNANSWERED = "unanswered"
"""An output beside those of `embed`: why there is no answer about a photo that may have one another
time, and None for the others; object [N]. `batch.scoring.remote_backbone` has it."""


class Backbone(Protocol):
    """What embeds photos: a `serving.runtime.Model`, or one on a server."""

    def imap(
        self, signature: str, input_name: str, items: Iterable[bytes]
    ) -> Iterator[dict[str, NDArray[Any]]]:
        """The outputs for any number of items, some at a time, in their order."""
        ...


@dataclass(frozen=True)
class UnstoredRejection:
    """A photo that never reached the model, for a reason that is not kept.

    Attributes:
        refusal: why.
        sha: sha256 of its bytes; None where they were not read.
    """

    refusal: PhotoRejection
    sha: bytes | None = None


@dataclass(frozen=True)
class EmbeddedPhotos:
    """The photos of a shard with what the model made of them.

    Attributes:
        shas: sha256 of every photo that the store knows, now or before.
        refusals: the others, which may have another fate the next time.
        rows: a row for each distinct sha256 of `shas`.
    """

    shas: Mapping[Photo, bytes]
    refusals: Mapping[Photo, UnstoredRejection]
    rows: Embeddings


class ModelResources:
    """What the shards of a process share for one model: its head, the backbone and the store.

    Args:
        head: of the model.
        store: of the backbone.
        meter: what is told of progress.
        connect: gives the backbone, ready to run, when it is first needed: a shard that is all known
            needs none.
    """

    def __init__(
        self, head: HeadRunner, store: EmbeddingStore, meter: Meter, connect: Callable[[], Backbone]
    ) -> None:
        self.head = head
        self.store = store
        self.meter = meter
        self.reader = Reader(self.bundle.metadata.preprocessing, store)
        self._connect = connect

    @property
    def bundle(self) -> Bundle:
        """The model's directory."""
        return self.head.bundle

    @cached_property
    def backbone(self) -> Backbone:
        """What embeds photos."""
        return self._connect()


def embed_shard(shard: Shard, worker: ModelResources) -> Stats:
    """Bring the embeddings of a shard's photos into the store.

    Raises:
        OutputError: the store cannot be written.
    """
    start = time.perf_counter()
    stats = Stats(photos=len(shard.photos))
    _embed(shard, worker, stats)
    _finish(stats, time.perf_counter() - start)
    return stats


def score_shard(
    shard: Shard, workers: Sequence[ModelResources], scored_at: datetime
) -> tuple[pa.Table, Stats]:
    """Score a shard's photos with one or several models of one backbone.

    Args:
        shard: photos, what passes through to their rows, and which models each is for.
        workers: one a model; the first one embeds for all.
        scored_at: what the rows say.

    Returns:
        The rows, model after model, and the figures.

    Raises:
        OutputError: the store cannot be written.
    """
    import pyarrow as pa

    start = time.perf_counter()
    stats = Stats(photos=len(shard.photos))
    embedded = _embed(shard, workers[0], stats)
    row_of = embedded.rows.row_by_digest()
    usable = schema.USABLE[schema.encode_statuses(embedded.rows.statuses)]
    tables: dict[str, pa.Table] = {}
    for number, worker in enumerate(workers):
        with stats.time_stage(START):  # what loading takes is no work on photos
            run = worker.head.run
        with stats.time_stage("classify"):
            said = head_runner.classify_embeddings(run, worker.bundle, embedded.rows.vectors, usable)
        with stats.time_stage("rows"):
            wanted, columns = select_for_model(shard, number)
            about, decisions = _about(wanted, columns, embedded, row_of, said)
            rows_of = schema.build_scores_table(about, decisions, worker.bundle, scored_at)
        tables[model_key(worker.bundle)] = rows_of
        stats.models[model_key(worker.bundle)] = schema.count_decisions(about, decisions, worker.bundle)
    with stats.time_stage("sketch"):
        stats.embeddings = Moments.from_embeddings(embedded.rows.vectors[usable])
        stats.examples = sample_photos.choose_examples(tables)
    rows = pa.concat_tables(tables.values())
    stats.rows = rows.num_rows
    _finish(stats, time.perf_counter() - start)
    return rows, stats


def model_key(about: Bundle) -> str:
    """How a model is called where several are told apart."""
    return f"{about.name}/{about.version}"


def select_for_model(shard: Shard, number: int) -> tuple[Sequence[Photo], pa.Table | None]:
    """The photos that are to be scored with a model, and what passes through to their rows."""
    if shard.model_masks is None:
        return shard.photos, shard.columns
    chosen = [row for row, mask in enumerate(shard.model_masks) if mask >> number & 1]
    columns = shard.columns.take(chosen) if shard.columns is not None else None
    return [shard.photos[row] for row in chosen], columns


def _embed(shard: Shard, worker: ModelResources, stats: Stats) -> EmbeddedPhotos:
    """`embed_photos`, its statuses counted."""
    embedded = embed_photos(shard.photos, worker, stats)
    rows = embedded.rows.row_by_digest()
    stats.statuses.update(refused.refusal.status.value for refused in embedded.refusals.values())
    stats.statuses.update(embedded.rows.statuses[rows[sha]].value for sha in embedded.shas.values())
    return embedded


def _finish(stats: Stats, elapsed: float) -> None:
    stats.elapsed = elapsed - stats.seconds.get(START, 0.0)
    stats.core_seconds = stats.elapsed * cores()


def embed_photos(wanted: Sequence[Photo], worker: ModelResources, stats: Stats) -> EmbeddedPhotos:
    """Embed what the store does not have, keep it there, and give everything back.

    What was answered is kept also where the model, or its server, fails in the middle.

    Raises:
        OutputError: the store cannot be written, or does not give back what was written.
        ServerError: a model server does not answer.
    """
    store = worker.store
    shas: dict[Photo, bytes] = {}
    refusals: dict[Photo, UnstoredRejection] = {}
    for attempt in range(2):  # a torn file may show itself only when its rows are read
        with stats.time_stage("store"):
            known = store.lookup_digests(wanted)
            there = store.get_statuses(known.values())
        if attempt == 0:
            old = [there[sha] for sha in known.values() if sha in there]
            worker.meter.add(len(old), sum(not status.usable for status in old))
        shas.update({photo: sha for photo, sha in known.items() if sha in there})
        todo = [photo for photo in wanted if known.get(photo) not in there and photo not in refusals]
        if todo:
            fresh = _Fresh(worker, worker.meter if attempt == 0 else Meter())
            try:
                fresh.embed(todo, stats)
            finally:
                fresh_shas, rows = fresh.shas(), fresh.rows()
                with stats.time_stage("store"):
                    store.append(fresh_shas, rows)
            shas.update(fresh_shas)
            refusals.update(fresh.refusals)
            stats.embedded += len(rows.shas)
        with stats.time_stage("store"):
            # In the order of the digests: the head sees the same batch however the store is laid out.
            rows = store.get(shas.values()).sorted_by_digest()
        if len(rows.shas) == len(set(shas.values())):
            stats.reused = len(shas) - stats.embedded
            return EmbeddedPhotos(shas, refusals, rows)
    raise OutputError(
        f"The embedding store {store.directory} does not give back what was written to it.",
        remedy="Check its disk, or give another place with --embedding_store.",
    )


@dataclass
class _Fresh:
    """Photos that the store does not know, on their way through the model.

    Attributes:
        worker: of the process.
        meter: what is told of progress.
        refusals: photos with a reason that is not kept.
    """

    worker: ModelResources
    meter: Meter
    refusals: dict[Photo, UnstoredRejection] = field(default_factory=dict)
    _shas: dict[Photo, bytes] = field(default_factory=dict)
    _sent: list[Read] = field(default_factory=list)
    _hopeless: list[Read] = field(default_factory=list)
    _outputs: list[Mapping[str, NDArray[Any]]] = field(default_factory=list)
    _statuses: list[Status] = field(default_factory=list)
    _unanswered: dict[bytes, UnstoredRejection] = field(default_factory=dict)

    def embed(self, todo: Sequence[Photo], stats: Stats) -> None:
        """Read photos and run the model on each content that is new, reading ahead of it."""
        stream = self._contents(todo, stats)
        for first in stream:  # no content that is new: no backbone is loaded
            with stats.time_stage(START):
                backbone = self.worker.backbone
            with stats.time_stage("embed"):
                for output in backbone.imap(contract.EMBED, contract.IMAGE_BYTES, chain([first], stream)):
                    self._take(output)
        for photo, sha in self._shas.items():
            if sha in self._unanswered:
                self.refusals[photo] = self._unanswered[sha]

    def _contents(self, todo: Sequence[Photo], stats: Stats) -> Iterator[bytes]:
        seen: set[bytes] = set()
        for photo, read in self.worker.reader.ahead(todo):
            stats.read_bytes += read.size
            for stage, seconds in read.seconds.items():
                stats.add_seconds(stage, seconds)
            if isinstance(read.image, PhotoRejection) and (read.sha is None or not read.image.permanent):
                self.refusals[photo] = UnstoredRejection(read.image, read.sha)
                self.meter.add(1, 1)
                continue
            assert read.sha is not None
            self._shas[photo] = read.sha
            if read.sha in seen or self.worker.store.filter_present([read.sha]):
                self.meter.add(1)
                continue
            seen.add(read.sha)
            if isinstance(read.image, PhotoRejection):
                self._hopeless.append(read)
                self.meter.add(1, 1)
                continue
            self._sent.append(replace(read, image=b""))  # what is kept until the end is small
            yield read.image

    def _take(self, output: Mapping[str, NDArray[Any]]) -> None:
        statuses = [Status(raw.decode()) for raw in output[contract.STATUS]]
        answered = self._sent[len(self._statuses) :]
        for read, status, why in zip(answered, statuses, output.get(UNANSWERED, ()), strict=False):
            if why is not None and read.sha is not None:
                self._unanswered[read.sha] = UnstoredRejection(PhotoRejection(status, why), read.sha)
        self._outputs.append(output)
        self._statuses += statuses
        self.meter.add(len(statuses), sum(not status.usable for status in statuses))

    def shas(self) -> dict[Photo, bytes]:
        """Of the photos whose content has an answer, here or in the store."""
        open_ones = {read.sha for read in self._sent[len(self._statuses) :]} | self._unanswered.keys()
        return {photo: sha for photo, sha in self._shas.items() if sha not in open_ones}

    def rows(self) -> Embeddings:
        """The answers as one record, and behind them what never reached the model."""
        chosen = [
            row
            for row, read in enumerate(self._sent[: len(self._statuses)])
            if read.sha not in self._unanswered
        ]
        sent = [self._sent[row] for row in chosen]

        def joined(name: str, shape: tuple[int, ...], dtype: type) -> Any:
            blank: Any = np.zeros((len(self._hopeless), *shape), dtype)
            told = [blank[:0], *(output[name] for output in self._outputs)]
            answers: Any = np.concatenate(told, dtype=dtype, casting="unsafe")
            return np.concatenate([answers[chosen], blank])

        statuses = [self._statuses[row] for row in chosen]
        details = [None if s.usable else read.about for s, read in zip(statuses, sent, strict=True)]
        heights, widths = joined(contract.HEIGHT, (), np.int32), joined(contract.WIDTH, (), np.int32)
        for row, (status, read) in enumerate(zip(statuses, sent, strict=True)):
            if read.sides and status.usable:  # of the photo, not of its PNG
                heights[row], widths[row] = read.sides
        refused = [read.image.status for read in self._hopeless if isinstance(read.image, PhotoRejection)]
        return Embeddings(
            shas=[read.sha for read in (*sent, *self._hopeless) if read.sha is not None],
            vectors=joined(contract.EMBEDDING, (self.worker.store.dimension,), np.float16),
            statuses=statuses + refused,
            details=details + [read.about for read in self._hopeless],
            heights=heights,
            widths=widths,
        )


def _about(
    wanted: Sequence[Photo],
    columns: pa.Table | None,
    embedded: EmbeddedPhotos,
    row_of: Mapping[bytes, int],
    said: Decisions,
) -> tuple[PhotoColumns, Decisions]:
    """What is known of each photo, and what the model says of it."""
    import pyarrow as pa

    rows = embedded.rows
    shas = [embedded.shas.get(photo) for photo in wanted]
    at = np.array([-1 if sha is None else row_of[sha] for sha in shas], np.int64)
    there = at >= 0
    refused = [embedded.refusals.get(photo) for photo in wanted]
    digests = [refusal.sha if refusal else sha for refusal, sha in zip(refused, shas, strict=True)]
    statuses = [r.refusal.status if r else rows.statuses[row] for r, row in zip(refused, at, strict=True)]
    details = [r.refusal.detail if r else rows.details[row] for r, row in zip(refused, at, strict=True)]
    about = PhotoColumns(
        uris=pa.array([photo.uri for photo in wanted], pa.string()),
        shas=pa.array([digest and digest.hex() for digest in digests], pa.string()),
        status=schema.encode_statuses(statuses),
        details=pa.array(details, pa.string()),
        heights=np.where(there, rows.heights[at], 0) if len(rows.shas) else np.zeros(len(at), np.int32),
        widths=np.where(there, rows.widths[at], 0) if len(rows.shas) else np.zeros(len(at), np.int32),
        columns=columns,
    )
    return about, said.take(at)
