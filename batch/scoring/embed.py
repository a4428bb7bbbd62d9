"""Embedding of photos: read and convert ahead of the model, embed each new content once, store the results.

Reading, decoding and the model overlap: reader threads stay slightly ahead of the micro-batches that the
model runs on all cores (`serving.runtime`), or of the requests to a model server
(`batch.scoring.remote_backbone`). The reader threads also convert formats that the graph does not decode
(`serving.photos.converter`).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from batch.embeddings import Embeddings, EmbeddingStore
from batch.inputs.listing import Photo
from batch.monitoring.stats import Meter, Stats
from batch.scoring.head_runner import HeadRunner
from batch.scoring.prefetch import FetchedPhoto, PhotoFetcher
from serving import contract
from serving.bundle import Bundle
from serving.contract import PhotoRejection, Status
from serving.errors import OutputError

START = "start"
"""Stage of loading and warming up the model. It does not count towards a shard's elapsed time."""

UNANSWERED = "unanswered"
"""Additional output beside those of `embed`, object [N]: None, or why a photo got no embedding although a
later run may get one. `batch.scoring.remote_backbone` returns it."""


class Backbone(Protocol):
    """Model that embeds photos: a `serving.runtime.Model`, or a model server.

    Attributes:
        engine, cpu: what runs it, and on which CPU (batch.monitoring.engines.EngineRecord).
    """

    engine: str
    cpu: str

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
        self._connecting = threading.Lock()

    @property
    def bundle(self) -> Bundle:
        """The bundle of the model."""
        return self.head.bundle

    @property
    def backbone(self) -> Backbone:
        """The backbone, loaded on first use, once in whichever thread."""
        with self._connecting:
            return self._connected

    @cached_property
    def _connected(self) -> Backbone:
        return self._connect()


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
            if embedding.answered:
                stats.count_engine(model.backbone.engine, model.backbone.cpu, embedding.answered)
        with stats.time_stage("store"):
            # Sorted by digest: the head gets the same batches however the store is laid out.
            rows = store.get(shas.values())
        if len(rows.shas) == len(set(shas.values())):
            stats.reused = len(shas) - stats.embedded
            return EmbeddedPhotos(shas, rejections, rows)
    raise OutputError(
        f"The embedding store {store.directory} does not return the embeddings that were written to it.",
        remedy="Check its disk, or choose another store with --embedding_store.",
    )


_Row = tuple[bytes, NDArray[Any], Status, str | None, int, int]
"""A row of Embeddings, in the order of its fields."""


@dataclass
class _EmbeddingPass:
    """One pass of new photos through the backbone.

    Attributes:
        model: resources of the model.
        meter: progress meter.
        rejections: photos with a rejection that is not stored.
    """

    model: ModelResources
    meter: Meter
    rejections: dict[Photo, UnstoredRejection] = field(default_factory=dict)
    _shas: dict[Photo, bytes] = field(default_factory=dict)
    _sent: deque[FetchedPhoto] = field(default_factory=deque)  # sent to the backbone and not yet answered
    _rows: list[_Row] = field(default_factory=list)  # from the backbone
    _rejected: list[_Row] = field(default_factory=list)  # by the converter, for good
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
                blank = np.zeros(self.model.store.dimension, np.float16)
                self._rejected.append((fetched.sha, blank, fetched.image.status, fetched.description, 0, 0))
                self.meter.add(1, 1)
                continue
            self._sent.append(replace(fetched, image=b""))  # without the bytes: it is kept to the end
            yield fetched.image

    def _take_output(self, output: Mapping[str, NDArray[Any]]) -> None:
        statuses = [Status(raw.decode()) for raw in output[contract.STATUS]]
        columns = [output[name] for name in (contract.EMBEDDING, contract.HEIGHT, contract.WIDTH)]
        reasons = output.get(UNANSWERED, [None] * len(statuses))
        self.meter.add(len(statuses), sum(not status.usable for status in statuses))
        for status, vector, height, width, reason in zip(statuses, *columns, reasons, strict=True):
            fetched = self._sent.popleft()
            assert fetched.sha is not None
            if reason is not None:
                self._unanswered[fetched.sha] = UnstoredRejection(PhotoRejection(status, reason), fetched.sha)
                continue
            detail = None if status.usable else fetched.description
            # The size is that of the original, not of the PNG that it was converted to.
            sides = fetched.sides if fetched.sides and status.usable else (height, width)
            self._rows.append((fetched.sha, vector, status, detail, *sides))

    @property
    def answered(self) -> int:
        """Number of contents that the backbone answered."""
        return len(self._rows)

    def answered_shas(self) -> dict[Photo, bytes]:
        """Return the sha256 of each photo whose content has a row, here or in the store."""
        unsettled = {fetched.sha for fetched in self._sent} | self._unanswered.keys()
        return {photo: sha for photo, sha in self._shas.items() if sha not in unsettled}

    def rows(self) -> Embeddings:
        """Return rows for the store: the answers, followed by the photos that the converter rejected."""
        rows = [*self._rows, *self._rejected]
        shas, vectors, statuses, details, heights, widths = zip(*rows, strict=True) if rows else [()] * 6
        return Embeddings(
            shas,
            np.array(vectors, np.float16).reshape(-1, self.model.store.dimension),
            statuses,
            details,
            np.array(heights, np.int32),
            np.array(widths, np.int32),
        )
