"""Processing of one shard, without Beam: read photos, embed those that are new, classify, build rows.

Reading, decoding and the model overlap: reader threads stay slightly ahead of the micro-batches that the
model runs on all cores (`serving.runtime`), or of the requests to a model server
(`batch.scoring.remote_backbone`). The reader threads also convert formats that the graph does not decode
(`serving.photos.converter`).
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
from batch.scoring.prefetch import FetchedPhoto, PhotoFetcher
from batch.shards.shard import Shard
from serving import contract
from serving.bundle import Bundle
from serving.contract import Decisions, PhotoRejection, Status
from serving.errors import OutputError
from serving.process import cores

if TYPE_CHECKING:
    import pyarrow as pa

START = "start"
"""Stage of loading and warming up the model. It does not count towards a shard's elapsed time."""

UNANSWERED = "unanswered"
"""Additional output beside those of `embed`, object [N]: None, or why a photo got no embedding although a
later run may get one. `batch.scoring.remote_backbone` returns it."""


class Backbone(Protocol):
    """Model that embeds photos: a `serving.runtime.Model`, or a model server."""

    def imap(
        self, signature: str, input_name: str, items: Iterable[bytes]
    ) -> Iterator[dict[str, NDArray[Any]]]:
        """Yield the outputs for any number of items, several items at a time, in their order."""
        ...


@dataclass(frozen=True)
class UnstoredRejection:
    """A rejection that the embedding store does not keep, because a later run may succeed.

    Attributes:
        rejection: status and reason.
        sha: sha256 of the photo's bytes; None if they were not read.
    """

    rejection: PhotoRejection
    sha: bytes | None = None


@dataclass(frozen=True)
class EmbeddedPhotos:
    """Photos of a shard with their embeddings.

    Attributes:
        shas: sha256 of every photo that is in the store, from this run or an earlier one.
        rejections: the other photos, with their reasons.
        embeddings: one row for each distinct sha256 in `shas`.
    """

    shas: Mapping[Photo, bytes]
    rejections: Mapping[Photo, UnstoredRejection]
    embeddings: Embeddings


class ModelResources:
    """Head, backbone and embedding store of one model, shared by all shards of a process.

    Args:
        head: head of the model.
        store: embedding store of the backbone.
        meter: progress meter of the run.
        connect: returns the backbone, ready to run. It is called on first use, so that a shard whose
            photos are all in the store loads no backbone.
    """

    def __init__(
        self, head: HeadRunner, store: EmbeddingStore, meter: Meter, connect: Callable[[], Backbone]
    ) -> None:
        self.head = head
        self.store = store
        self.meter = meter
        self.fetcher = PhotoFetcher(self.bundle.metadata.preprocessing, store)
        self._connect = connect

    @property
    def bundle(self) -> Bundle:
        """The bundle of the model."""
        return self.head.bundle

    @cached_property
    def backbone(self) -> Backbone:
        """The backbone, loaded on first use."""
        return self._connect()


def embed_shard(shard: Shard, model: ModelResources) -> Stats:
    """Add the embeddings of a shard's photos to the store.

    Raises:
        OutputError: the store cannot be written.
    """
    start = time.perf_counter()
    stats = Stats(photos=len(shard.photos))
    _embed_and_count(shard, model, stats)
    _record_elapsed(stats, time.perf_counter() - start)
    return stats


