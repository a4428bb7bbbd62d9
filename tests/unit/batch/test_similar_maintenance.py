"""Searches for similar photos while maintenance merges the files of the store."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from batch.embeddings import EmbeddingStore, maintenance
from batch.embeddings.nearest import Floats, NearestIndex
from batch.jobs.similar import ATTEMPTS, SimilaritySearch
from serving.errors import OutputBusy
from tests.support.embedding_store import D, fill, sha

PHOTOS = 20


class AllPhotos:
    """Every photo of the store is a candidate."""

    def find(self, shas: Iterable[bytes]) -> dict[bytes, list[str]]:
        wanted = set(shas)
        return {one: uris for one, uris in self.list_all().items() if one in wanted}

    def list_all(self) -> dict[bytes, list[str]]:
        return {sha(number): [f"/photos/{number}.jpg"] for number in range(PHOTOS)}


@pytest.fixture
def store(tmp_path: Path) -> EmbeddingStore:
    found = EmbeddingStore(str(tmp_path / "store"), "f1", D)
    fill(found, list(range(10)))
    fill(found, list(range(10, PHOTOS)))
    return found


@pytest.fixture
def search(store: EmbeddingStore) -> SimilaritySearch:
    index = NearestIndex(store.directory, D)
    index.update()
    return SimilaritySearch(AllPhotos(), index, None)


@pytest.fixture
def photo(tmp_path: Path) -> str:
    path = tmp_path / "photo.jpg"
    path.write_bytes(b"3")  # the content of photo 3 of the store
    return str(path)


def test_a_search_is_repeated_after_compaction(
    store: EmbeddingStore, search: SimilaritySearch, photo: str
) -> None:
    before = search.find_similar(photo, PHOTOS)
    maintenance.compact(store.root, store.fingerprint)
    assert search.find_similar(photo, PHOTOS) == before
    assert len(before) == PHOTOS


def test_clusters_are_those_of_all_photos_after_compaction(
    store: EmbeddingStore, search: SimilaritySearch
) -> None:
    maintenance.compact(store.root, store.fingerprint)
    clusters = search.find_clusters(2)
    assert sum(len(cluster.photos) for cluster in clusters) == PHOTOS


def test_a_store_that_changes_during_every_search_is_an_error(
    search: SimilaritySearch, photo: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = NearestIndex.compute_similarities, []

    def delete_first(index: NearestIndex, query: Floats) -> Floats:
        calls.append(query)
        for file in index.path.iterdir():
            file.unlink()
        return real(index, query)

    monkeypatch.setattr(NearestIndex, "compute_similarities", delete_first)
    with pytest.raises(OutputBusy, match="changed during each of 3 searches"):
        search.find_similar(photo, 5)
    assert len(calls) == ATTEMPTS == 3
