"""The split of photos into shards, as a stream."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch.inputs.listing import Photo
from batch.inputs.passthrough import PassThroughColumns
from batch.shards import shard as shards
from batch.shards.shard import Entry, PlanWriter, Shard

PHOTOS = st.lists(
    st.builds(Photo, st.text(st.characters(exclude_categories=["Cs"])), st.integers(0), st.integers(0)),
    unique_by=lambda photo: photo.uri,
    max_size=60,
)
SIZES = st.integers(1, 20)
MODEL = {"model": "food"}


def plan(found: Iterable[Photo], size: int, identity: dict[str, Any]) -> list[Shard]:
    entries = shards.sort_entries((photo, []) for photo in found)
    return [piece.to_shard(PassThroughColumns()) for piece in shards.plan_shards(entries, size, identity)]


def many(count: int) -> list[Photo]:
    return [Photo(f"/photos/{number}.jpg", number, 1) for number in range(count)]


@given(PHOTOS, SIZES)
def test_every_photo_is_in_exactly_one_shard(found: list[Photo], size: int) -> None:
    planned = plan(found, size, MODEL)
    assert sorted(photo for shard in planned for photo in shard.photos) == sorted(found)
    assert all(1 <= len(shard.photos) <= size for shard in planned)
    assert len({shard.id for shard in planned}) == len(planned)


@given(PHOTOS, SIZES, st.randoms(use_true_random=False))
def test_the_order_of_the_listing_does_not_matter(found: list[Photo], size: int, random: object) -> None:
    shuffled = list(found)
    random.shuffle(shuffled)
    assert plan(shuffled, size, MODEL) == plan(found, size, MODEL)


@given(PHOTOS, SIZES, st.integers(0))
def test_a_new_photo_changes_one_shard_only(found: list[Photo], size: int, number: int) -> None:
    new = Photo(f"new/\ud7ff{number}", 1, 1)
    before = {shard.id for shard in plan((p for p in found if p.uri != new.uri), size, MODEL)}
    after = {shard.id for shard in plan([*(p for p in found if p.uri != new.uri), new], size, MODEL)}
    assert len(before - after) <= 1


def halves(entries: list[Entry], size: int, bit: int = 0) -> list[list[Entry]]:
    """The split as the module describes it, with everything in memory."""
    if len(entries) <= size:
        return [entries] if entries else []
    bits = [int(entry.hash, 16) >> (127 - bit) & 1 for entry in entries]
    sides = ([entry for entry, on in zip(entries, bits, strict=True) if on == side] for side in (0, 1))
    return [piece for side in sides for piece in halves(side, size, bit + 1)]


@given(st.sets(st.integers(0, (1 << 128) - 1) | st.integers(0, 64), max_size=80), SIZES)
def test_cutting_the_stream_gives_what_halving_in_memory_gives(hashes: set[int], size: int) -> None:
    entries = [Entry(f"{value:032x}".encode(), b"") for value in sorted(hashes)]
    assert list(shards.split_entries(entries, size)) == halves(entries, size)


def test_cutting_looks_one_shard_ahead_at_most() -> None:
    read = 0

    def entries() -> Iterable[Entry]:
        nonlocal read
        for read in range(1, 2001):
            yield Entry(f"{read << 117:032x}".encode(), b"")

    given_out = 0
    for piece in shards.split_entries(entries(), 100):
        given_out += len(piece)
        assert read <= given_out + 101
    assert given_out == 2000


def test_of_several_lines_of_a_photo_the_first_one_stays() -> None:
    lines = [(Photo("/a", 1, 1), ["first"]), (Photo("/b", 1, 1), ["b"]), (Photo("/a", 1, 1), ["second"])]
    told: list[int] = []
    entries = list(shards.sort_entries(lines, told.append))
    assert sorted(entry.line for entry in entries) == [
        b'["/a", 1, 1, ["first"]]',
        b'["/b", 1, 1, ["b"]]',
    ]
    assert told[-1] == 3


def test_large_inputs_make_shards_of_about_the_size_asked_for() -> None:
    planned = plan(many(20_000), 500, MODEL)
    assert 40 <= len(planned) <= 90
    assert min(len(shard.photos) for shard in planned) > 150


@pytest.mark.parametrize(
    "changed",
    [Photo("/photos/3.jpg", 99, 1), Photo("/photos/3.jpg", 3, 2)],
    ids=["size", "modified"],
)
def test_a_photo_that_changed_changes_the_id_of_its_shard(changed: Photo) -> None:
    before = plan(many(40), 10, MODEL)
    after = plan([changed if p.uri == changed.uri else p for p in many(40)], 10, MODEL)
    assert sum(old.id != new.id for old, new in zip(before, after, strict=True)) == 1


def test_another_model_changes_every_id() -> None:
    old = {shard.id for shard in plan(many(40), 10, MODEL)}
    assert old.isdisjoint(shard.id for shard in plan(many(40), 10, {"model": "other"}))


def test_another_value_of_a_column_changes_the_id_and_another_type_all() -> None:
    def ids(*values: str) -> list[str]:
        columns = PassThroughColumns()
        lines = (
            (photo, columns.encode_row({"shop": v}, text=True))
            for photo, v in zip(many(3), values, strict=True)
        )
        return [piece.id for piece in shards.plan_shards(shards.sort_entries(lines), 1, MODEL, columns)]

    assert len(set(ids("1", "2", "3")) - set(ids("1", "2", "4"))) == 1
    assert set(ids("1", "2", "3")).isdisjoint(ids("1", "2", "x"))


def test_a_shard_of_nothing_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="at least one"):
        plan(many(1), 0, MODEL)


def test_a_plan_is_read_back_as_it_was(tmp_path: Path) -> None:
    columns = PassThroughColumns()
    found = [*many(10), Photo("/ไทย\n.jpg", 1, 2)]
    lines = [(photo, columns.encode_row({"shop": number, "size": "x"})) for number, photo in enumerate(found)]
    written = []
    with PlanWriter(str(tmp_path / "plan")) as writer:
        for piece in shards.plan_shards(shards.sort_entries(lines), 4, MODEL, columns):
            written.append(piece.to_shard(columns))
            writer.add(written[-1], models=2)
    planned = list(shards.read_plan(writer.path))
    assert [line.read_shard() for line in planned] == written
    assert [line.rows for line in planned] == [2 * len(shard.photos) for shard in written]
    assert sum(shard.columns.num_rows for shard in written if shard.columns) == 11
    shards.remove_plan(str(tmp_path / "plan"))
    assert list(tmp_path.iterdir()) == []


def test_a_shard_may_be_for_some_of_the_models(tmp_path: Path) -> None:
    entries = [
        entry._replace(model_mask=1 + number)
        for number, entry in enumerate(shards.sort_entries((p, []) for p in many(3)))
    ]
    [piece] = shards.plan_shards(entries, 10, MODEL)
    with PlanWriter(str(tmp_path / "plan")) as writer:
        writer.add(piece.to_shard(PassThroughColumns()), models=2)
    [planned] = shards.read_plan(writer.path)
    assert planned.read_shard().model_masks == (1, 2, 3)
    assert planned.rows == 4
