"""What happens to one shard, without Beam: photos read, embedded where they are new, scored.

Reading, decoding and the model overlap: reader threads stay a little ahead of the
micro-batches that the model takes on all cores (`serving.runtime`). What the graph does not
decode is converted in these threads (`serving.convert`).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from batch import examples, head, photos, table
from batch.drift import Moments
from batch.embeddings import Embeddings, EmbeddingStore, photo_sha
from batch.photos import Photo
from batch.shards import Shard
from batch.stats import Meter, Stats
from batch.table import About
from serving import bundle, contract
from serving.bundle import Bundle
from serving.contract import Decisions, Refusal, Status
from serving.convert import Converted, Converter, Limits
from serving.errors import OutputError

if TYPE_CHECKING:
    import pyarrow as pa

    from serving.runtime import Model

READERS = 8
"""Threads that wait for the storage, so that an object store's latency is not the model's."""

START = "start"
"""The stage of loading and warming the model, which is left out of a shard's elapsed time."""

_SHOWN_BYTES = 8
_UNLIMITED = 1 << 62


@dataclass(frozen=True)
class Refused:
    """A photo that never reached the model, for a reason that is not kept.

    Attributes:
        refusal: why.
        sha: sha256 of its bytes; None where they were not read.
    """

    refusal: Refusal
    sha: bytes | None = None


@dataclass(frozen=True)
class Embedded:
    """The photos of a shard with what the model made of them.

    Attributes:
        shas: sha256 of every photo that the store knows, now or before.
        refusals: the others, which may have another fate the next time.
        rows: a row for each distinct sha256 of `shas`.
    """

    shas: Mapping[Photo, bytes]
    refusals: Mapping[Photo, Refused]
    rows: Embeddings


class Worker:
    """What the shards of a process share: a model, loaded when first needed, and the store.

    Args:
        model_path: the bundle's version directory.
        store: of the bundle's backbone.
        meter: what is told of progress.
    """

    def __init__(self, model_path: Path, store: EmbeddingStore, meter: Meter) -> None:
        self.bundle: Bundle = bundle.read(model_path)
        manifest = self.bundle.manifest
        self.store = store
        self.meter = meter
        limits = manifest.preprocessing
        self.max_bytes = int(limits.get("max_bytes", _UNLIMITED))
        most = int(limits.get("max_whole_pixels", Limits.max_pixels))
        self.converter = Converter(Limits(max_bytes=self.max_bytes, max_pixels=most))
        self._warm: set[str] = set()

    @cached_property
    def model(self) -> Model:
        """The model, loaded when first asked for: a shard that is all known may not need it."""
        from serving import runtime

        return runtime.load(self.bundle.path)

    def warm(self, signature: str, stats: Stats) -> Model:
        """The model with a signature ready to run; what that takes is start-up, not work on photos."""
        if signature not in self._warm:
            with stats.timed(START):
                blank: dict[str, Any] = {
                    contract.EMBED: {contract.IMAGE_BYTES: [b""]},
                    contract.CLASSIFY_EMBEDDING: {
                        contract.EMBEDDING: np.zeros((1, self.store.dimension), np.float32)
                    },
                }
                self.model.run(signature, blank[signature])
            self._warm.add(signature)
        return self.model


def embed_shard(shard: Shard, worker: Worker) -> Stats:
    """Bring the embeddings of a shard's photos into the store.

    Raises:
        OutputError: the store cannot be written.
    """
    start = time.perf_counter()
    stats = Stats(photos=len(shard.photos))
    _embed(shard, worker, stats)
    _finish(stats, time.perf_counter() - start)
    return stats


def score_shard(shard: Shard, workers: Sequence[Worker], scored_at: datetime) -> tuple[pa.Table, Stats]:
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
    row_of = embedded.rows.rows()
    usable = table.USABLE[table.codes(embedded.rows.statuses)]
    tables: dict[str, pa.Table] = {}
    for number, worker in enumerate(workers):
        run = partial(worker.warm(contract.CLASSIFY_EMBEDDING, stats).run, contract.CLASSIFY_EMBEDDING)
        with stats.timed("classify"):
            said = head.decide(run, worker.bundle, embedded.rows.vectors, usable)
        with stats.timed("rows"):
            wanted, columns = of_model(shard, number)
            about, decisions = _about(wanted, columns, embedded, row_of, said)
            rows_of = table.scores_table(about, decisions, worker.bundle, scored_at)
        tables[model_key(worker.bundle)] = rows_of
        stats.models[model_key(worker.bundle)] = table.counted(about, decisions, worker.bundle)
    with stats.timed("sketch"):
        stats.embeddings = Moments.of(embedded.rows.vectors[usable])
        stats.examples = examples.choose(tables)
    rows = pa.concat_tables(tables.values())
    stats.rows = rows.num_rows
    _finish(stats, time.perf_counter() - start)
    return rows, stats


