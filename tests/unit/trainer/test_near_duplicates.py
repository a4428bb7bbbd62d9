"""Near-duplicates, identical files and conflicting labels, and their report."""

from __future__ import annotations

import hashlib
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from batch.monitoring.stats import Progress
from serving.errors import InputError
from trainer import dataset
from trainer.dataset import Example, SplitSettings, Subset, similarity_graph
from trainer.dataset import near_duplicates as duplicates
from trainer.dataset.near_duplicates import find_near_duplicates
from trainer.dataset.split import count_groups

TRAINING, VALIDATION, TESTING = Subset.TRAINING, Subset.VALIDATION, Subset.TESTING


def vectors(
    groups: list[int], seed: int = 0, dimension: int = 64, noise: float = 0.01
) -> NDArray[np.float32]:
    """One row for each number; rows of the same number are near-duplicates, others are far apart."""
    random = np.random.default_rng(seed)
    centres = random.standard_normal((max(groups, default=0) + 1, dimension))
    rows = centres[groups] + noise * random.standard_normal((len(groups), dimension))
    return (rows * random.uniform(0.1, 10, (len(groups), 1))).astype(np.float32)


def rows_of(found: duplicates.NearDuplicates) -> list[tuple[int, ...]]:
    return list(found.together)


def expected(numbers: list[int]) -> list[tuple[int, ...]]:
    together: dict[int, list[int]] = {}
    for row, number in enumerate(numbers):
        together.setdefault(number, []).append(row)
    return [tuple(rows) for rows in together.values() if len(rows) > 1]


# --- Near-duplicates ------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(numbers=st.lists(st.integers(0, 12), max_size=40), block=st.sampled_from([1, 3, 7, 1024]))
def test_near_duplicates_do_not_depend_on_the_block_size(numbers: list[int], block: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "_BLOCK", block)
        patch.setattr(similarity_graph, "_MAX_LINKS", 2)
        assert rows_of(find_near_duplicates(vectors(numbers), 0.95)) == expected(numbers)


def test_each_photo_has_its_highest_cosine() -> None:
    angles = np.radians([0, 5, 15, 90])
    embeddings = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    found = find_near_duplicates(embeddings, 0.98)
    assert rows_of(found) == [(0, 1, 2)]  # 0 and 2 are joined by 1 alone: their own cosine is .966
    assert found.similarities == pytest.approx([*np.cos(np.radians([5, 5, 10])), 0], abs=1e-5)


def test_float16_and_zero_embeddings_are_accepted() -> None:
    embeddings = vectors([0, 1, 0, 2]).astype(np.float16)
    embeddings[[1, 3]] = 0
    assert rows_of(find_near_duplicates(embeddings)) == [(0, 2)]
    assert rows_of(find_near_duplicates(np.empty((0, 8), np.float32))) == []


def test_beyond_the_limit_the_first_rows_are_compared_with_all() -> None:
    numbers = [*range(90), 5, *range(90, 98), 50]
    found = find_near_duplicates(vectors(numbers), 0.95, limit=60)
    assert (found.compared, found.photos) == (18, 100)
    assert rows_of(found) == [(5, 90)]


@pytest.mark.parametrize("same", [False, True])
def test_memory_does_not_grow_with_the_pairs(same: bool) -> None:
    embeddings = vectors([0] * 6000 if same else list(range(6000)), dimension=16)
    find_near_duplicates(embeddings[:10])  # imports
    tracemalloc.start()
    try:
        found = find_near_duplicates(embeddings, 0.99)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [len(rows) for rows in found.together] == ([6000] if same else [])
    assert peak < 100 << 20  # all pairs would be 288 MB as float64, more as indices


@pytest.mark.parametrize("noise", [0.05, 0.3, 3.0])
def test_the_upper_bound_never_misses_a_pair(noise: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "_BLOCK", 64)
    monkeypatch.setattr(duplicates, "_DIRECTIONS_SAMPLE", 200)
    random = np.random.default_rng(0)
    numbers = random.integers(0, 150, 400).tolist()
    embeddings = np.maximum(vectors(numbers, dimension=300, noise=noise), 0).astype(np.float16)
    unit = duplicates._unit(embeddings)
    sketch = duplicates._sketch(embeddings)
    assert sketch.shape == (400, 97)
    assert (sketch @ sketch.T >= unit @ unit.T - 1e-4).all()
    found = find_near_duplicates(embeddings, 0.93)
    monkeypatch.setattr(duplicates, "_sketch", lambda rows: np.ones((len(rows), 1), np.float32))
    assert rows_of(found) == rows_of(find_near_duplicates(embeddings, 0.93))
    assert bool(found.together) == (noise < 1)


def test_progress_ends_at_all_photos() -> None:
    seen: list[Progress] = []
    find_near_duplicates(vectors(list(range(3000)), dimension=4), 1.0, progress=seen.append)
    assert [step.done for step in seen] == sorted(step.done for step in seen)
    assert seen[-1] == Progress(3000, 3000, 0)
    assert len(seen) == 3


