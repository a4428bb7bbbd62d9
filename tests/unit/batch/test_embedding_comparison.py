"""Sampling of an embedding store, and the difference that two engines may have in an embedding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from batch.embeddings import EmbeddingStore, maintenance
from batch.embeddings.rows import bound_difference
from batch.embeddings.sampling import sample_photos
from batch.jobs.embedding_check import _count_units
from tests.support.embedding_store import D, fill, list_files, photo, sha


@pytest.fixture
def store(tmp_path: Path) -> EmbeddingStore:
    store = EmbeddingStore(str(tmp_path / "store"), "f1", D)
    for start in range(0, 60, 20):
        fill(store, list(range(start, start + 20)))
    return store


def test_the_same_seed_samples_the_same_photos_however_files_are_merged(store: EmbeddingStore) -> None:
    first = sample_photos(store.root, "f1", 12, seed=0)
    assert len(first) == 12
    assert first.items() <= {photo(number): sha(number) for number in range(60)}.items()
    others = [sample_photos(store.root, "f1", 12, seed=seed) for seed in range(1, 6)]
    assert any(other != first for other in others)
    maintenance.compact(store.root, "f1")
    assert sample_photos(store.root, "f1", 12, seed=0) == first


def test_every_photo_is_sampled_about_as_often(store: EmbeddingStore) -> None:
    counts = dict.fromkeys(range(60), 0)
    numbers = {photo(number): number for number in range(60)}
    for seed in range(120):
        for chosen in sample_photos(store.root, "f1", 15, seed):
            counts[numbers[chosen]] += 1
    # 30 expected; binomial, standard deviation 4.7
    assert min(counts.values()) >= 10
    assert max(counts.values()) <= 50


def test_a_small_store_is_sampled_as_a_whole_without_its_corrupt_files(store: EmbeddingStore) -> None:
    assert len(sample_photos(store.root, "f1", 1000, seed=0)) == 60
    list_files(store, "index")[0].write_bytes(b"broken")
    assert len(sample_photos(store.root, "f1", 1000, seed=0)) == 40


def test_units_in_the_last_place_count_float16_numbers_across_zero() -> None:
    smallest = np.float16(2**-24)
    values = np.array([-2 * smallest, -smallest, -0.0, 0.0, smallest, 1.0, np.nextafter(np.float16(1), 2)])
    units = _count_units(values.astype(np.float16))
    assert units[:5].tolist() == [-2, -1, 0, 0, 1]
    assert units[6] - units[5] == 1


def test_rounding_is_within_the_bound_and_a_wrong_number_is_not() -> None:
    random = np.random.default_rng(0)
    exact = (random.normal(size=4096) * 3).astype(np.float32)
    other = exact + random.uniform(-1e-4, 1e-4, 4096).astype(np.float32) * np.abs(exact).max()
    one, two = exact.astype(np.float16), other.astype(np.float16)
    assert (np.abs(one.astype(np.float64) - two) <= bound_difference(one, two)).all()
    two[7] += np.float16(0.02)
    beyond = np.abs(one.astype(np.float64) - two) > bound_difference(one, two)
    assert beyond.sum() == 1
    two[8] = np.inf
    assert np.isfinite(bound_difference(one, two)).all()