def score_shard(
    shard: Shard, models: Sequence[ModelResources], scored_at: datetime
) -> tuple[pa.Table, Stats]:
    """Score a shard's photos with one or several models of one backbone.

    Args:
        shard: photos, their pass-through columns, and the models that each photo is to be scored with.
        models: resources of each model; the first one embeds for all.
        scored_at: time to write into the rows.

    Returns:
        The rows, model after model, and the statistics.

    Raises:
        OutputError: the store cannot be written.
    """
    import pyarrow as pa

    start = time.perf_counter()
    stats = Stats(photos=len(shard.photos))
    embedded = _embed_and_count(shard, models[0], stats)
    row_of = embedded.embeddings.row_by_digest()
    usable = schema.USABLE[schema.encode_statuses(embedded.embeddings.statuses)]
    tables: dict[str, pa.Table] = {}
    for number, model in enumerate(models):
        with stats.time_stage(START):  # loading is not work on photos
            run = model.head.run
        # All embeddings of the shard are classified, also those of photos that this model skips: the
        # blocks are the same then, whichever photos are new to the model.
        with stats.time_stage("classify"):
            decisions = head_runner.classify_embeddings(
                run, model.bundle, embedded.embeddings.vectors, usable
            )
        with stats.time_stage("rows"):
            photos, columns = select_for_model(shard, number)
            about, decided = _align_rows(photos, columns, embedded, row_of, decisions)
            table = schema.build_scores_table(about, decided, model.bundle, scored_at)
        tables[model_key(model.bundle)] = table
        stats.models[model_key(model.bundle)] = schema.count_decisions(about, decided, model.bundle)
    with stats.time_stage("sketch"):
        stats.embeddings = Moments.from_embeddings(embedded.embeddings.vectors[usable])
        stats.examples = sample_photos.choose_examples(tables)
    rows = pa.concat_tables(tables.values())
    stats.rows = rows.num_rows
    _record_elapsed(stats, time.perf_counter() - start)
    return rows, stats


def model_key(bundle: Bundle) -> str:
    """Return the key of a model in statistics and reports, `name/version`."""
    return f"{bundle.name}/{bundle.version}"


def select_for_model(shard: Shard, number: int) -> tuple[Sequence[Photo], pa.Table | None]:
    """Return the photos to be scored with a model, and their pass-through columns.

    Args:
        shard: shard with a bit mask of models for each photo (`model_masks`), or None for all models.
        number: position of the model, which is its bit in the mask.
    """
    if shard.model_masks is None:
        return shard.photos, shard.columns
    chosen = [row for row, mask in enumerate(shard.model_masks) if mask >> number & 1]
    columns = shard.columns.take(chosen) if shard.columns is not None else None
    return [shard.photos[row] for row in chosen], columns


def _embed_and_count(shard: Shard, model: ModelResources, stats: Stats) -> EmbeddedPhotos:
    """Embed the photos of a shard and count their statuses."""
    embedded = embed_photos(shard.photos, model, stats)
    rows = embedded.embeddings.row_by_digest()
    stats.statuses.update(unstored.rejection.status.value for unstored in embedded.rejections.values())
    stats.statuses.update(embedded.embeddings.statuses[rows[sha]].value for sha in embedded.shas.values())
    return embedded


def _record_elapsed(stats: Stats, elapsed: float) -> None:
    stats.elapsed = elapsed - stats.seconds.get(START, 0.0)
    stats.core_seconds = stats.elapsed * cores()


def embed_photos(photos: Sequence[Photo], model: ModelResources, stats: Stats) -> EmbeddedPhotos:
    """Embed the photos that the store does not contain, and return the embeddings of all.

    Embeddings are stored even if the model or its server fails halfway.

    Raises:
        OutputError: the store cannot be written, or does not return what was written.
        ServerError: a model server does not answer.
    """
    store = model.store
    shas: dict[Photo, bytes] = {}
    rejections: dict[Photo, UnstoredRejection] = {}
    # Two attempts: a torn file of the store may only show when its rows are read. The store then leaves
    # it out, and the second attempt embeds its photos again.
    for attempt in range(2):
        with stats.time_stage("store"):
            known = store.lookup_digests(photos)
            stored = store.get_statuses(known.values())
        if attempt == 0:
            reused = [stored[sha] for sha in known.values() if sha in stored]
            model.meter.add(len(reused), sum(not status.usable for status in reused))
        shas.update({photo: sha for photo, sha in known.items() if sha in stored})
        missing = [photo for photo in photos if known.get(photo) not in stored and photo not in rejections]
        if missing:
            embedding = _EmbeddingPass(model, model.meter if attempt == 0 else Meter())
            try:
                embedding.run(missing, stats)
            finally:
                new_shas, rows = embedding.answered_shas(), embedding.rows()
                with stats.time_stage("store"):
                    store.append(new_shas, rows)
            shas.update(new_shas)
            rejections.update(embedding.rejections)
            stats.embedded += len(rows.shas)
        with stats.time_stage("store"):
            # Sorted by digest: the head gets the same batches however the store is laid out.
            rows = store.get(shas.values()).sorted_by_digest()
        if len(rows.shas) == len(set(shas.values())):
            stats.reused = len(shas) - stats.embedded
            return EmbeddedPhotos(shas, rejections, rows)
    raise OutputError(
        f"The embedding store {store.directory} does not return the embeddings that were written to it.",
        remedy="Check its disk, or choose another store with --embedding_store.",
    )


