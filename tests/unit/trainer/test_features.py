"""Embeddings of the usable photos: in memory or in a file without a name, the same numbers."""

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
from trainer.evaluation.features import Verdicts, embeddings_of, probabilities_of
from trainer.heads import HeadSettings

DIMENSION, COUNT = 6, 50


def sha(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest()


@pytest.fixture
def store(tmp_path: Path) -> EmbeddingStore:
    """COUNT photos in three files; the number n has embedding n, n, ..."""
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
def test_rows_come_in_the_order_of_the_photos_each_as_often_as_it_is_asked_for(
    store: EmbeddingStore, tmp_path: Path, memory: int
) -> None:
    numbers = [7, 3, 49, 3, 0, 12, 7, 7, 31]
    place = tmp_path / "place"
    place.mkdir()
    found = embeddings_of(examples(numbers), store, HeadSettings(memory=memory, directory=place))
    assert found.dtype == np.float16
    assert isinstance(found, np.memmap) == (memory == 0)
    np.testing.assert_array_equal(found, np.repeat(np.array(numbers)[:, None], DIMENSION, axis=1))
    assert list(place.iterdir()) == []  # the file has no name, so nothing is left of a killed run


@pytest.mark.parametrize("how", ["told before", "found when it is full"])
def test_no_room_for_the_file_is_said_before_anything_is_written(
    store: EmbeddingStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, os.strerror(28))

    if how == "told before":
        usage = type("Usage", (), {"free": 10})
        monkeypatch.setattr(features.shutil, "disk_usage", lambda _: usage)
    else:
        monkeypatch.setattr(features.os, "posix_fallocate", full)
    with pytest.raises(OutputError, match=r"of 3 photos take 0\.0 GB.*no room: (No|not)") as caught:
        embeddings_of(examples([1, 2, 3]), store, HeadSettings(memory=0, directory=tmp_path))
    assert "HUBHEAD_CACHE_DIR" in caught.value.remedy


def test_a_photo_that_is_not_in_the_store_is_said(store: EmbeddingStore) -> None:
    with pytest.raises(InputError, match="1 photos have gone"):
        embeddings_of(examples([1, COUNT + 1]), store)


def test_verdicts_in_blocks_are_those_of_all_probabilities() -> None:
    random = np.random.default_rng(0)
    embeddings = random.normal(size=(5000, 8)).astype(np.float16)
    targets = random.integers(0, 3, 5000)
    fitted, _ = heads.fit(embeddings[:300], targets[:300], 3)
    told = fitted.probabilities(embeddings)
    found = Verdicts.of(fitted, embeddings, targets)
    np.testing.assert_array_equal(found.best, told.argmax(axis=1))
    np.testing.assert_allclose(found.score, told.max(axis=1), atol=1e-6)
    np.testing.assert_allclose(found.own, told[np.arange(5000), targets], atol=1e-6)
    rows = random.permutation(5000)[:4000]
    np.testing.assert_allclose(probabilities_of(fitted, embeddings, rows), told[rows], atol=1e-6)
    assert probabilities_of(fitted, embeddings, rows[:0]).shape == (0, 3)
