"""Exact search for the nearest photos: the index beside the store, and the cosines."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from batch.embeddings import Embeddings, EmbeddingStore, maintenance
from batch.embeddings.clusters import fit_centres
from batch.embeddings.nearest import (
    BLOCK_ROWS,
    IndexChanged,
    NearestIndex,
    iter_ranked,
    locate_index,
    read_dimension,
    split_rows,
)
from serving.contract import Status
from serving.errors import InputError
from tests.support.embedding_store import fill, photo, sha

D = 24


def append(
    store: EmbeddingStore, vectors: np.ndarray, first: int = 0, rejected: tuple[int, ...] = ()
) -> None:
    """Add embeddings float16 [n,D] of the photos from a number on."""
    numbers = range(first, first + len(vectors))
    zeros = np.zeros(len(vectors), np.int32)
    store.append(
        {photo(number): sha(number) for number in numbers},
        Embeddings(
            [sha(number) for number in numbers],
            vectors,
            [Status.CORRUPT if number in rejected else Status.OK for number in numbers],
            [None] * len(vectors),
            zeros,
            zeros,
        ),
    )


def draw(count: int, seed: int = 0) -> np.ndarray:
    """Return random embeddings with large, tiny, denormal and negative numbers, float16 [n,D]."""
    random = np.random.default_rng(seed)
    vectors = random.normal(size=(count, D)) * np.exp(random.normal(0, 4, (count, 1)))
    return vectors.clip(-60_000, 60_000).astype(np.float16)


@pytest.fixture
def store(tmp_path: Path) -> EmbeddingStore:
    return EmbeddingStore(str(tmp_path), "f1", D)


def open_index(store: EmbeddingStore) -> NearestIndex:
    index = NearestIndex(store.directory, store.dimension)
    index.update()
    return index


def similarities_by_number(index: NearestIndex, query: np.ndarray, numbers: range) -> list[float]:
    """Return the cosine of each photo, in the order of their numbers."""
    found = index.compute_similarities(query)
    of = dict(zip(index.find_digests(np.arange(len(index))), found.tolist(), strict=True))
    return [of[sha(number)] for number in numbers]


@pytest.mark.parametrize("count", [1, BLOCK_ROWS, 2 * BLOCK_ROWS + 7])
def test_similarities_are_the_cosines_of_the_stored_embeddings(store: EmbeddingStore, count: int) -> None:
    vectors = draw(count)
    append(store, vectors)
    query = np.random.default_rng(1).normal(size=D).astype(np.float32)
    wide = vectors.astype(np.float64)
    expected = wide @ query / np.linalg.norm(wide, axis=1) / np.linalg.norm(query)
    found = similarities_by_number(open_index(store), query, range(count))
    assert np.allclose(found, expected, atol=2e-6)


def test_every_finite_float16_number_is_converted_exactly(store: EmbeddingStore) -> None:
    numbers = np.arange(1 << 16).astype(np.uint16).view(np.float16)
    numbers = numbers[np.isfinite(numbers)]
    vectors = np.resize(numbers, (-(-len(numbers) // D), D))
    append(store, vectors)
    index = open_index(store)
    blocks = [block.copy() for _, block in index.iter_blocks(0, len(index))]
    found = np.concatenate(blocks).astype(np.float64) * 2.0**112
    stored = index.read_vectors(np.arange(len(index))).astype(np.float64)
    assert np.array_equal(found, stored)
    assert set(np.unique(stored)) == set(np.unique(numbers.astype(np.float64)))


def test_rejected_photos_are_left_out(store: EmbeddingStore) -> None:
    append(store, draw(5), rejected=(1, 3))
    assert sorted(open_index(store).find_digests(np.arange(3))) == sorted(map(sha, (0, 2, 4)))


def test_an_embedding_of_length_zero_is_similar_to_nothing(store: EmbeddingStore) -> None:
    vectors = draw(3)
    vectors[1] = 0
    append(store, vectors)
    assert similarities_by_number(open_index(store), np.ones(D, np.float32), range(3))[1] == 0
    assert not open_index(store).compute_similarities(np.zeros(D, np.float32)).any()


def test_only_new_files_are_indexed(store: EmbeddingStore) -> None:
    append(store, draw(10))
    before = open_index(store)
    [first] = before.path.iterdir()
    changed = first.stat().st_mtime_ns
    append(store, draw(6, seed=1), first=10)
    index = open_index(store)
    assert len(index) == 16
    assert len(list(index.path.iterdir())) == 2
    assert first.stat().st_mtime_ns == changed


def test_files_that_compaction_merged_are_indexed_again_and_the_old_index_is_deleted(
    store: EmbeddingStore,
) -> None:
    for part in range(3):
        append(store, draw(10, seed=part), first=10 * part)
    before = open_index(store)
    old = {path.name for path in before.path.iterdir()}
    maintenance.compact(store.root, store.fingerprint)
    assert not old & {path.name for path in before.path.iterdir()}
    index = open_index(store)
    assert len(index) == 30
    assert sorted(index.find_digests(np.arange(30))) == sorted(sha(number) for number in range(30))


def compact_once(store: EmbeddingStore, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """Let maintenance merge the files of the store just before the first call of a method of an index."""
    real = getattr(NearestIndex, method)

    def call(index: NearestIndex, *arguments: Any) -> Any:
        monkeypatch.setattr(NearestIndex, method, real)
        maintenance.compact(store.root, store.fingerprint)
        return real(index, *arguments)

    monkeypatch.setattr(NearestIndex, method, call)


@pytest.mark.parametrize("method", ["read_digests", "find_vector", "compute_similarities"])
def test_a_search_ends_where_compaction_has_deleted_the_index(
    store: EmbeddingStore, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    for part in range(2):
        append(store, draw(10, seed=part), first=10 * part)
    index = open_index(store)
    compact_once(store, monkeypatch, method)
    argument = {"find_vector": (sha(3),), "compute_similarities": (np.ones(D, np.float32),)}.get(method, ())
    with pytest.raises(IndexChanged):
        getattr(index, method)(*argument)
    index.update()
    assert sorted(index.find_digests(np.arange(20))) == sorted(map(sha, range(20)))


def test_files_that_are_merged_while_they_are_indexed_are_not_missing(
    store: EmbeddingStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for part in range(3):
        append(store, draw(10, seed=part), first=10 * part)
    compact_once(store, monkeypatch, "_add")
    assert len(open_index(store)) == 30
    assert caplog.text == ""


def test_a_deleted_backbone_leaves_no_embeddings_in_the_index(store: EmbeddingStore) -> None:
    append(store, draw(4))
    index = open_index(store)
    maintenance.delete_backbone(store.root, store.fingerprint)
    assert not list(index.path.iterdir())


def test_an_unreadable_file_is_left_out_with_a_warning(
    store: EmbeddingStore, caplog: pytest.LogCaptureFixture
) -> None:
    append(store, draw(4))
    (Path(store.directory) / "embeddings-torn.parquet").write_bytes(b"PAR1 and then nothing")
    with caplog.at_level(logging.WARNING):
        assert len(open_index(store)) == 4
    assert "embeddings-torn.parquet" in caplog.text


def test_a_write_that_is_interrupted_leaves_no_index_file(
    store: EmbeddingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    append(store, draw(4))
    index = NearestIndex(store.directory, D)

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("batch.embeddings.nearest._invert_lengths", fail)
        with pytest.raises(KeyboardInterrupt):
            index.update()
    assert not list(index.path.iterdir())
    assert len(open_index(store)) == 4


def test_embedding_of_a_content_is_found_by_its_digest(store: EmbeddingStore) -> None:
    vectors = draw(30)
    append(store, vectors[:20])
    append(store, vectors[20:], first=20)
    index = open_index(store)
    found = index.find_vector(sha(25))
    assert found is not None
    assert np.array_equal(found, vectors[25].astype(np.float32))
    assert index.find_vector(sha(99)) is None


def test_rows_are_read_in_the_order_asked_for(store: EmbeddingStore) -> None:
    append(store, draw(20))
    append(store, draw(20, seed=1), first=20)
    index = open_index(store)
    every = index.read_vectors(np.arange(40))
    wanted = np.array([39, 0, 21, 20, 5])
    assert np.array_equal(index.read_vectors(wanted), every[wanted])
    digests = index.find_digests(np.arange(40))
    assert index.find_digests(wanted) == [digests[row] for row in wanted]
    assert [digest.ljust(32, b"\0") for digest in index.read_digests().tolist()] == digests


def test_rows_are_ranked_by_similarity_and_then_by_row() -> None:
    similarities = np.random.default_rng(0).integers(0, 500, 5000).astype(np.float32)
    found = np.concatenate(list(iter_ranked(similarities)))
    assert sorted(found.tolist()) == list(range(5000))
    assert (np.diff(similarities[found]) <= 0).all()
    assert np.concatenate([*iter_ranked(np.zeros(0, np.float32))]).tolist() == []


def test_rows_are_divided_into_parts_without_gaps() -> None:
    assert split_rows(10, 3) == [(0, 3), (3, 6), (6, 10)]
    assert split_rows(1, 2) == [(0, 0), (0, 1)]


def test_dimension_is_that_of_the_files(store: EmbeddingStore) -> None:
    with pytest.raises(InputError, match="There are no embeddings"):
        read_dimension(store.directory)
    fill(EmbeddingStore(store.root, "other", 8), [1])
    append(store, draw(2))
    assert read_dimension(store.directory) == D


def test_index_of_a_remote_store_is_below_the_cache_directory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HUBHEAD_CACHE_DIR", str(tmp_path))
    assert Path(locate_index("s3://bucket/store/f1")).is_relative_to(tmp_path)
    assert locate_index("/data/store/f1") == "/data/store/f1/nearest"


# --- Clusters -------------------------------------------------------------------------------------------


def test_clusters_are_the_groups_of_embeddings_largest_first() -> None:
    random = np.random.default_rng(0)
    groups = np.repeat([2, 0, 1], [70, 20, 10])
    embeddings = 5 + np.eye(3, D)[groups] + random.normal(0, 0.02, (100, D))
    centres = fit_centres(embeddings.astype(np.float16), 3)
    labels, similarities = centres.assign(embeddings.astype(np.float16))
    assert [np.unique(groups[labels == label]).tolist() for label in range(3)] == [[2], [0], [1]]
    assert similarities.min() > 0.8


def test_there_are_no_more_clusters_than_different_embeddings() -> None:
    embeddings = np.repeat(np.eye(2, D, dtype=np.float16), 5, axis=0)
    assert len(fit_centres(embeddings, 7).directions) == 2
    assert len(fit_centres(np.ones((4, D), np.float16), 3).directions) == 1


def test_clusters_depend_on_the_seed_alone() -> None:
    embeddings = draw(200)
    first, again = fit_centres(embeddings, 5, seed=3), fit_centres(embeddings, 5, seed=3)
    assert np.array_equal(first.directions, again.directions)
