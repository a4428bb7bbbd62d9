"""Synthetic photos and embeddings for tests of the embedding store."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from batch.embeddings import Embeddings, EmbeddingStore, hash_photo
from batch.inputs.listing import Photo
from serving.contract import Status

D = 8


def photo(number: int) -> Photo:
    return Photo(f"/photos/{number}.jpg", 100 + number, 1_600_000_000_000_000_000 + number)


def sha(number: int) -> bytes:
    return hash_photo(b"%d" % number)


def rows(numbers: list[int], *, rejected: tuple[int, ...] = ()) -> Embeddings:
    """Return embeddings that encode the number of their photo; those of `rejected` are not usable."""
    return Embeddings(
        shas=[sha(number) for number in numbers],
        vectors=np.array([[number + i / 8 for i in range(D)] for number in numbers], np.float16).reshape(
            -1, D
        ),
        statuses=[Status.CORRUPT if number in rejected else Status.OK for number in numbers],
        details=["3 bytes" if number in rejected else None for number in numbers],
        heights=np.array(numbers, np.int32),
        widths=np.array(numbers, np.int32) * 2,
    )


def fill(store: EmbeddingStore, numbers: list[int], *, rejected: tuple[int, ...] = ()) -> None:
    store.append({photo(n): sha(n) for n in numbers}, rows(numbers, rejected=rejected))


def reopen(store: EmbeddingStore) -> EmbeddingStore:
    return EmbeddingStore(store.root, store.fingerprint, D)


def list_files(store: EmbeddingStore, kind: str) -> list[Path]:
    return sorted(Path(store.directory).glob(f"{kind}-*.parquet"))
