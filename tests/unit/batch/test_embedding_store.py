"""Embedding store: reading, appending, corrupt files, and the lookup table."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch.embeddings import EmbeddingStore, layout, maintenance
from batch.embeddings.lookup import Lookup
from batch.inputs.listing import Photo
from serving.contract import Status
from serving.errors import OutputError
from tests.support.embedding_store import D, fill, list_files, photo, reopen, rows, sha


@pytest.fixture
def store(tmp_path: Path) -> EmbeddingStore:
    return EmbeddingStore(str(tmp_path), "f1", D)


def test_embeddings_roundtrip_bit_for_bit(store: EmbeddingStore) -> None:
    fill(store, [1, 2, 3], rejected=(2,))
    for reader in (store, reopen(store)):
        got = reader.get([sha(1), sha(2), sha(3), sha(4)])
        row = got.row_by_digest()
        assert row.keys() == {sha(1), sha(2), sha(3)}
        assert np.array_equal(got.vectors[row[sha(3)]], rows([3]).vectors[0])
        assert got.vectors.dtype == np.float16
        assert not got.vectors[row[sha(2)]].any()
        assert got.statuses[row[sha(2)]] is Status.CORRUPT
        assert got.details[row[sha(2)]] == "3 bytes"
        assert (got.heights[row[sha(3)]], got.widths[row[sha(3)]]) == (3, 6)


def test_get_reads_rows_from_several_files(store: EmbeddingStore) -> None:
    for start in (0, 10, 20):
        fill(store, list(range(start, start + 10)))
    wanted = [25, 3, 11, 29, 0]
    got = reopen(store).get([sha(n) for n in wanted])
    assert sorted(got.heights.tolist()) == sorted(wanted)
    for digest, vector in zip(got.shas, got.vectors, strict=True):
        number = next(n for n in wanted if sha(n) == digest)
        assert np.array_equal(vector, rows([number]).vectors[0])


def test_lookup_digests_finds_unchanged_photos_only(store: EmbeddingStore) -> None:
    fill(store, [1])
    old = photo(1)
    assert store.lookup_digests([old]) == {old: sha(1)}
    for changed in (
        Photo(old.uri + "x", old.size, old.modified),
        Photo(old.uri, old.size + 1, old.modified),
        Photo(old.uri, old.size, old.modified + 1),
    ):
        assert store.lookup_digests([changed]) == {}


def test_copy_of_a_photo_adds_an_index_entry_only(store: EmbeddingStore) -> None:
    fill(store, [1])
    store.append({photo(2): sha(1)}, rows([]))
    assert len(list_files(store, "embeddings")) == 1
    assert reopen(store).lookup_digests([photo(2)]) == {photo(2): sha(1)}


def test_rows_appended_by_another_process_are_found_at_the_next_lookup(store: EmbeddingStore) -> None:
    assert store.lookup_digests([photo(1)]) == {}
    fill(reopen(store), [1])
    assert store.lookup_digests([photo(1)]) == {photo(1): sha(1)}
    assert store.filter_present([sha(1)]) == {sha(1)}


def test_appending_the_same_rows_twice_writes_one_file(store: EmbeddingStore) -> None:
    fill(store, [1, 2])
    fill(reopen(store), [1, 2])
    assert len(list_files(store, "embeddings")) == len(list_files(store, "index")) == 1


def test_backbones_have_separate_stores(store: EmbeddingStore) -> None:
    fill(store, [1])
    assert EmbeddingStore(store.root, "f2", D).lookup_digests([photo(1)]) == {}


@pytest.mark.parametrize("garbage", [b"", b"PAR1", b"not parquet at all" * 100])
def test_corrupt_file_is_logged_once_and_its_photos_can_be_embedded_again(
    store: EmbeddingStore, garbage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    fill(store, [1])
    fill(store, [2])
    list_files(store, "embeddings")[0].write_bytes(garbage)
    reader = reopen(store)
    with caplog.at_level(logging.WARNING):
        assert len(reader.lookup_digests([photo(1), photo(2)])) == 2
        assert len(reader.filter_present([sha(1), sha(2)])) == 1
        assert len(reader.get([sha(1), sha(2)]).shas) == 1
    assert caplog.text.count("unreadable") == 1
    fill(reader, [1])
    fill(reader, [2])
    assert len(reader.get([sha(1), sha(2)]).shas) == 2


def test_checksum_mismatch_is_detected_when_rows_are_read(
    store: EmbeddingStore, caplog: pytest.LogCaptureFixture
) -> None:
    fill(store, [1, 2])
    [path] = list_files(store, "embeddings")
    vector = rows([1]).vectors[0].tobytes()
    content = path.read_bytes()
    assert vector in content, "embeddings are stored uncompressed"
    path.write_bytes(content.replace(vector, bytes(len(vector))))
    reader = reopen(store)
    assert reader.get_statuses([sha(1)]) == {sha(1): Status.OK}
    assert len(reader.get([sha(1)]).shas) == 0
    assert "unreadable" in caplog.text
    assert reader.filter_present([sha(1), sha(2)]) == set()
    fill(reader, [1, 2])
    assert len(reader.get([sha(1), sha(2)]).shas) == 2


def test_embeddings_of_another_dimension_are_ignored(
    store: EmbeddingStore, caplog: pytest.LogCaptureFixture
) -> None:
    fill(store, [1])
    other = EmbeddingStore(store.root, store.fingerprint, D + 1)
    assert other.get([sha(1)]).vectors.shape == (0, D + 1)
    assert "unreadable" in caplog.text


def test_store_is_readable_by_other_parquet_readers(store: EmbeddingStore) -> None:
    fill(store, [1, 2], rejected=(2,))
    [path] = list_files(store, "embeddings")
    table = pq.read_table(path)
    vector = np.frombuffer(table["embedding"].to_pylist()[0], "<f2")
    assert vector.tolist() == rows([1]).vectors[0].tolist()
    assert pq.read_table(list_files(store, "index")[0])["uri"].to_pylist() == [photo(1).uri, photo(2).uri]


def write_as_before(store: EmbeddingStore) -> None:
    """Replace the embeddings files of a store by those of earlier versions, with lists of numbers."""
    kind = pa.list_(pa.field("element", pa.float16(), nullable=False), D)
    for path in list_files(store, "embeddings"):
        table = pq.read_table(path)
        numbers = np.frombuffer(b"".join(table["embedding"].to_pylist()), "<f2")
        lists = pa.FixedSizeListArray.from_arrays(pa.array(numbers), type=kind)
        pq.write_table(table.set_column(1, pa.field("embedding", kind, nullable=False), lists), path)


def test_embeddings_of_earlier_versions_are_read_checked_and_merged(store: EmbeddingStore) -> None:
    fill(store, [1, 2], rejected=(2,))
    write_as_before(store)
    fill(store, [3, 4])
    for check in range(2):
        got = reopen(store).get([sha(n) for n in (1, 2, 3, 4)])
        expected = rows([1, 2, 3, 4]).vectors.copy()
        expected[1] = 0
        assert [got.vectors[got.shas.index(sha(n))].tolist() for n in (1, 2, 3, 4)] == expected.tolist()
        found = maintenance.check(store.root, store.fingerprint)
        assert (found.rows, found.dimension, found.torn, found.other_dimension) == (4, D, [], [])
        if not check:
            maintenance.compact(store.root, store.fingerprint)
    [merged] = list_files(store, "embeddings")
    assert pq.read_schema(merged).field("embedding").type == pa.binary(2 * D)


def test_unwritable_store_is_named_in_the_error(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file")
    with pytest.raises(OutputError, match="store"):
        fill(EmbeddingStore(str(tmp_path / "store"), "f1", D), [1])


def test_failed_write_leaves_no_temporary_file(
    store: EmbeddingStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OutputError, match="No space left"):
        fill(store, [1])
    assert list(Path(store.directory).iterdir()) == []


KEYS = st.binary(min_size=4, max_size=4)


def to_array(keys: list[bytes], width: int = 4) -> np.ndarray:
    return np.frombuffer(b"".join(keys), f"S{width}")


@given(st.lists(st.lists(KEYS, max_size=8), max_size=9), st.lists(KEYS, max_size=8), st.integers(1, 20))
def test_lookup_equals_a_dict_of_first_values(
    parts: list[list[bytes]], wanted: list[bytes], spill: int
) -> None:
    lookup = Lookup(4, np.int64, spill=spill)
    expected: dict[bytes, int] = {}
    for file, keys in enumerate(parts):
        lookup.add(to_array(keys), 100 * file + np.arange(len(keys)))
        for row, key in enumerate(keys):
            expected.setdefault(key, 100 * file + row)
    wanted = [*wanted, *expected]
    values, found = lookup.find(to_array(wanted))
    assert found.tolist() == [key in expected for key in wanted]
    assert values[found].tolist() == [expected[key] for key in wanted if key in expected]
    lookup.filter(lambda values: values >= 100)  # all but the first file's
    kept = {
        k: 100 * f + r
        for f, keys in reversed(list(enumerate(parts)))
        if f
        for r, k in reversed(list(enumerate(keys)))
    }
    values, found = lookup.find(to_array(wanted))
    assert values[found].tolist() == [kept[key] for key in wanted if key in kept]


def test_lookup_keeps_few_runs_and_spills_to_mapped_files() -> None:
    lookup = Lookup(8, np.int64, spill=1000)
    keys = np.random.default_rng(0).permutation(20_000).astype(">u8").view("S8")
    for start in range(0, 20_000, 100):
        lookup.add(keys[start : start + 100], np.arange(start, start + 100))
    assert len(lookup) == 20_000
    assert len(lookup._runs) < 10
    values, found = lookup.find(keys[::-1])
    assert found.all()
    assert np.array_equal(values, np.arange(20_000)[::-1])


def test_reader_finds_rows_of_files_merged_meanwhile(
    store: EmbeddingStore, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(4):
        fill(store, [number])
    reader = reopen(store)
    wanted = np.frombuffer(b"".join(sha(number) for number in range(4)), "S32")
    blocks = reader.iter_blocks(wanted)
    first, _ = next(blocks)  # the generator keeps the list of the old files
    for path in list_files(store, "embeddings"):
        path.unlink()
    fill(store, [0, 1, 2, 3])
    rest = [int(position) for positions, _ in blocks for position in positions]
    assert sorted([*first.tolist(), *rest]) == [0, 1, 2, 3]
    assert not caplog.records
    assert len(reader.get([sha(number) for number in range(4)]).shas) == 4


def test_only_row_groups_with_wanted_rows_are_read(
    store: EmbeddingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "ROW_GROUP", 10)
    fill(store, list(range(100)))
    [path] = list_files(store, "embeddings")
    with path.open("r+b") as file:  # corrupt the first row group; the others are readable without it
        content = file.read()
        at = content.index(rows([3]).vectors[0].tobytes())
        file.seek(at)
        file.write(bytes(4))
    wanted = [95, 42, 41, 17]
    got = reopen(store).get([sha(number) for number in wanted])
    assert {digest: int(height) for digest, height in zip(got.shas, got.heights, strict=True)} == {
        sha(number): number for number in wanted
    }
    assert np.array_equal(got.vectors[got.row_by_digest()[sha(42)]], rows([42]).vectors[0])
