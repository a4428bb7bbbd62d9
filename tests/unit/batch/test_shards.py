"""Shards: the streaming split of photos, shard ids and the plan."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch.inputs.listing import Photo
from batch.inputs.passthrough import PassThroughColumns
from batch.shards.shard import (
    Entry,
    PlanWriter,
    Shard,
    plan_shards,
    read_plan,
    remove_plan,
    sort_entries,
    split_entries,
)

PHOTOS = st.lists(
    st.builds(Photo, st.text(st.characters(exclude_categories=["Cs"])), st.integers(0), st.integers(0)),
    unique_by=lambda photo: photo.uri,
    max_size=60,
)
SIZES = st.integers(1, 20)
MODEL = {"model": "food"}


def make_shards(photos: Iterable[Photo], size: int, identity: dict[str, Any]) -> list[Shard]:
    entries = sort_entries((photo, []) for photo in photos)
    return [raw.to_shard(PassThroughColumns()) for raw in plan_shards(entries, size, identity)]


def make_photos(count: int) -> list[Photo]:
    return [Photo(f"/photos/{number}.jpg", number, 1) for number in range(count)]


@given(PHOTOS, SIZES)
def test_every_photo_is_in_exactly_one_shard(found: list[Photo], size: int) -> None:
    planned = make_shards(found, size, MODEL)
    assert sorted(photo for shard in planned for photo in shard.photos) == sorted(found)
    assert all(1 <= len(shard.photos) <= size for shard in planned)
    assert len({shard.id for shard in planned}) == len(planned)


@given(PHOTOS, SIZES, st.randoms(use_true_random=False))
def test_shards_do_not_depend_on_the_order_of_the_listing(
    found: list[Photo], size: int, random: object
) -> None:
    shuffled = list(found)
    random.shuffle(shuffled)
    assert make_shards(shuffled, size, MODEL) == make_shards(found, size, MODEL)


@given(PHOTOS, SIZES, st.integers(0))
def test_new_photo_changes_one_shard_only(found: list[Photo], size: int, number: int) -> None:
    new = Photo(f"new/\ud7ff{number}", 1, 1)
    before = {shard.id for shard in make_shards((p for p in found if p.uri != new.uri), size, MODEL)}
    after = {shard.id for shard in make_shards([*(p for p in found if p.uri != new.uri), new], size, MODEL)}
    assert len(before - after) <= 1


def split_in_memory(entries: list[Entry], size: int, bit: int = 0) -> list[list[Entry]]:
    """Reference implementation of the split, with all entries in memory."""
    if len(entries) <= size:
        return [entries] if entries else []
    bits = [int(entry.hash, 16) >> (127 - bit) & 1 for entry in entries]
    sides = ([entry for entry, on in zip(entries, bits, strict=True) if on == side] for side in (0, 1))
    return [group for side in sides for group in split_in_memory(side, size, bit + 1)]


@given(st.sets(st.integers(0, (1 << 128) - 1) | st.integers(0, 64), max_size=80), SIZES)
def test_streaming_split_equals_the_split_in_memory(hashes: set[int], size: int) -> None:
    entries = [Entry(f"{value:032x}".encode(), b"") for value in sorted(hashes)]
    assert list(split_entries(entries, size)) == split_in_memory(entries, size)


def test_split_reads_at_most_one_shard_ahead() -> None:
    read = 0

    def entries() -> Iterable[Entry]:
        nonlocal read
        for read in range(1, 2001):
            yield Entry(f"{read << 117:032x}".encode(), b"")

    yielded = 0
    for group in split_entries(entries(), 100):
        yielded += len(group)
        assert read <= yielded + 101
    assert yielded == 2000


def test_duplicate_lines_keep_the_first_one() -> None:
    lines = [(Photo("/a", 1, 1), ["first"]), (Photo("/b", 1, 1), ["b"]), (Photo("/a", 1, 1), ["second"])]
    progress: list[int] = []
    entries = list(sort_entries(lines, progress.append))
    assert sorted(entry.line for entry in entries) == [
        b'["/a", 1, 1, ["first"]]',
        b'["/b", 1, 1, ["b"]]',
    ]
    assert progress[-1] == 3


def test_large_inputs_make_shards_close_to_the_requested_size() -> None:
    planned = make_shards(make_photos(20_000), 500, MODEL)
    assert 40 <= len(planned) <= 90
    assert min(len(shard.photos) for shard in planned) > 150


@pytest.mark.parametrize(
    "changed",
    [Photo("/photos/3.jpg", 99, 1), Photo("/photos/3.jpg", 3, 2)],
    ids=["size", "modified"],
)
def test_changed_photo_changes_the_id_of_its_shard(changed: Photo) -> None:
    before = make_shards(make_photos(40), 10, MODEL)
    after = make_shards([changed if p.uri == changed.uri else p for p in make_photos(40)], 10, MODEL)
    assert sum(old.id != new.id for old, new in zip(before, after, strict=True)) == 1


def test_another_model_changes_every_shard_id() -> None:
    old = {shard.id for shard in make_shards(make_photos(40), 10, MODEL)}
    assert old.isdisjoint(shard.id for shard in make_shards(make_photos(40), 10, {"model": "other"}))


def test_column_value_changes_one_shard_id_and_column_type_changes_all() -> None:
    def ids(*values: str) -> list[str]:
        columns = PassThroughColumns()
        lines = (
            (photo, columns.encode_row({"shop": v}, text=True))
            for photo, v in zip(make_photos(3), values, strict=True)
        )
        return [raw.id for raw in plan_shards(sort_entries(lines), 1, MODEL, columns)]

    assert len(set(ids("1", "2", "3")) - set(ids("1", "2", "4"))) == 1
    assert set(ids("1", "2", "3")).isdisjoint(ids("1", "2", "x"))


def test_shard_size_zero_is_rejected() -> None:
    with pytest.raises(ValueError, match="at least one"):
        make_shards(make_photos(1), 0, MODEL)


def test_plan_roundtrip(tmp_path: Path) -> None:
    columns = PassThroughColumns()
    found = [*make_photos(10), Photo("/ไทย\n.jpg", 1, 2)]
    lines = [(photo, columns.encode_row({"shop": number, "size": "x"})) for number, photo in enumerate(found)]
    written = []
    with PlanWriter(str(tmp_path / "plan")) as writer:
        for raw in plan_shards(sort_entries(lines), 4, MODEL, columns):
            written.append(raw.to_shard(columns))
            writer.add(written[-1], models=2)
    planned = list(read_plan(writer.path))
    assert [line.read_shard() for line in planned] == written
    assert [line.rows for line in planned] == [2 * len(shard.photos) for shard in written]
    assert sum(shard.columns.num_rows for shard in written if shard.columns) == 11
    remove_plan(str(tmp_path / "plan"))
    assert list(tmp_path.iterdir()) == []


def test_model_masks_survive_the_plan(tmp_path: Path) -> None:
    entries = [
        entry._replace(model_mask=1 + number)
        for number, entry in enumerate(sort_entries((p, []) for p in make_photos(3)))
    ]
    [raw] = plan_shards(entries, 10, MODEL)
    with PlanWriter(str(tmp_path / "plan")) as writer:
        writer.add(raw.to_shard(PassThroughColumns()), models=2)
    [planned] = read_plan(writer.path)
    assert planned.read_shard().model_masks == (1, 2, 3)
    assert planned.rows == 4
