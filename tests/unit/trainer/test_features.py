"""Features: embeddings of the usable photos in memory or mapped from an unnamed file, and predictions."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from batch.embeddings import Embeddings, EmbeddingStore
from serving.contract import Status
from serving.errors import InputError, OutputError
from trainer import heads
from trainer.dataset import Example
from trainer.evaluation import features
from trainer.evaluation.features import HeadPredictions, load_embeddings, predict_probabilities
from trainer.heads import HeadSettings

DIMENSION, COUNT = 6, 50


def sha(number: int) -> bytes:
    """Return the SHA-256 that stands for photo `number`."""
    return hashlib.sha256(str(number).encode()).digest()


@pytest.fixture
def store(tmp_path: Path) -> EmbeddingStore:
    """An embedding store with COUNT photos in three files; photo n has the embedding n, n, ..."""
    store = EmbeddingStore(str(tmp_path / "store"), "backbone", DIMENSION)
    for part in np.array_split(np.random.default_rng(0).permutation(COUNT), 3):
        store.append(
            {},
            Embeddings(
                shas=[sha(number) for number in part],
                vectors=np.repeat(part[:, None], DIMENSION, axis=1).astype(np.float16),
                statuses=[Status.OK] * len(part),
                details=[None] * len(part),
                heights=np.ones(len(part), np.int32),
                widths=np.ones(len(part), np.int32),
            ),
        )
    return store


def examples(numbers: list[int]) -> list[Example]:
    return [Example(f"{row}.jpg", sha(number).hex(), row % 2) for row, number in enumerate(numbers)]


@pytest.mark.parametrize("memory", [0, 1 << 20], ids=["a file", "memory"])
def test_embeddings_are_in_the_order_of_the_photos_with_duplicates(
    store: EmbeddingStore, tmp_path: Path, memory: int
) -> None:
    numbers = [7, 3, 49, 3, 0, 12, 7, 7, 31]
    directory = tmp_path / "directory"
    directory.mkdir()
    found = load_embeddings(examples(numbers), store, HeadSettings(memory=memory, directory=directory))
    assert found.dtype == np.float16
    assert isinstance(found, np.memmap) == (memory == 0)
    np.testing.assert_array_equal(found, np.repeat(np.array(numbers)[:, None], DIMENSION, axis=1))
    assert list(directory.iterdir()) == []  # the file is unnamed, so a killed run leaves nothing


@pytest.mark.parametrize("how", ["checked before", "full while writing"])
def test_full_disk_is_an_error_before_anything_is_written(
    store: EmbeddingStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, os.strerror(28))

    if how == "checked before":
        usage = type("Usage", (), {"free": 10})
        monkeypatch.setattr(features.shutil, "disk_usage", lambda _: usage)
    else:
        monkeypatch.setattr(features.os, "posix_fallocate", full)
    with pytest.raises(OutputError, match=r"of 3 photos take 0\.0 GB.*not enough space: (No|not)") as caught:
        load_embeddings(examples([1, 2, 3]), store, HeadSettings(memory=0, directory=tmp_path))
    assert "HUBHEAD_CACHE_DIR" in caught.value.remedy


def test_photo_missing_from_the_store_is_an_error(store: EmbeddingStore) -> None:
    with pytest.raises(InputError, match="1 photos were not found"):
        load_embeddings(examples([1, COUNT + 1]), store)


def test_predictions_by_blocks_equal_those_of_all_probabilities() -> None:
    random = np.random.default_rng(0)
    embeddings = random.normal(size=(5000, 8)).astype(np.float16)
    targets = random.integers(0, 3, 5000)
    fitted, _ = heads.fit(embeddings[:300], targets[:300], 3)
    expected = fitted.probabilities(embeddings)
    found = HeadPredictions.from_embeddings(fitted, embeddings, targets)
    np.testing.assert_array_equal(found.best, expected.argmax(axis=1))
    np.testing.assert_allclose(found.score, expected.max(axis=1), atol=1e-6)
    np.testing.assert_allclose(found.own, expected[np.arange(5000), targets], atol=1e-6)
    rows = random.permutation(5000)[:4000]
    np.testing.assert_allclose(predict_probabilities(fitted, embeddings, rows), expected[rows], atol=1e-6)
    assert predict_probabilities(fitted, embeddings, rows[:0]).shape == (0, 3)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_embedding_that_is_not_finite_is_an_error_that_names_the_photo(
    store: EmbeddingStore, value: float
) -> None:
    vectors = np.full((1, DIMENSION), 1, np.float16)
    vectors[0, 1] = value
    one = np.ones(1, np.int32)
    store.append({}, Embeddings([sha(COUNT)], vectors, [Status.OK], [None], one, one))
    with pytest.raises(InputError, match=r"not finite for 1 photos or more, such as 2\.jpg\. Use another"):
        load_embeddings(examples([1, 2, COUNT]), store)