@pytest.mark.parametrize("threshold", [0, -0.5, 1.01, float("nan")])
def test_a_threshold_that_is_not_a_cosine_is_an_error(threshold: float) -> None:
    with pytest.raises(InputError, match="threshold of near-duplicates"):
        find_near_duplicates(vectors([0, 1]), threshold)


# --- The report -----------------------------------------------------------------------------------------


def example(name: str, label: int = 0, content: str = "", subset: Subset = TRAINING) -> Example:
    sha = hashlib.sha256((content or name).encode()).hexdigest()
    return Example(f"/photos/{label}/{name}.jpg", sha, label, subset=subset)


def test_the_report_lists_copies_label_conflicts_and_near_duplicates_with_their_sets() -> None:
    files = [
        example("a"),
        example("copy of a", content="a"),
        example("b"),
        example("b elsewhere", 1, content="b"),
        example("c", 1),
        example("nearly c", 0),
        example("d", 1),
    ]
    rows = dataset.select_distinct(files)
    examples = [files[row] for row in rows]
    assert rows == [0, 2, 3, 4, 5, 6]
    near = find_near_duplicates(vectors([0, 1, 1, 2, 2, 3]), 0.95)
    subsets = [TRAINING, TRAINING, TRAINING, TESTING, TRAINING, VALIDATION]
    found = duplicates.build_report(files, examples, subsets, near, ["pizza", "sushi"])
    assert [[picture.uri for picture in group.pictures] for group in found.exact] == [
        ["/photos/0/a.jpg", "/photos/0/copy of a.jpg"],
        ["/photos/0/b.jpg", "/photos/1/b elsewhere.jpg"],
    ]
    assert found.label_conflicts == (found.exact[1],)
    [group] = found.near  # the group of b has identical files, so it is not listed as near-duplicates
    assert group == found.across_sets[0] == found.near_label_conflicts[0]
    assert [picture.uri for picture in group.pictures] == ["/photos/1/c.jpg", "/photos/0/nearly c.jpg"]
    assert group.labels == ("pizza", "sushi")
    assert group.subsets == {TRAINING, TESTING}
    assert all(0.95 < picture.similarity < 1 for picture in group.pictures)
    assert [picture.uri for picture in found.leaked_photos()] == ["/photos/1/c.jpg"]
    assert found.leaked_photos(VALIDATION) == ()
    assert list(found.describe()) == [
        "4 files are identical to others; they are 2 distinct photos.",
        "1 photos have more than one label.",
        "2 photos are near-duplicates (cosine 0.95 or more), in 1 groups, 1 of them with different labels.",
        "1 test photos have a near-duplicate in the training set: the test figures are too optimistic.",
    ]


def test_a_copy_predefined_for_another_set_is_reported_with_that_set() -> None:
    files = [example("a"), example("same", content="a", subset=TESTING), example("b")]
    rows = dataset.select_distinct(files)
    assert rows == [1, 2]
    examples = [files[row] for row in rows]
    near = find_near_duplicates(vectors([0, 1]))
    found = duplicates.build_report(files, examples, [TESTING, TRAINING], near, ["pizza"])
    [group] = found.exact
    assert [picture.subset for picture in group.pictures] == [TRAINING, TESTING]
    assert "1 photos are in several predefined sets; each counts only for the held-out set." in list(
        found.describe()
    )


def test_no_duplicates_give_no_messages() -> None:
    examples = [example("a"), example("b")]
    near = find_near_duplicates(vectors([0, 1]))
    assert not list(duplicates.build_report(examples, examples, [TRAINING] * 2, near, ["pizza"]).describe())


def test_a_low_threshold_and_photos_that_were_not_compared_are_reported() -> None:
    examples = [example(str(number)) for number in range(20)]
    near = find_near_duplicates(vectors([0] * 20), 0.9, limit=16)
    messages = list(duplicates.build_report(examples, examples, [TRAINING] * 20, near, ["pizza"]).describe())
    assert "0.9 is too low" in messages[-2]
    assert "Only 6 of 20 photos" in messages[-1]


@settings(max_examples=60, deadline=None)
@given(numbers=st.lists(st.integers(0, 15), min_size=8, max_size=40), seed=st.integers(0, 10**6))
def test_near_duplicates_kept_together_are_never_across_sets(numbers: list[int], seed: int) -> None:
    examples = [example(f"{seed} {row}") for row in range(len(numbers))]
    near = find_near_duplicates(vectors(numbers), 0.95)
    subsets = dataset.split(examples, SplitSettings(20, 20), together=near.together)
    found = duplicates.build_report(examples, examples, subsets, near, ["pizza"])
    assert not found.across_sets
    groups = count_groups(examples, ["pizza"], near.together)["pizza"]
    assert groups == len(set(numbers))
    if groups >= 3:
        assert set(subsets) == set(Subset)
