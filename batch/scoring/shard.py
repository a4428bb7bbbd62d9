"""Processing of one shard, without Beam: embed its photos, run the heads, build the rows."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

import numpy as np

from batch.inputs.listing import Photo
from batch.monitoring import sample_photos
from batch.monitoring.drift import Moments
from batch.monitoring.stats import Stats
from batch.output import schema
from batch.output.schema import PhotoColumns
from batch.scoring import head_runner
from batch.scoring.embed import START, EmbeddedPhotos, ModelResources, embed_photos
from batch.shards.shard import Shard
from serving.bundle import Bundle
from serving.contract import Decisions
from serving.process import cores

if TYPE_CHECKING:
    import pyarrow as pa


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
            about, decided = _align_rows(photos, columns, embedded, decisions)
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


def _align_rows(
    photos: Sequence[Photo],
    columns: pa.Table | None,
    embedded: EmbeddedPhotos,
    decisions: Decisions,
) -> tuple[PhotoColumns, Decisions]:
    """Bring the facts about each photo and the model's decisions into the order of the photos.

    Args:
        photos: photos of the rows.
        columns: pass-through columns, in the same order.
        embedded: embeddings and rejections.
        decisions: decisions in the order of the embeddings.
    """
    import pyarrow as pa

    rows = embedded.embeddings
    row_of = rows.row_by_digest()
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
