"""The split of photos into shards."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch import shards
from batch.photos import Photo

PHOTOS = st.lists(
    st.builds(Photo, st.text(st.characters(exclude_categories=["Cs"])), st.integers(0), st.integers(0)),
    unique_by=lambda photo: photo.uri,
    max_size=60,
)
SIZES = st.integers(1, 20)
MODEL = {"model": "food"}


def many(count: int) -> list[Photo]:
    return [Photo(f"/photos/{number}.jpg", number, 1) for number in range(count)]


@given(PHOTOS, SIZES)
def test_every_photo_is_in_exactly_one_shard(found: list[Photo], size: int) -> None:
    planned = shards.plan(found, size, MODEL)
    assert sorted(photo for shard in planned for photo in shard.photos) == sorted(found)
    assert all(1 <= len(shard.photos) <= size for shard in planned)
    assert len({shard.id for shard in planned}) == len(planned)


@given(PHOTOS, SIZES, st.randoms(use_true_random=False))
def test_the_order_of_the_listing_does_not_matter(found: list[Photo], size: int, random: object) -> None:
    shuffled = list(found)
    random.shuffle(shuffled)
    assert shards.plan(shuffled, size, MODEL) == shards.plan(found, size, MODEL)


@given(PHOTOS, SIZES, st.integers(0))
def test_a_new_photo_changes_one_shard_only(found: list[Photo], size: int, number: int) -> None:
    new = Photo(f"new/\ud7ff{number}", 1, 1)
    before = {shard.id for shard in shards.plan((p for p in found if p.uri != new.uri), size, MODEL)}
    after = {shard.id for shard in shards.plan([*(p for p in found if p.uri != new.uri), new], size, MODEL)}
    assert len(before - after) <= 1


def test_large_inputs_make_shards_of_about_the_size_asked_for() -> None:
    planned = shards.plan(many(20_000), 500, MODEL)
    assert 40 <= len(planned) <= 90
    assert min(len(shard.photos) for shard in planned) > 150


@pytest.mark.parametrize(
    "changed",
    [Photo("/photos/3.jpg", 99, 1), Photo("/photos/3.jpg", 3, 2)],
    ids=["size", "modified"],
)
def test_a_photo_that_changed_changes_the_id_of_its_shard(changed: Photo) -> None:
    before = shards.plan(many(40), 10, MODEL)
    after = shards.plan([changed if p.uri == changed.uri else p for p in many(40)], 10, MODEL)
    assert sum(old.id != new.id for old, new in zip(before, after, strict=True)) == 1


def test_another_model_changes_every_id() -> None:
    old = {shard.id for shard in shards.plan(many(40), 10, MODEL)}
    assert old.isdisjoint(shard.id for shard in shards.plan(many(40), 10, {"model": "other"}))


def test_a_shard_of_nothing_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="at least one"):
        shards.plan(many(1), 0, MODEL)


def test_a_plan_is_read_back_as_it_was(tmp_path: Path) -> None:
    planned = shards.plan([*many(10), Photo("/ไทย\n.jpg", 1, 2)], 4, MODEL)
    plan = Path(shards.write_plan(str(tmp_path / "plan"), planned))
    assert [shards.read_shard(line) for line in plan.read_text().splitlines()] == planned
    shards.remove_plan(str(tmp_path / "plan"))
    assert list(tmp_path.iterdir()) == []
