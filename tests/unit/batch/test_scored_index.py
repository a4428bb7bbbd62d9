"""Index of scored photos: exclusion, merging of its files, and runs that end early or change files late."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pytest

from batch.inputs.listing import Photo
from batch.monitoring.stats import Stats
from batch.output.dataset import Output
from batch.output.finished import Publication
from batch.output.shard_record import ScoredKeys
from batch.shards import scored_index
from batch.shards.scored_index import ScoredIndex, exclude_scored
from batch.shards.shard import Entry, sort_entries
from serving.errors import OutputError
from serving.storage import files

IDENTITY = {"photos": "p", "models": [], "partition_by": ""}


def write_keys(directory: str, name: str, keys: Iterable[bytes]) -> None:
    files.write(f"{directory}/{name}{scored_index.SUFFIX}", scored_index.encode_keys(keys))


def open_index(
    root: Path, is_valid: Callable[[str], bool], is_permanent: Callable[[str], bool], directory: str = "keys"
) -> ScoredIndex:
    return ScoredIndex(str(root), directory, is_valid, is_permanent)


class TestScoredIndex:
    def entries(self, *numbers: int) -> list[Entry]:
        return list(sort_entries((self.photo(number), []) for number in numbers))

    def photo(self, number: int) -> Photo:
        return Photo(f"/{number}.jpg", number, 1)

    def key(self, number: int) -> bytes:
        return scored_index.scored_key(self.photo(number))

    def test_keys_of_photos_are_found_in_all_files(self, tmp_path: Path) -> None:
        changed = Photo("/7.jpg", 70, 2)
        write_keys(str(tmp_path / "keys"), "a", map(self.key, range(100)))
        write_keys(str(tmp_path / "keys"), "b", [scored_index.scored_key(changed), self.key(200)])
        write_keys(str(tmp_path / "keys"), "unfinished", [self.key(300)])
        known = open_index(tmp_path, lambda _: False, lambda name: name != "unfinished")
        wanted = scored_index.hash_uris(f"/{number}.jpg" for number in (7, 40, 200, 300, 1000))
        found = np.unique(known.find_keys(wanted))
        expected = {self.key(7), scored_index.scored_key(changed), self.key(40), self.key(200)}
        assert set(scored_index.select_keys(found, wanted)) == expected
        assert list(scored_index.select_keys(found, wanted[1:2])) == [self.key(40)]

    def test_only_the_range_of_the_wanted_keys_is_read(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(scored_index, "_CHUNK_KEYS", 16)
        write_keys(str(tmp_path / "keys"), "a", map(self.key, range(4096)))
        read_chunk, chunks = scored_index._read_chunk, 0

        def count_chunks(file: IO[bytes]) -> Any:
            nonlocal chunks
            chunks += 1
            return read_chunk(file)

        monkeypatch.setattr(scored_index, "_read_chunk", count_chunks)
        known = open_index(tmp_path, lambda _: True, lambda _: True)
        hashes = np.sort(scored_index.hash_uris(f"/{number}.jpg" for number in range(4096)))
        for start in (0, 1, 2000, 4064):
            wanted, chunks = hashes[start : start + 32], 0
            found = np.sort(known.find_keys(wanted))
            assert np.array_equal(scored_index._uri_hashes_of(found), wanted)
            assert chunks <= 4

    def test_keys_are_found_while_another_run_merges_their_files(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_keys(str(tmp_path / "keys"), "a", map(self.key, range(10)))
        known = open_index(tmp_path, lambda _: True, lambda _: True)
        list_names, listings = files.list_names, 0

        def merge_after_listing(directory: str) -> list[str]:
            nonlocal listings
            listings += 1
            names = list_names(directory)
            if listings == 1:
                (tmp_path / "keys" / "a.keys").rename(tmp_path / "keys" / "merged-0.keys")
            return names

        monkeypatch.setattr(files, "list_names", merge_after_listing)
        assert known.find_keys(scored_index.hash_uris(["/7.jpg"])).tolist() == [self.key(7)]
        assert listings == 2

    def test_photos_scored_by_every_model_are_excluded(self, tmp_path: Path) -> None:
        one, two = str(tmp_path / "one"), str(tmp_path / "two")
        write_keys(one, "a", map(self.key, range(0, 100)))
        write_keys(one, "unfinished", map(self.key, range(100, 200)))
        write_keys(two, "a", map(self.key, range(50, 60)))
        known = [
            open_index(tmp_path, lambda name: name == "a", lambda name: name == "a", directory)
            for directory in ("one", "two")
        ]
        left: list[int] = []
        found = {
            json.loads(entry.line)[1]: entry.model_mask
            for entry in exclude_scored(self.entries(*range(120)), known, left.append)
        }
        assert found == {n: 3 if n >= 100 else 2 for n in range(120) if not 50 <= n < 60}
        assert sum(left) == 10

    def test_changed_photo_is_not_excluded(self, tmp_path: Path) -> None:
        write_keys(str(tmp_path / "keys"), "a", [self.key(1)])
        known = open_index(tmp_path, lambda _: True, lambda _: True)
        changed = sort_entries([(Photo("/1.jpg", 1, 2), [])])
        assert len(list(exclude_scored(changed, [known], lambda _: None))) == 1

    def test_many_index_files_are_merged_without_changing_the_result(self, tmp_path: Path) -> None:
        for number in range(150):
            write_keys(str(tmp_path / "keys"), f"s{number}", map(self.key, range(number * 3, number * 3 + 3)))
        write_keys(str(tmp_path / "keys"), "unfinished", [self.key(1000)])
        known = open_index(tmp_path, lambda name: name != "unfinished", lambda name: name != "unfinished")
        known.merge_files("staged")
        left = list(exclude_scored(self.entries(*range(460), 1000), [known], lambda _: None))
        assert {json.loads(entry.line)[1] for entry in left} == {*range(450, 460), 1000}
        used = set(known._list_files(lambda name: name != "unfinished"))
        assert len(used) <= 32
        assert (
            used
            == {
                *(f"keys/s{number}.keys" for number in range(150)),
                *(staged for staged, _ in known.merged),
            }
            - known.replaced
        )
        assert len(list((tmp_path / "keys").iterdir())) == 151, "only the run that publishes deletes files"
        assert len(list((tmp_path / "staged").iterdir())) == len(known.merged)


def publish(top: Path, *shards: int, append: bool = False) -> None:
    """Publish shards of one photo each, as the run `night` does."""
    with Output(str(top)).hold_lease() as output:
        publication = Publication(output, append=append)
        ids = [f"{number:032x}" for number in shards]
        todo = [number for number, id_ in zip(shards, ids, strict=True) if not publication.find(id_)]
        publication.load_scored_indexes(["model"] if append else [], "night")
        for number in todo:
            keys = ScoredKeys([scored_index.scored_key(Photo(f"/{number}.jpg", 1, 1))])
            table, stats = pa.table({"uri": [f"/{number}.jpg"]}), Stats(photos=1, rows=1)
            publication.attempt.commit(
                f"{number:032x}", "night", table, stats, {"model": keys}, date="2026-05-31"
            )
        assert all(publication.collect(f"{number:032x}" for number in todo))
        publication.publish(IDENTITY, [], ["model"])
        output.remove_attempts()


def find_new(top: Path, *photos: int) -> set[str]:
    """Return the photos that --only_new would score."""
    entries = sort_entries((Photo(f"/{number}.jpg", 1, 1), []) for number in photos)
    known = Output(str(top)).load_scored_index("model", "later")
    return {json.loads(entry.line)[0] for entry in exclude_scored(entries, [known], lambda _: None)}


def list_files(top: Path) -> set[str]:
    return {path for path, _ in files.walk_files(str(top)) if "_hubhead/lease/" not in path}


def test_deletions_of_a_stopped_run_come_too_late_for_the_same_shard_of_the_next_run(tmp_path: Path) -> None:
    publish(tmp_path, 1, 2)
    before = list_files(tmp_path)
    publish(tmp_path, 1)
    deleted = before - list_files(tmp_path)
    assert any("/keys/" in path for path in deleted)
    publish(tmp_path, 1, 2)
    for path in deleted:  # by the second run, which was stopped in between
        files.remove(f"{tmp_path}/{path}")
    assert find_new(tmp_path, 1, 2, 3) == {"/3.jpg"}
    with Output(str(tmp_path)).hold_lease() as output:
        assert Publication(output).find(f"{2:032x}")


def test_key_files_are_merged_by_the_publication_of_a_run_that_keeps_all_rows(tmp_path: Path) -> None:
    publish(tmp_path, *range(40))
    before = list_files(tmp_path)
    with Output(str(tmp_path)).hold_lease() as output:  # a run with --only_new that ends early
        publication = Publication(output, append=True)
        [index] = publication.load_scored_indexes(["model"], "night")
        assert index.merged
    assert list_files(tmp_path) == before
    publish(tmp_path, *range(39))  # a run of fewer photos; the last one may come back
    assert find_new(tmp_path, *range(40)) == {"/39.jpg"}
    publish(tmp_path, 40, append=True)
    keys = [path.name for path in (tmp_path / "_hubhead" / "keys" / "model").iterdir()]
    assert len(keys) == 2, "the merged file, and that of the new shard"
    assert find_new(tmp_path, *range(42)) == {"/39.jpg", "/41.jpg"}


@pytest.mark.parametrize("lost", ["keys", "shards"])
def test_keys_or_records_that_are_missing_after_the_publication_are_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    complete = Output.publish_shards

    def interfere(self: Output, shards: Iterable[object]) -> None:
        complete(self, shards)  # type: ignore[arg-type]
        [file] = [path for path in (tmp_path / "_hubhead" / lost).rglob("*") if path.is_file()]
        file.unlink()

    monkeypatch.setattr(Output, "publish_shards", interfere)
    with pytest.raises(OutputError, match=f"not what this run wrote: _hubhead/{lost}/.* is missing"):
        publish(tmp_path, 1)


def test_records_and_keys_of_earlier_versions_are_found(tmp_path: Path) -> None:
    publish(tmp_path, 1)
    for path in [*tmp_path.rglob("*.night~*.json"), *tmp_path.rglob("*.night~*.keys")]:
        path.rename(path.with_name(path.name.partition("~")[0] + path.suffix))
    assert find_new(tmp_path, 1, 2) == {"/2.jpg"}
    with Output(str(tmp_path)).hold_lease() as output:
        found = Publication(output).find(f"{1:032x}")
    assert found
    assert found.run_id == "night"