@dataclass
class _EmbeddingPass:
    """One pass of new photos through the backbone.

    Outputs are in the order of `_sent`; after a failure they cover its beginning only.

    Attributes:
        model: resources of the model.
        meter: progress meter.
        rejections: photos with a rejection that is not stored.
    """

    model: ModelResources
    meter: Meter
    rejections: dict[Photo, UnstoredRejection] = field(default_factory=dict)
    _shas: dict[Photo, bytes] = field(default_factory=dict)
    _sent: list[FetchedPhoto] = field(default_factory=list)
    _rejected: list[FetchedPhoto] = field(default_factory=list)  # by the converter, for good
    _outputs: list[Mapping[str, NDArray[Any]]] = field(default_factory=list)
    _statuses: list[Status] = field(default_factory=list)
    _unanswered: dict[bytes, UnstoredRejection] = field(default_factory=dict)

    def run(self, photos: Sequence[Photo], stats: Stats) -> None:
        """Prefetch photos and run the backbone on each distinct content that is not in the store."""
        stream = self._new_contents(photos, stats)
        for first in stream:  # without any new content the backbone is not loaded
            with stats.time_stage(START):
                backbone = self.model.backbone
            with stats.time_stage("embed"):
                for output in backbone.imap(contract.EMBED, contract.IMAGE_BYTES, chain([first], stream)):
                    self._take_output(output)
        for photo, sha in self._shas.items():
            if sha in self._unanswered:
                self.rejections[photo] = self._unanswered[sha]

    def _new_contents(self, photos: Sequence[Photo], stats: Stats) -> Iterator[bytes]:
        """Yield the contents for the backbone, each once; record everything else about the photos."""
        seen: set[bytes] = set()
        for photo, fetched in self.model.fetcher.prefetch(photos):
            stats.read_bytes += fetched.size
            for stage, seconds in fetched.seconds.items():
                stats.add_seconds(stage, seconds)
            # Not stored: unread photos, and rejections that another machine or run may not repeat.
            if isinstance(fetched.image, PhotoRejection) and (
                fetched.sha is None or not fetched.image.permanent
            ):
                self.rejections[photo] = UnstoredRejection(fetched.image, fetched.sha)
                self.meter.add(1, 1)
                continue
            assert fetched.sha is not None
            self._shas[photo] = fetched.sha
            # Identical photos are embedded once; the path may be new while the content is not.
            if fetched.sha in seen or self.model.store.filter_present([fetched.sha]):
                self.meter.add(1)
                continue
            seen.add(fetched.sha)
            if isinstance(fetched.image, PhotoRejection):
                self._rejected.append(fetched)
                self.meter.add(1, 1)
                continue
            self._sent.append(replace(fetched, image=b""))  # without the bytes: it is kept to the end
            yield fetched.image

    def _take_output(self, output: Mapping[str, NDArray[Any]]) -> None:
        statuses = [Status(raw.decode()) for raw in output[contract.STATUS]]
        answered = self._sent[len(self._statuses) :]
        for fetched, status, why in zip(answered, statuses, output.get(UNANSWERED, ()), strict=False):
            if why is not None and fetched.sha is not None:
                self._unanswered[fetched.sha] = UnstoredRejection(PhotoRejection(status, why), fetched.sha)
        self._outputs.append(output)
        self._statuses += statuses
        self.meter.add(len(statuses), sum(not status.usable for status in statuses))

    def answered_shas(self) -> dict[Photo, bytes]:
        """Return the sha256 of each photo whose content has a row, here or in the store."""
        unsettled = {fetched.sha for fetched in self._sent[len(self._statuses) :]} | self._unanswered.keys()
        return {photo: sha for photo, sha in self._shas.items() if sha not in unsettled}

    def rows(self) -> Embeddings:
        """Return rows for the store: the answers, followed by the photos that the converter rejected."""
        chosen = [
            row
            for row, fetched in enumerate(self._sent[: len(self._statuses)])
            if fetched.sha not in self._unanswered
        ]
        sent = [self._sent[row] for row in chosen]

        def concatenate(name: str, shape: tuple[int, ...], dtype: type) -> Any:
            blank: Any = np.zeros((len(self._rejected), *shape), dtype)
            parts = [blank[:0], *(output[name] for output in self._outputs)]
            answers: Any = np.concatenate(parts, dtype=dtype, casting="unsafe")
            return np.concatenate([answers[chosen], blank])

        statuses = [self._statuses[row] for row in chosen]
        details = [None if s.usable else f.description for s, f in zip(statuses, sent, strict=True)]
        heights = concatenate(contract.HEIGHT, (), np.int32)
        widths = concatenate(contract.WIDTH, (), np.int32)
        for row, (status, fetched) in enumerate(zip(statuses, sent, strict=True)):
            if fetched.sides and status.usable:  # size of the original, not of the PNG
                heights[row], widths[row] = fetched.sides
        rejected = [f.image.status for f in self._rejected if isinstance(f.image, PhotoRejection)]
        return Embeddings(
            shas=[fetched.sha for fetched in (*sent, *self._rejected) if fetched.sha is not None],
            vectors=concatenate(contract.EMBEDDING, (self.model.store.dimension,), np.float16),
            statuses=statuses + rejected,
            details=details + [fetched.description for fetched in self._rejected],
            heights=heights,
            widths=widths,
        )