def model_key(about: Bundle) -> str:
    """How a model is called where several are told apart."""
    return f"{about.name}/{about.version}"


def of_model(shard: Shard, number: int) -> tuple[Sequence[Photo], pa.Table | None]:
    """The photos that are to be scored with a model, and what passes through to their rows."""
    if shard.wanted is None:
        return shard.photos, shard.columns
    chosen = [row for row, mask in enumerate(shard.wanted) if mask >> number & 1]
    columns = shard.columns.take(chosen) if shard.columns is not None else None
    return [shard.photos[row] for row in chosen], columns


def _embed(shard: Shard, worker: Worker, stats: Stats) -> Embedded:
    """`embed_photos`, its statuses counted."""
    embedded = embed_photos(shard.photos, worker, stats)
    rows = embedded.rows.rows()
    stats.statuses.update(refused.refusal.status.value for refused in embedded.refusals.values())
    stats.statuses.update(embedded.rows.statuses[rows[sha]].value for sha in embedded.shas.values())
    return embedded


def _finish(stats: Stats, elapsed: float) -> None:
    from serving import runtime

    stats.elapsed = elapsed - stats.seconds.get(START, 0.0)
    stats.core_seconds = stats.elapsed * runtime.cores()


def embed_photos(wanted: Sequence[Photo], worker: Worker, stats: Stats) -> Embedded:
    """Embed what the store does not have, keep it there, and give everything back.

    Raises:
        OutputError: the store cannot be written, or does not give back what was written.
    """
    store = worker.store
    shas: dict[Photo, bytes] = {}
    refusals: dict[Photo, Refused] = {}
    for attempt in range(2):  # a torn file may show itself only when its rows are read
        with stats.timed("store"):
            known = store.known(wanted)
            there = store.statuses(known.values())
        if attempt == 0:
            old = [there[sha] for sha in known.values() if sha in there]
            worker.meter.add(len(old), sum(not status.usable for status in old))
        shas.update({photo: sha for photo, sha in known.items() if sha in there})
        todo = [photo for photo in wanted if known.get(photo) not in there and photo not in refusals]
        if todo:
            fresh_shas, fresh_refusals, fresh = _run(todo, worker, stats, count=attempt == 0)
            shas.update(fresh_shas)
            refusals.update(fresh_refusals)
            stats.embedded += len(fresh.shas)
            with stats.timed("store"):
                store.append(fresh_shas, fresh)
        with stats.timed("store"):
            # In the order of the digests: the head sees the same batch however the store is laid out.
            rows = store.get(shas.values()).sorted()
        if len(rows.shas) == len(set(shas.values())):
            stats.reused = len(shas) - stats.embedded
            return Embedded(shas, refusals, rows)
    raise OutputError(
        f"The embedding store {store.directory} does not give back what was written to it.",
        remedy="Check its disk, or give another place with --embedding_store.",
    )


def _run(
    todo: Sequence[Photo], worker: Worker, stats: Stats, *, count: bool
) -> tuple[dict[Photo, bytes], dict[Photo, Refused], Embeddings]:
    """Read photos and run the model on each content that is new, reading ahead of it."""
    shas: dict[Photo, bytes] = {}
    refusals: dict[Photo, Refused] = {}
    fresh: list[_Read] = []
    hopeless: list[_Read] = []
    seen: set[bytes] = set()
    add = worker.meter.add if count else Meter().add

    def contents() -> Iterator[bytes]:
        for photo, read in _read_ahead(todo, worker):
            stats.read_bytes += read.size
            for stage, seconds in read.seconds.items():
                stats.add_seconds(stage, seconds)
            if isinstance(read.image, Refusal) and (read.sha is None or not read.image.lasting):
                refusals[photo] = Refused(read.image, read.sha)
                add(1, 1)
                continue
            assert read.sha is not None
            shas[photo] = read.sha
            if read.sha in seen or worker.store.have([read.sha]):
                add(1)
                continue
            seen.add(read.sha)
            if isinstance(read.image, Refusal):
                hopeless.append(read)
                add(1, 1)
                continue
            fresh.append(replace(read, image=b""))  # what is kept until the end is small
            yield read.image

    outputs = []
    stream = contents()
    for first in stream:  # no content that is new: no backbone is loaded
        model = worker.warm(contract.EMBED, stats)
        with stats.timed("embed"):
            for output in model.imap(contract.EMBED, contract.IMAGE_BYTES, chain([first], stream)):
                outputs.append(output)
                statuses = [Status(raw.decode()) for raw in output[contract.STATUS]]
                add(len(statuses), sum(not status.usable for status in statuses))
    return shas, refusals, _collect(fresh, hopeless, outputs, worker.store.dimension)


