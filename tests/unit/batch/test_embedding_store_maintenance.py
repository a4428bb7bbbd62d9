"""Maintenance of the embedding store: check, repair, compact and prune, with kills and concurrent use."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from batch.commands.embeddings import embeddings
from batch.embeddings import EmbeddingStore, maintenance
from batch.inputs.listing import Photo
from batch.shards.shard import hash_uri
from serving.errors import OutputError
from serving.storage import files
from tests.support.embedding_store import D, fill, list_files, photo, reopen, rows, sha
from tests.support.object_stores import expire_lease

NUMBERS = list(range(40))


@pytest.fixture
def store(tmp_path: Path) -> EmbeddingStore:
    """Store with 40 photos in 8 files, and duplicates of two of them in another file."""
    store = EmbeddingStore(str(tmp_path / "store"), "f1", D)
    for start in range(0, 40, 5):
        fill(store, NUMBERS[start : start + 5], rejected=(7,))
    fill(store, [3, 33])
    return store


def assert_whole(store: EmbeddingStore, numbers: list[int] = NUMBERS) -> None:
    reader = reopen(store)
    assert reader.lookup_digests([photo(n) for n in numbers]) == {photo(n): sha(n) for n in numbers}
    got = reader.get([sha(n) for n in numbers])
    assert set(got.shas) == {sha(n) for n in numbers}
    for number in numbers:
        expected = rows([number], rejected=(7,)).vectors[0] * (number != 7)
        assert np.array_equal(got.vectors[got.row_by_digest()[sha(number)]], expected)


def age(store: EmbeddingStore) -> None:
    """Set the modification time of all files to yesterday."""
    for path in Path(store.directory).iterdir():
        os.utime(path, (time.time() - 86400,) * 2)


def test_compact_merges_small_files_in_shard_order(store: EmbeddingStore) -> None:
    changed = maintenance.compact(store.root, "f1")
    assert (changed.rows, changed.files[1]) == (2, 2)
    assert len(list_files(store, "embeddings")) == len(list_files(store, "index")) == 1
    assert_whole(store)
    reader = reopen(store)
    order = sorted(NUMBERS, key=lambda n: hash_uri(photo(n).uri))
    wanted = np.frombuffer(b"".join(sha(n) for n in order), "S32")
    assert [p for positions, _ in reader.iter_blocks(wanted) for p in positions.tolist()] == NUMBERS
    before = list_files(store, "embeddings")
    maintenance.compact(store.root, "f1")
    assert list_files(store, "embeddings") == before


def test_compact_keeps_large_files(store: EmbeddingStore) -> None:
    maintenance.compact(store.root, "f1", rows=16)
    large = {path for path in list_files(store, "embeddings") if pq.read_metadata(path).num_rows >= 8}
    assert 2 <= len(large) <= 4
    assert_whole(store)
    fill(store, [3, 100])
    maintenance.compact(store.root, "f1", rows=16)
    assert large <= set(list_files(store, "embeddings"))
    assert maintenance.check(store.root, "f1").duplicates == 0
    assert_whole(store, [*NUMBERS, 100])


class Killed(BaseException):
    pass


OPERATIONS: dict[str, Any] = {
    "compact": lambda root: maintenance.compact(root, "f1", rows=16),
    "prune": lambda root: maintenance.prune(root, "f1"),
    "repair": lambda root: maintenance.repair(root, maintenance.check(root, "f1")),
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_kill_at_any_step_loses_nothing(
    tmp_path: Path, operation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = {name: getattr(files, name) for name in ("write", "create_if_absent", "rename", "remove")}
    monkeypatch.setattr(os, "fsync", lambda _: None)  # nothing but the process is killed
    original = EmbeddingStore(str(tmp_path / "original"), "f1", D)
    for start in range(0, 40, 10):
        fill(original, NUMBERS[start : start + 10], rejected=(7,))
    fill(original, [3, 33])
    for number in (1, 11, 21):
        original.append({}, rows([number, 200 + number]))  # without an index entry
    age(original)
    for steps in range(400):
        shutil.copytree(original.root, tmp_path / f"{steps}")
        store = EmbeddingStore(str(tmp_path / f"{steps}"), "f1", D)
        left = steps

        def step(call: Any) -> Any:
            def counted(*args: Any) -> Any:
                nonlocal left
                if not left:
                    raise Killed
                left -= 1
                return call(*args)

            return counted

        with monkeypatch.context() as patch:
            for name, call in calls.items():
                patch.setattr(files, name, step(call))
            try:
                OPERATIONS[operation](store.root)
                done = True
            except Killed:
                done = False
        assert_whole(store)
        if not done and steps:
            expire_lease(f"{store.directory}/lease")
        OPERATIONS[operation](store.root)  # a second call completes the operation
        assert_whole(store)
        if done:
            break
    assert 10 < steps < 399


def test_reader_and_writer_continue_during_compaction(store: EmbeddingStore) -> None:
    reader, writer = reopen(store), reopen(store)
    wanted = np.frombuffer(b"".join(sha(n) for n in NUMBERS), "S32")
    blocks = reader.iter_blocks(wanted)
    seen = next(blocks)[0].tolist()
    assert writer.filter_present([sha(1)]) == set()
    fill(writer, [50])
    maintenance.compact(store.root, "f1")
    fill(writer, [51])
    seen += [position for positions, _ in blocks for position in positions.tolist()]
    assert sorted(seen) == NUMBERS
    assert_whole(store, [*NUMBERS, 50, 51])


def test_check_finds_defects_and_repair_removes_them(store: EmbeddingStore) -> None:
    assert maintenance.check(store.root, "f1").duplicates == 2
    maintenance.repair(store.root, maintenance.check(store.root, "f1"))
    assert not maintenance.check(store.root, "f1").needs_repair
    corrupt = list_files(store, "embeddings")[0]
    store.append({photo(300): sha(300)}, rows([]))
    EmbeddingStore(store.root, "f1", D + 1).append({}, _make_embeddings(D + 1))
    with corrupt.open("r+b") as file:
        file.seek(100)
        file.write(b"broken")
    found = maintenance.check(store.root, "f1")
    assert found.torn == [corrupt.name]
    assert len(found.other_dimension) == 1
    assert found.without_rows >= 1
    with pytest.raises(OutputError, match="corrupt"):
        maintenance.compact(store.root, "f1")
    command = ["check", "--embedding_store", store.root]
    assert CliRunner().invoke(embeddings, command).exit_code == 1
    assert CliRunner().invoke(embeddings, [*command, "--repair"]).exit_code == 0
    assert CliRunner().invoke(embeddings, command).exit_code == 0
    assert reopen(store).lookup_digests([photo(300)]) == {}


def _make_embeddings(dimension: int) -> Any:
    from batch.embeddings import Embeddings
    from serving.contract import Status

    zeros = np.zeros((1, dimension), np.float16)
    return Embeddings([sha(999)], zeros, [Status.OK], [None], np.ones(1, np.int32), np.ones(1, np.int32))


def test_prune_removes_old_unreferenced_embeddings(store: EmbeddingStore) -> None:
    store.append({}, rows([200, 201]))
    assert maintenance.prune(store.root, "f1").rows == 0, (
        "the writer may not have written the index entry yet"
    )
    age(store)
    assert maintenance.prune(store.root, "f1", dry_run=True).rows == 2
    assert reopen(store).get([sha(200)]).shas
    assert maintenance.prune(store.root, "f1").rows == 2
    assert not reopen(store).get([sha(200), sha(201)]).shas
    assert_whole(store)


def test_prune_removes_deleted_and_old_photos(tmp_path: Path) -> None:
    store = EmbeddingStore(str(tmp_path / "store"), "f1", D)
    existing = tmp_path / "there.jpg"
    existing.write_bytes(b"")
    now = time.time_ns()
    old = Photo(str(existing), 0, now - 10 * 86_400 * 10**9)
    store.append({old: sha(1), Photo(str(tmp_path / "gone.jpg"), 0, now): sha(2)}, rows([1, 2]))
    age(store)
    assert (maintenance.prune(store.root, "f1", gone=True, dry_run=True)).photos == 1
    maintenance.prune(store.root, "f1", gone=True)
    assert reopen(store).get([sha(1), sha(2)]).shas == [sha(1)]
    assert maintenance.prune(store.root, "f1", older_than=11).photos == 0
    age(store)
    assert maintenance.prune(store.root, "f1", older_than=9).rows == 1


def test_list_and_prune_keep_select_backbones(store: EmbeddingStore) -> None:
    fill(EmbeddingStore(store.root, "g2", D), [1])
    given = ["--embedding_store", store.root]
    listed = json.loads(CliRunner().invoke(embeddings, ["list", *given, "--json"]).stdout)
    assert [(one["fingerprint"], one["rows"], one["photos"]) for one in listed] == [
        ("f1", 42, 42),
        ("g2", 1, 1),
    ]
    assert "42 embeddings of dimension 8" in CliRunner().invoke(embeddings, ["list", *given]).stdout
    result = CliRunner().invoke(embeddings, ["prune", *given, "--keep", "f"])
    assert result.exit_code == 0, result.output
    assert maintenance.list_fingerprints(store.root) == ["f1"]
    assert_whole(store)