def _align_rows(
    photos: Sequence[Photo],
    columns: pa.Table | None,
    embedded: EmbeddedPhotos,
    row_of: Mapping[bytes, int],
    decisions: Decisions,
) -> tuple[PhotoColumns, Decisions]:
    """Bring the facts about each photo and the model's decisions into the order of the photos.

    Args:
        photos: photos of the rows.
        columns: pass-through columns, in the same order.
        embedded: embeddings and rejections.
        row_of: row of each sha256 in the embeddings.
        decisions: decisions in the order of the embeddings.
    """
    import pyarrow as pa

    rows = embedded.embeddings
    shas = [embedded.shas.get(photo) for photo in photos]
    at = np.array([-1 if sha is None else row_of[sha] for sha in shas], np.int64)  # -1: no embedding
    found = at >= 0
    unstored = [embedded.rejections.get(photo) for photo in photos]
    digests = [one.sha if one else sha for one, sha in zip(unstored, shas, strict=True)]
    statuses = [u.rejection.status if u else rows.statuses[row] for u, row in zip(unstored, at, strict=True)]
    details = [u.rejection.detail if u else rows.details[row] for u, row in zip(unstored, at, strict=True)]
    about = PhotoColumns(
        uris=pa.array([photo.uri for photo in photos], pa.string()),
        shas=pa.array([digest and digest.hex() for digest in digests], pa.string()),
        status=schema.encode_statuses(statuses),
        details=pa.array(details, pa.string()),
        heights=np.where(found, rows.heights[at], 0) if len(rows.shas) else np.zeros(len(at), np.int32),
        widths=np.where(found, rows.widths[at], 0) if len(rows.shas) else np.zeros(len(at), np.int32),
        columns=columns,
    )
    return about, decisions.take(at)
