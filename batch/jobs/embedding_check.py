"""Comparison of stored embeddings with those that an engine computes now."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from batch.embeddings import Embeddings, EmbeddingStore
from batch.embeddings.rows import bound_difference
from batch.embeddings.sampling import sample_photos
from batch.monitoring.stats import Meter, Progress, Stats
from batch.scoring.embed import embed_photos
from batch.scoring.worker import ShardWorker
from serving.bundle import Bundle
from serving.process import get_cpu_model

_SPAN = 2.0 * 65504
"""Largest difference of two float16 numbers; reported for NaN."""


@dataclass
class EngineComparison:
    """Stored embeddings of a sample of photos beside those that an engine computes now.

    Attributes:
        engine, cpu: what computed them, and on which CPU.
        sampled: photos of the sample.
        unreadable: photos that can no longer be read.
        changed: photos whose content has changed since it was embedded.
        compared: photos that were compared.
        other_status: uris of the photos whose stored status is another one.
        beyond: uris of the photos with a number that rounding does not explain (`bound_difference`).
        numbers: numbers of the embeddings that were compared.
        equal: those that are equal.
        largest_units: largest difference in units in the last place of float16; large next to zero.
        largest_difference: largest absolute difference.
    """

    engine: str
    cpu: str
    sampled: int
    unreadable: int = 0
    changed: int = 0
    compared: int = 0
    other_status: list[str] = field(default_factory=list)
    beyond: list[str] = field(default_factory=list)
    numbers: int = 0
    equal: int = 0
    largest_units: int = 0
    largest_difference: float = 0.0

    @property
    def failed(self) -> bool:
        """True if a photo differs by more than rounding, or none could be compared."""
        return bool(self.other_status or self.beyond) or not self.compared


def compare_with_engine(
    store: EmbeddingStore,
    model: Bundle,
    engine: str,
    *,
    sample: int,
    seed: int = 0,
    progress: Callable[[Progress], None] | None = None,
) -> EngineComparison:
    """Embed a sample of the photos in a store again, and compare. The store is not changed.

    Args:
        store: the store, of the backbone of the bundle.
        model: bundle with that backbone.
        engine: what runs it, one of serving.contract.ENGINES.
        sample: number of photos.
        seed: seed of their choice.
        progress: called with the progress.

    Raises:
        BundleError: the bundle cannot be loaded, or is not made for the engine.
        InputError: the engine is not installed.
        OutputError: the directory of temporary files cannot be written.
    """
    photos = sample_photos(store.root, store.fingerprint, sample, seed)
    with tempfile.TemporaryDirectory(prefix="hubhead-check-") as directory:
        worker = ShardWorker((str(model.path),), directory, "", engine=engine)
        [resources] = worker.load_models(Meter(len(photos), progress))
        stats = Stats()
        found = embed_photos(list(photos), resources, stats)
    result = EngineComparison(
        next(iter(stats.engines), engine),
        get_cpu_model(),
        len(photos),
        unreadable=len(found.rejections),
        changed=sum(found.shas[photo] != sha for photo, sha in photos.items() if photo in found.shas),
    )
    uris = {sha: photo.uri for photo, sha in photos.items() if found.shas.get(photo) == sha}
    _compare_rows(result, store.get(uris), found.embeddings, uris)
    return result


def _compare_rows(
    result: EngineComparison, stored: Embeddings, computed: Embeddings, uris: Mapping[bytes, str]
) -> None:
    """Add the comparison of the rows of the same content, whose photos have the given uris."""
    row_of = computed.row_by_digest()
    pairs = [(row, row_of[sha]) for row, sha in enumerate(stored.shas) if sha in row_of]
    result.compared = len(pairs)
    for row, other in pairs:
        uri = uris[stored.shas[row]]
        if stored.statuses[row] != computed.statuses[other]:
            result.other_status.append(uri)
            continue
        if not stored.statuses[row].usable:
            continue
        old, new = stored.vectors[row], computed.vectors[other]
        result.numbers += len(old)
        result.equal += int((old == new).sum())
        units = np.abs(_count_units(old) - _count_units(new))
        difference = np.nan_to_num(np.abs(old.astype(np.float64) - new), nan=_SPAN, posinf=_SPAN)
        result.largest_units = max(result.largest_units, int(units.max()))
        result.largest_difference = max(result.largest_difference, float(difference.max()))
        if (difference > bound_difference(old, new)).any():
            result.beyond.append(uri)


def _count_units(values: NDArray[np.float16]) -> NDArray[np.int64]:
    """Return how many float16 numbers lie between zero and each value, negative below zero."""
    bits = values.view(np.int16).astype(np.int64)
    return np.where(bits < 0, -(1 << 15) - bits, bits)