def _collect(
    fresh: Sequence[_Read], hopeless: Sequence[_Read], outputs: Sequence[Mapping[str, Any]], dimension: int
) -> Embeddings:
    """The outputs of the micro-batches as one record, and behind them what never reached the model."""

    def joined(name: str, shape: tuple[int, ...], dtype: type) -> Any:
        blank: Any = np.zeros((len(hopeless), *shape), dtype)
        return np.concatenate([*(output[name] for output in outputs), blank]).astype(dtype)

    statuses = [Status(raw.decode()) for output in outputs for raw in output[contract.STATUS]]
    details = [None if s.usable else read.about for s, read in zip(statuses, fresh, strict=True)]
    heights, widths = joined(contract.HEIGHT, (), np.int32), joined(contract.WIDTH, (), np.int32)
    for row, (status, read) in enumerate(zip(statuses, fresh, strict=True)):
        if read.sides and status.usable:  # of the photo, not of its PNG
            heights[row], widths[row] = read.sides
    return Embeddings(
        shas=[read.sha for read in (*fresh, *hopeless) if read.sha is not None],
        vectors=joined(contract.EMBEDDING, (dimension,), np.float16),
        statuses=statuses + [read.image.status for read in hopeless if isinstance(read.image, Refusal)],
        details=details + [read.about for read in hopeless],
        heights=heights,
        widths=widths,
    )


@dataclass(frozen=True)
class _Read:
    """A photo as it came from the storage.

    Attributes:
        image: what the model gets: its bytes, or the PNG it was converted to; or why there is neither.
        about: what can be said of it where it is refused.
        seconds: by stage.
        sha: sha256 of the bytes as they are stored; None where they were not read.
        size: bytes that were read.
        sides: height and width of a photo that was converted.
    """

    image: bytes | Refusal
    about: str
    seconds: Mapping[str, float]
    sha: bytes | None = None
    size: int = 0
    sides: tuple[int, int] | None = None


def _read(photo: Photo, worker: Worker) -> _Read:
    """Read a photo, and convert it where the graph does not decode it and the store does not know it."""
    start = time.perf_counter()
    if photo.size > worker.max_bytes:  # a film among the photos is not worth its memory
        detail = f"{photo.size} bytes, more than the {worker.max_bytes} allowed"
        return _Read(Refusal(Status.TOO_LARGE, detail), detail, {})
    try:
        content = photos.read(photo)
    except OSError as error:
        seconds = {"read": time.perf_counter() - start}
        return _Read(Refusal(Status.UNREADABLE, str(error)), str(error), seconds)
    sha = photo_sha(content)
    plain = _Read(content, describe(content), {}, sha, len(content))
    seconds = {"read": time.perf_counter() - start}
    result = None if worker.store.have([sha]) else worker.converter.convert(content)
    if result is None:
        return replace(plain, seconds=seconds)
    seconds["convert"] = time.perf_counter() - start - seconds["read"]
    if isinstance(result, Converted):
        sides = result.height, result.width
        return replace(plain, image=result.content, seconds=seconds, sides=sides)
    return replace(plain, image=result, about=result.detail, seconds=seconds)


def describe(content: bytes) -> str:
    """What can be said of a refused photo by its bytes alone, so that every run says the same."""
    return f"{len(content)} bytes" + (f", beginning {content[:_SHOWN_BYTES].hex(' ')}" if content else "")


def _read_ahead(todo: Sequence[Photo], worker: Worker) -> Iterator[tuple[Photo, _Read]]:
    """Each photo with its bytes, in order; a bounded number of them is in memory at any time."""
    waiting: deque[tuple[Photo, Future[_Read]]] = deque()
    with ThreadPoolExecutor(READERS, "read") as pool:
        for photo in todo:
            waiting.append((photo, pool.submit(_read, photo, worker)))
            if len(waiting) > 2 * READERS:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()


def _about(
    wanted: Sequence[Photo],
    columns: pa.Table | None,
    embedded: Embedded,
    row_of: Mapping[bytes, int],
    said: Decisions,
) -> tuple[About, Decisions]:
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
    about = About(
        uris=pa.array([photo.uri for photo in wanted], pa.string()),
        shas=pa.array([digest and digest.hex() for digest in digests], pa.string()),
        status=table.codes(statuses),
        details=pa.array(details, pa.string()),
        heights=np.where(there, rows.heights[at], 0) if len(rows.shas) else np.zeros(len(at), np.int32),
        widths=np.where(there, rows.widths[at], 0) if len(rows.shas) else np.zeros(len(at), np.int32),
        columns=columns,
    )
    return about, said.taken(at)
