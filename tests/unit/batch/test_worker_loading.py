"""Loading of the backbone ahead of a run's first shard, while Beam is imported."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from batch.embeddings import EmbeddingStore
from batch.inputs.passthrough import PassThroughColumns
from batch.monitoring.stats import Meter
from batch.scoring.embed import ModelResources
from batch.scoring.worker import ShardWorker
from batch.shards.shard import PlanWriter, plan_shards, sort_entries
from serving.errors import BundleError
from tests.support.embedding_store import D, fill, photo


class Connection:
    """Connection to a backbone, which counts its loads and fails with the given errors, last first."""

    def __init__(self, *failures: Exception) -> None:
        self.failures, self.loads = list(failures), 0
        self.loaded = threading.Event()

    def __call__(self) -> Any:
        self.loads += 1
        self.loaded.wait(0.05)  # long enough for a second caller
        if self.failures:
            raise self.failures.pop()
        return self


@pytest.fixture
def store(tmp_path: Path) -> EmbeddingStore:
    store = EmbeddingStore(str(tmp_path / "store"), "f1", D)
    fill(store, [1, 2])
    return store


class Head:
    """Head of a model, which counts its loads."""

    bundle = SimpleNamespace(metadata=SimpleNamespace(preprocessing={}))
    loads = 0

    @property
    def run(self) -> None:
        self.loads += 1


def load_ahead(
    top: Path, store: EmbeddingStore, numbers: list[int], connect: Connection, *, is_scoring: bool = True
) -> Any:
    """Load ahead of a run over these photos, all in one shard; return the model's resources."""
    head: Any = Head()
    with PlanWriter(str(top / "plan")) as writer:
        for raw in plan_shards(sort_entries((photo(number), []) for number in numbers), 10, {}):
            writer.add(raw.to_shard(PassThroughColumns()))
    model = ModelResources(head, store, Meter(), connect)
    scores: Any = "scores" if is_scoring else None
    ShardWorker((), str(top), str(top / "plan"), scores).load_ahead(writer.path, [model])
    return model


def test_backbone_is_loaded_ahead_if_a_photo_is_not_stored(tmp_path: Path, store: EmbeddingStore) -> None:
    connect = Connection()
    model = load_ahead(tmp_path, store, [1, 2, 3], connect)
    assert connect.loads == 1
    assert model.backbone is connect
    assert connect.loads == 1


def test_backbone_is_not_loaded_ahead_if_all_photos_are_stored(tmp_path: Path, store: EmbeddingStore) -> None:
    connect = Connection()
    load_ahead(tmp_path, store, [1, 2], connect)
    assert connect.loads == 0


def test_failed_loading_ahead_is_raised_to_the_shard(tmp_path: Path, store: EmbeddingStore) -> None:
    connect = Connection(BundleError("again"), BundleError("first"))
    model = load_ahead(tmp_path, store, [3], connect)
    with pytest.raises(BundleError, match="again"):
        _ = model.backbone


@pytest.mark.parametrize("numbers", [[1, 2], [3]], ids=["stored", "new"])
def test_the_head_is_loaded_ahead_of_a_scoring_run(
    tmp_path: Path, store: EmbeddingStore, numbers: list[int]
) -> None:
    assert load_ahead(tmp_path, store, numbers, Connection()).head.loads == 1
    assert load_ahead(tmp_path, store, numbers, Connection(), is_scoring=False).head.loads == 0


def test_threads_share_one_backbone(tmp_path: Path, store: EmbeddingStore) -> None:
    connect = Connection()
    model = load_ahead(tmp_path, store, [1], connect)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: model.backbone, range(2)))
    assert found == [connect, connect]
    assert connect.loads == 1
