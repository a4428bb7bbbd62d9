"""Listing of a folder of labelled photos, and the split into training, validation and test."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.errors import InputError
from trainer import dataset
from trainer.dataset import Example, SplitSettings, Subset
from trainer.dataset.dataset import check_label_names
from trainer.dataset.split import check_counts, count_groups

TRAINING, VALIDATION, TESTING = Subset.TRAINING, Subset.VALIDATION, Subset.TESTING


def write_photos(top: Path, photos: dict[str, int]) -> Path:
    """Write `top/<label>/<number>.jpg`, each with different content."""
    for label, count in photos.items():
        (top / label).mkdir(parents=True)
        for number in range(count):
            (top / label / f"{number:03d}.jpg").write_bytes(f"{label} {number}".encode())
    return top


def examples_of(top: Path | str) -> list[Example]:
    folder = dataset.scan(top)
    return [
        Example(photo.uri, hashlib.sha256(Path(photo.uri).read_bytes()).hexdigest(), label)
        for photo, label in folder.photos.items()
    ]


def example(number: int, label: int = 0, name: str = "") -> Example:
    sha = hashlib.sha256(f"{label} {number}".encode()).hexdigest()
    return Example(f"/photos/{label}/{name or number}.jpg", sha, label)


# --- Labels and files ---------------------------------------------------------------------------------


def count_photos(folder: dataset.DatasetListing) -> dict[str, int]:
    """Return the number of listed photos of each label."""
    return dataset.count_labels(folder.photos.values(), folder.labels)


def test_directories_are_labels_in_alphabetical_order_with_the_files_below_them(tmp_path: Path) -> None:
    top = write_photos(tmp_path / "photos", {"sushi": 2, "pizza": 3})
    (top / "pizza" / "oven" / "stone").mkdir(parents=True)
    (top / "pizza" / "oven" / "stone" / "x.JPG").write_bytes(b"x")
    folder = dataset.scan(top)
    assert folder.labels == ("pizza", "sushi")
    assert count_photos(folder) == {"pizza": 4, "sushi": 2}
    label_of = {Path(photo.uri): folder.labels[label] for photo, label in folder.photos.items()}
    assert label_of[top / "pizza" / "oven" / "stone" / "x.JPG"] == "pizza"
    assert label_of[top / "sushi" / "000.jpg"] == "sushi"


def test_hidden_files_and_directories_are_left_out(tmp_path: Path) -> None:
    top = write_photos(tmp_path / "photos", {"pizza": 1, "sushi": 1, ".thumbnails": 5})
    (top / "pizza" / ".DS_Store").write_bytes(b"x")
    assert count_photos(dataset.scan(top)) == {"pizza": 1, "sushi": 1}


@pytest.mark.parametrize(
    "name", ["寿司", "crème brûlée", "a [b] *?", "Ice Cream", "label with 'quotes'", "🍣", "100%", "ß"]
)
def test_a_label_is_the_name_of_its_directory_verbatim(tmp_path: Path, name: str) -> None:
    top = write_photos(tmp_path / "photos [all]", {name: 2, "other": 1})
    assert count_photos(dataset.scan(top)) == {name: 2, "other": 1}


def test_a_decomposed_name_stays_decomposed(tmp_path: Path) -> None:
    name = unicodedata.normalize("NFD", "crème")
    assert name in dataset.scan(write_photos(tmp_path / "photos", {name: 1, "other": 1})).labels


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("crème", unicodedata.normalize("NFD", "crème")),
        ("Pizza", "pizza"),
        ("STRASSE", "straße"),
        ("pizza", "pizza "),
    ],
)
def test_labels_that_differ_only_in_case_or_unicode_form_are_an_error_that_names_both(
    tmp_path: Path, one: str, other: str
) -> None:
    top = write_photos(tmp_path / "photos", {one: 1, other: 1, "sushi": 1})
    with pytest.raises(InputError, match="differ only in case, space or Unicode form") as caught:
        dataset.scan(top)
    assert repr(one) in caught.value.what
    assert repr(other) in caught.value.what
    assert caught.value.remedy


def test_a_label_that_is_not_utf8_is_an_error(tmp_path: Path) -> None:
    top = write_photos(tmp_path / "photos", {"pizza": 1, "sushi": 1})
    os.mkdir(os.fsencode(top) + b"/caf\xe9")  # noqa: PTH102 # a name that no str spells
    with pytest.raises(InputError, match=r"caf\\xe9.*not UTF-8"):
        dataset.scan(top)


@pytest.mark.parametrize("name", ["piz\nza", "piz\u2028za", "piz\rza"])
def test_a_label_with_a_line_break_is_an_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="line break"):
        dataset.scan(write_photos(tmp_path / "photos", {name: 1, "sushi": 1}))


@pytest.mark.parametrize("name", [" ", "\u200b", "\ufeff\u2060"])
def test_a_label_that_cannot_be_seen_is_an_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="nothing that can be seen") as caught:
        dataset.scan(write_photos(tmp_path / "photos", {name: 1, "sushi": 1}))
    assert repr(name) in caught.value.what
    with pytest.raises(InputError, match="null character"):
        check_label_names(["a\0b"], where="labels.txt")
    check_label_names(["\u0301a", "日", "😀", "-"], where="labels.txt")


def test_an_empty_label_is_left_out_with_a_warning(tmp_path: Path) -> None:
    folder = dataset.scan(write_photos(tmp_path / "photos", {"empty": 0, "pizza": 30, "sushi": 30}))
    assert folder.labels == ("pizza", "sushi")
    assert folder.warnings == ("Label 'empty' has no photos and is left out.",)


def test_a_label_with_few_photos_gets_a_warning_with_the_count(tmp_path: Path) -> None:
    folder = dataset.scan(write_photos(tmp_path / "photos", {"pizza": 19, "sushi": 20}))
    assert len(folder.warnings) == 1
    assert "'pizza' has 19 photos" in folder.warnings[0]


def test_files_outside_the_label_directories_are_counted_and_left_out(tmp_path: Path) -> None:
    top = write_photos(tmp_path / "photos", {"pizza": 20, "sushi": 20})
    for name in ("readme.txt", "loose.jpg"):
        (top / name).write_bytes(b"x")
    folder = dataset.scan(top)
    assert len(folder.photos) == 40
    assert folder.warnings == ("2 files outside the label directories are left out.",)


def test_photos_for_an_evaluation_have_the_label_of_the_first_directory(tmp_path: Path) -> None:
    top = write_photos(tmp_path / "photos", {"pizza/oven": 1, "sushi": 1})
    (top / "loose.jpg").write_bytes(b"x")
    found = {os.path.relpath(photo.photo.uri, top): photo.label for photo in dataset.list_photos(top).photos}
    assert found == {"loose.jpg": None, "pizza/oven/000.jpg": "pizza", "sushi/000.jpg": "sushi"}
    sets = write_photos(tmp_path / "sets", {"train/pizza": 1, "test/sushi": 1})
    assert [photo.label for photo in dataset.list_photos(sets).photos] == ["sushi", "pizza"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="No photos in"):
        dataset.list_photos(tmp_path / "empty")


@pytest.mark.parametrize(
    ("photos", "message"),
    [
        ({}, "no label with photos"),
        ({"pizza": 0}, "no label with photos"),
        ({"pizza": 3}, "only the label 'pizza'"),
        ({"pizza": 3, "sushi": 0}, "only the label 'pizza'"),
    ],
)
def test_fewer_than_two_labels_are_an_error(tmp_path: Path, photos: dict[str, int], message: str) -> None:
    top = tmp_path / "photos"
    top.mkdir()
    with pytest.raises(InputError, match=message):
        dataset.scan(write_photos(top, photos))


def test_a_missing_directory_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere"):
        dataset.scan(tmp_path / "nowhere")


def test_a_relative_path_finds_the_same_photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    top = write_photos(tmp_path / "photos", {"pizza": 2, "sushi": 2})
    monkeypatch.chdir(tmp_path)
    for spelling in ("photos", "./photos", "photos/", "../" + tmp_path.name + "/photos"):
        assert dataset.scan(spelling) == dataset.scan(top)


def test_one_photo_under_two_labels_is_reported_with_both_labels_and_paths() -> None:
    twin = Example("/photos/1/twin.jpg", example(3).sha256, 1)
    [sentence] = dataset.describe_conflicting_labels([example(3), example(4), twin], ["pizza", "sushi"])
    for part in ("'pizza'", "'sushi'", "/photos/0/3.jpg", "/photos/1/twin.jpg"):
        assert part in sentence


def test_many_labels_with_few_photos_get_one_warning(tmp_path: Path) -> None:
    photos = {f"label {number:03}": 4 for number in range(257)} | {"rare": 3, "enough": 20}
    (warning,) = dataset.scan(write_photos(tmp_path, photos)).warnings
    assert warning.startswith("258 labels have fewer than 20 photos to train on, 'rare' the fewest (3);")
    few = {f"label {number}": 4 for number in range(10)}
    assert len(dataset.scan(write_photos(tmp_path / "few", few)).warnings) == 10


# --- The split ------------------------------------------------------------------------------------------


def split_by_name(top: Path | str) -> dict[str, Subset]:
    examples = examples_of(top)
    subsets = dataset.split(examples, SplitSettings())
    return {Path(item.uri).name: subset for item, subset in zip(examples, subsets, strict=True)}


def test_the_split_does_not_depend_on_the_path_of_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    top = write_photos(tmp_path / "photos", {"pizza": 60, "sushi": 60})
    copy = tmp_path / "elsewhere_nohash_" / "copy"
    shutil.copytree(top, copy)
    monkeypatch.chdir(tmp_path)
    here = dataset.split(examples_of(top), SplitSettings())
    assert set(here) == set(Subset)
    assert dataset.split(examples_of(copy), SplitSettings()) == here
    assert dataset.split(examples_of("./photos"), SplitSettings()) == here


def test_a_renamed_photo_stays_in_its_set() -> None:
    before = [example(number) for number in range(200)]
    after = [Example(f"/other/0/renamed-{item.sha256[:5]}.png", item.sha256, 0) for item in before]
    assert dataset.split(before, SplitSettings()) == dataset.split(after, SplitSettings())


@settings(max_examples=60, deadline=None)
@given(st.permutations(range(60)), st.integers(30, 59))
def test_photos_stay_in_their_sets_as_the_folder_grows(order: Sequence[int], size: int) -> None:
    everything = [example(number) for number in range(60)]
    full = dict(zip(everything, dataset.split(everything, SplitSettings(20, 20)), strict=True))
    part = [everything[number] for number in order[:size]]
    moved = [
        item
        for item, subset in zip(part, dataset.split(part, SplitSettings(20, 20)), strict=True)
        if full[item] is not subset
    ]
    # One photo at most for each set that the smaller folder would have left empty.
    assert len(moved) <= sum(
        not any(full[item] is subset for item in part) for subset in (VALIDATION, TESTING)
    )


def test_a_new_label_moves_no_photo(tmp_path: Path) -> None:
    top = write_photos(tmp_path / "photos", {"pizza": 40, "sushi": 40})
    for label in ("pizza", "sushi"):
        for number in range(60):
            (top / label / f"{label}{number // 3}_nohash_{number}.jpg").write_bytes(
                f"{label}{number}!".encode()
            )
    examples = examples_of(top)
    before = {
        item.uri: subset
        for item, subset in zip(examples, dataset.split(examples, SplitSettings()), strict=True)
    }
    write_photos(top, {"apple pie": 30})
    examples = examples_of(top)
    after = {
        item.uri: subset
        for item, subset in zip(examples, dataset.split(examples, SplitSettings()), strict=True)
    }
    assert {uri: after[uri] for uri in before} == before


@settings(max_examples=300, deadline=None)
@given(
    counts=st.lists(st.integers(3, 12), min_size=1, max_size=4),
    seed=st.integers(0, 10**9),
    shares=st.tuples(st.sampled_from([1, 10, 45]), st.sampled_from([1, 10, 45])),
)
def test_every_label_has_a_photo_in_every_set(counts: list[int], seed: int, shares: tuple[int, int]) -> None:
    examples = [
        example(seed + number, label) for label, count in enumerate(counts) for number in range(count)
    ]
    found = defaultdict(set)
    for item, subset in zip(examples, dataset.split(examples, SplitSettings(*shares)), strict=True):
        found[item.label].add(subset)
    assert all(found[label] == set(Subset) for label in range(len(counts)))


@settings(max_examples=100, deadline=None)
@given(
    groups=st.lists(st.integers(1, 5), min_size=3, max_size=12),
    seed=st.integers(0, 10**9),
)
def test_photos_with_the_same_name_before_nohash_stay_together(groups: list[int], seed: int) -> None:
    examples = [
        example(seed + 10 * group + copy, name=f"dish{seed}-{group}_nohash_{copy}")
        for group, size in enumerate(groups)
        for copy in range(size)
    ]
    together = defaultdict(set)
    for item, subset in zip(examples, dataset.split(examples, SplitSettings()), strict=True):
        together[item.uri.partition("_nohash_")[0]].add(subset)
    assert all(len(subsets) == 1 for subsets in together.values())
    assert set.union(*together.values()) == set(Subset)


def test_count_groups_counts_groups_once() -> None:
    one_group = [example(number, name=f"dish_nohash_{number}") for number in range(30)]
    counts = count_groups([*one_group, example(1, 1), example(2, 1)], ["pizza", "sushi"])
    assert counts == {"pizza": 1, "sushi": 2}
    with pytest.raises(InputError, match=r"'pizza' \(1\), 'sushi' \(2\).*_nohash_"):
        check_counts(counts, SplitSettings())


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**9), testing=st.sampled_from([5, 10, 30]), validation=st.sampled_from([5, 10, 30])
)
def test_the_sets_have_about_their_shares(seed: int, testing: int, validation: int) -> None:
    count = 2000
    examples = [example(seed + number) for number in range(count)]
    found = Counter(dataset.split(examples, SplitSettings(testing, validation)))
    for subset, share in ((TESTING, testing), (VALIDATION, validation)):
        # Five standard deviations of a binomial count.
        allowed = 5 * (count * share / 100 * (1 - share / 100)) ** 0.5
        assert abs(found[subset] - count * share / 100) < allowed


def test_a_set_of_zero_percent_is_empty() -> None:
    examples = [example(number) for number in range(300)]
    assert set(dataset.split(examples, SplitSettings(0, 10))) == {TRAINING, VALIDATION}
    assert set(dataset.split(examples, SplitSettings(10, 0))) == {TRAINING, TESTING}
    assert set(dataset.split(examples, SplitSettings(0, 0))) == {TRAINING}


def test_labels_with_too_few_photos_are_an_error_that_counts_them() -> None:
    counts = {"pizza": 2, "sushi": 3, "soup": 1}
    with pytest.raises(InputError, match=r"each of 3 sets: 'pizza' \(2\), 'soup' \(1\)"):
        check_counts(counts, SplitSettings())
    with pytest.raises(InputError, match=r"each of 2 sets: 'soup' \(1\)"):
        check_counts(counts, SplitSettings(10, 0))
    check_counts(counts, SplitSettings(0, 0))


def test_count_labels_includes_zeros() -> None:
    assert dataset.count_labels([0, 0], ["pizza", "sushi"]) == {"pizza": 2, "sushi": 0}


@pytest.mark.parametrize(("testing", "validation"), [(60, 40), (100, 0), (-1, 10), (10, -0.5), (0, 100)])
def test_percentages_that_leave_nothing_to_train_on_are_an_error(testing: float, validation: float) -> None:
    with pytest.raises(InputError, match="leave nothing to train on"):
        SplitSettings(testing, validation)


# --- Groups of several labels ---------------------------------------------------------------------------


@st.composite
def grouped(draw: st.DrawFn) -> list[Example]:
    """Photos of two to four labels, some in groups that several labels share, some identical."""
    seed = draw(st.integers(0, 10**9))
    rows = draw(
        st.lists(
            st.tuples(st.integers(0, 3), st.one_of(st.none(), st.integers(0, 6)), st.integers(0, 20)),
            min_size=4,
            max_size=40,
            unique_by=lambda row: (row[0], row[2]),
        )
    )
    return [
        Example(
            f"/photos/{label}/{content}.jpg",
            hashlib.sha256(f"{seed} {content}".encode()).hexdigest(),
            label,
            "" if group is None else f"{seed} {group}",
        )
        for label, group, content in rows
    ]


@settings(max_examples=150, deadline=None)
@given(examples=grouped(), data=st.data())
def test_groups_and_identical_photos_stay_in_one_set_across_labels(
    examples: list[Example], data: st.DataObject
) -> None:
    rows = st.lists(st.integers(0, len(examples) - 1), min_size=2, max_size=4)
    together = data.draw(st.lists(rows, max_size=3))
    subsets = dataset.split(examples, SplitSettings(20, 20), together=together)
    sets_of: dict[str, set[Subset]] = defaultdict(set)
    for item, subset in zip(examples, subsets, strict=True):
        sets_of[item.sha256].add(subset)
        sets_of[item.group or item.sha256].add(subset)
    assert all(len(found) == 1 for found in sets_of.values())
    assert all(len({subsets[row] for row in rows}) == 1 for rows in together)
    order = data.draw(st.permutations(range(len(examples))))
    again = dataset.split(
        [examples[row] for row in order],
        SplitSettings(20, 20),
        together=[[order.index(row) for row in rows] for rows in together],
    )
    assert again == [subsets[row] for row in order]


@settings(max_examples=100, deadline=None)
@given(examples=grouped(), dropped=st.integers(0, 10**6))
def test_groups_of_several_labels_stay_in_their_sets_as_the_folder_grows(
    examples: list[Example], dropped: int
) -> None:
    """Without a repair of a set, only photos of the units that the new photo joins may move."""
    new_photo = examples[dropped % len(examples)]
    before = [item for item in examples if item != new_photo]
    labels = [str(label) for label in range(4)]
    chosen = SplitSettings(20, 20)
    old, new = dataset.split(before, chosen), dataset.split(examples, chosen)
    if dataset.describe_missing_labels(before, old, labels) or dataset.describe_missing_labels(
        examples, new, labels
    ):
        return
    after = dict(zip(examples, new, strict=True))
    joined = {new_photo.group, new_photo.sha256}
    for _ in examples:
        for item in examples:
            if joined & {item.group or item.sha256, item.sha256}:
                joined |= {item.group or item.sha256, item.sha256}
    moved = [
        item
        for item, subset in zip(before, old, strict=True)
        if after[item] is not subset and item.sha256 not in joined
    ]
    # A repair that the new photo makes unnecessary or necessary moves one unit for each set of its label.
    units = {item.group or item.sha256 for item in moved}
    assert len(units) <= 2 * len(labels)


def test_a_label_without_photos_in_a_set_is_reported() -> None:
    shared = [Example(f"/p/{label}.jpg", str(label), label, "one meal") for label in range(2)]
    subsets = dataset.split(shared, SplitSettings())
    assert len(set(subsets)) == 1
    others = [example(number, 0) for number in range(10)]
    subsets = dataset.split([*shared, *others], SplitSettings())
    assert dataset.describe_missing_labels([*shared, *others], subsets, ["pizza", "sushi"]) == [
        f"The {subset} set has no photo of the labels 'sushi'."
        for subset in Subset
        if subset is not subsets[1]
    ]


def test_sets_have_their_shares_when_units_have_many_groups() -> None:
    examples = [example(number) for number in range(6000)]
    together = [range(low, low + 3) for low in range(0, 6000, 3)]
    found = Counter(dataset.split(examples, SplitSettings(10, 10), together=together))
    for subset in (VALIDATION, TESTING):
        assert abs(found[subset] - 600) < 3 * 5 * (2000 * 0.1 * 0.9) ** 0.5


def test_a_group_that_grows_by_a_photo_stays_in_its_set() -> None:
    members = [Example(f"/p/{number}.jpg", str(number), 0, "meal") for number in range(50)]
    others = [example(number) for number in range(20)]
    found = {dataset.split([*others, *members[:size]], SplitSettings())[-1] for size in range(1, 50)}
    assert len(found) == 1


# --- Predefined sets ------------------------------------------------------------------------------------


def write_sets(top: Path, sets: dict[str, dict[str, int]]) -> Path:
    top.mkdir()
    for name, photos in sets.items():
        (top / name).mkdir()
        write_photos(top / name, photos)
        for path in (top / name).rglob("*.jpg"):
            path.write_bytes(f"{name} {path.read_bytes()!r}".encode())
    return top


def sets_of(folder: dataset.DatasetListing, chosen: SplitSettings) -> dict[tuple[str, str], Counter[Subset]]:
    """Return how many photos of each directory and label are in each set."""
    examples = [
        folder.make_example(photo, hashlib.sha256(Path(photo.uri).read_bytes()).hexdigest())
        for photo in folder.photos
    ]
    found: dict[tuple[str, str], Counter[Subset]] = defaultdict(Counter)
    for item, subset in zip(examples, dataset.split(examples, chosen), strict=True):
        found[Path(item.uri).parts[-3], folder.labels[item.label]][subset] += 1
    return found


@pytest.mark.parametrize("train", ["train", "training", "Train"])
@pytest.mark.parametrize("validation", ["val", "valid", "VALIDATION", "dev"])
@pytest.mark.parametrize("test", ["test", "testing"])
def test_predefined_sets_are_used_as_they_are(tmp_path: Path, train: str, validation: str, test: str) -> None:
    sizes = {train: {"pizza": 25, "sushi": 20}, validation: {"pizza": 2, "sushi": 3}, test: {"pizza": 4}}
    folder = dataset.scan(write_sets(tmp_path / "photos", sizes))
    assert folder.labels == ("pizza", "sushi")
    assert count_photos(folder) == {"pizza": 31, "sushi": 23}
    assert set(folder.subsets.values()) == {VALIDATION, TESTING}
    assert sets_of(folder, SplitSettings(40, 40)) == {
        (train, "pizza"): {TRAINING: 25},
        (train, "sushi"): {TRAINING: 20},
        (validation, "pizza"): {VALIDATION: 2},
        (validation, "sushi"): {VALIDATION: 3},
        (test, "pizza"): {TESTING: 4},
    }
    directories = ", ".join(f"{name}/" for name in sorted(sizes))
    assert folder.warnings == (
        f"The sets are predefined by the directories {directories}: "
        "45 for training, 5 for validation, 4 for testing.",
    )


def test_a_set_that_is_not_predefined_is_split_off_from_training(tmp_path: Path) -> None:
    sizes = {"train": {"pizza": 100, "sushi": 100}, "val": {"pizza": 5, "sushi": 5}}
    folder = dataset.scan(write_sets(tmp_path / "photos", sizes))
    assert folder.warnings == (
        "The sets are predefined by the directories train/, val/: 200 for training, 10 for validation; "
        "photos for testing are split off from training.",
    )
    found = sets_of(folder, SplitSettings(20, 20))
    for label in ("pizza", "sushi"):
        assert found["val", label] == {VALIDATION: 5}
        assert set(found["train", label]) == {TRAINING, TESTING}
        assert 5 < found["train", label][TESTING] < 40
    assert sets_of(folder, SplitSettings(0, 20))["train", "pizza"] == {TRAINING: 100}
    assert TESTING in sets_of(folder, SplitSettings(20, 20, "retrain"))["train", "pizza"]
    assert VALIDATION not in sets_of(folder, SplitSettings(20, 20, "retrain"))["train", "pizza"]


def test_a_single_train_directory_is_split_like_a_plain_folder(tmp_path: Path) -> None:
    folder = dataset.scan(write_sets(tmp_path / "photos", {"train": {"pizza": 60, "sushi": 60}}))
    plain = dataset.scan(tmp_path / "photos" / "train")
    assert folder.labels == ("pizza", "sushi")
    assert sets_of(folder, SplitSettings()) == sets_of(plain, SplitSettings())
    assert "split off from training" in folder.warnings[0]


@pytest.mark.parametrize(
    "sets",
    [
        {"train": {"pizza": 1}, "test": {"pizza": 1}, "other": {"pizza": 1}},
        {"val": {"pizza": 1}, "test": {"pizza": 1}},
        {"train": {"pizza": 1}, "test": {}},
    ],
)
def test_directories_are_labels_unless_all_are_sets(tmp_path: Path, sets: dict[str, dict[str, int]]) -> None:
    top = write_sets(tmp_path / "photos", sets)
    for name in sets:
        (top / name / "loose.jpg").write_bytes(b"x")
    assert set(dataset.scan(top).labels) == set(sets)
    assert not dataset.scan(top).subsets


def test_files_outside_the_label_directories_of_a_set_are_counted_and_left_out(tmp_path: Path) -> None:
    top = write_sets(tmp_path / "photos", {name: {"pizza": 20, "sushi": 20} for name in ("train", "test")})
    for name in ("readme.txt", "train/loose.jpg"):
        (top / name).write_bytes(b"x")
    assert "2 files outside the label directories are left out." in dataset.scan(top).warnings


def test_two_directories_for_one_set_are_an_error(tmp_path: Path) -> None:
    sets = {name: {"pizza": 3, "sushi": 3} for name in ("train", "val", "dev")}
    with pytest.raises(InputError, match="dev/ and val/ are both for validation"):
        dataset.scan(write_sets(tmp_path / "photos", sets))


def test_labels_without_training_photos_are_an_error(tmp_path: Path) -> None:
    sets = {"train": {"pizza": 3, "sushi": 3, "soup": 0}, "test": {"soup": 1, "pizza": 1}, "val": {"rice": 1}}
    with pytest.raises(InputError, match=r"for 'rice', 'soup': all .* for testing and validation") as caught:
        dataset.scan(write_sets(tmp_path / "photos", sets))
    assert caught.value.remedy


def test_labels_of_two_sets_that_differ_in_case_are_an_error(tmp_path: Path) -> None:
    sets = {"train": {"pizza": 3, "sushi": 3}, "test": {"Pizza": 1, "sushi": 1}}
    with pytest.raises(InputError, match="'Pizza' and 'pizza' differ only in case"):
        dataset.scan(write_sets(tmp_path / "photos", sets))


def test_too_few_photos_are_counted_among_those_to_split(tmp_path: Path) -> None:
    sets = {"train": {"pizza": 1, "sushi": 2}, "val": {"pizza": 9}}
    folder = dataset.scan(write_sets(tmp_path / "photos", sets))
    with pytest.raises(InputError, match=r"each of 2 sets: 'pizza' \(1\)\. "):
        dataset.check_listing(folder, SplitSettings())
    dataset.check_listing(folder, SplitSettings(0, 10))
    examples = [folder.make_example(photo, photo.uri) for photo in folder.photos]
    with pytest.raises(InputError, match=r"each of 2 sets: 'pizza' \(1\)\. "):
        dataset.check_examples(examples, folder.labels, SplitSettings())
    unreadable = [item for item in examples if item.subset is not TRAINING or item.label]
    with pytest.raises(InputError, match=r"for one in the training set: 'pizza' \(0\)\. "):
        dataset.check_examples(unreadable, folder.labels, SplitSettings(0, 10))
    with pytest.raises(InputError, match=r"'sushi' \(1\)"):
        dataset.check_examples(examples, folder.labels, SplitSettings(), together=[[1, 2, 10, 11]])


def test_identical_photos_count_for_the_test_set_first() -> None:
    same = [
        Example(f"/p/{number}", "same", 0, subset=subset)
        for number, subset in enumerate([TRAINING, VALIDATION, TRAINING, TESTING, TESTING])
    ]
    assert dataset.select_distinct(same) == [3]
    assert dataset.select_distinct(same[:3]) == [1]
    assert dataset.select_distinct([same[0], example(1), same[2], example(1, 1)]) == [0, 1, 3]


# --- retrain.py's own split -----------------------------------------------------------------------------


def retrain_subset(path: str, validation: float, testing: float) -> Subset:
    """Return the set that retrain.py assigns: a hash of the whole path up to `_nohash_`."""
    buckets = 2**27 - 1
    digest = hashlib.sha1(re.sub(r"_nohash_.*$", "", path).encode()).hexdigest()
    percentage = (int(digest, 16) % (buckets + 1)) * (100.0 / buckets)
    if percentage < validation:
        return VALIDATION
    return TESTING if percentage < testing + validation else TRAINING


@given(
    path=st.text(st.characters(codec="utf-8", exclude_characters="\n\0"), min_size=1).filter(
        lambda text: not text.startswith("file://")
    ),
    mark=st.sampled_from(["", "_nohash_", "_nohash_1_nohash_2"]),
    testing=st.integers(0, 40),
    validation=st.integers(0, 40),
)
def test_the_method_retrain_gives_the_sets_of_retrain_py(
    path: str, mark: str, testing: int, validation: int
) -> None:
    path = f"/photos/{path}{mark}.jpg"
    [subset] = dataset.split([Example(path, "0" * 64, 0)], SplitSettings(testing, validation, "retrain"))
    assert subset is retrain_subset(path, validation, testing)


@pytest.mark.parametrize("spelling", ["photos", "../{}/photos", "{}"])
def test_the_method_retrain_hashes_the_path_as_it_was_spelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spelling: str
) -> None:
    top = write_photos(tmp_path / "photos", {"pizza": 40, "sushi": 40})
    monkeypatch.chdir(tmp_path)
    spelling = str(top) if spelling == "{}" else spelling.format(tmp_path.name)
    examples = examples_of(spelling)
    subsets = dataset.split(examples, SplitSettings(10, 10, "retrain"), spelling)
    wanted = [
        retrain_subset(os.path.join(spelling, *Path(item.uri).parts[-2:]), 10, 10)  # noqa: PTH118
        for item in examples
    ]
    assert subsets == wanted


def test_the_method_retrain_may_leave_a_label_without_photos() -> None:
    check_counts({"pizza": 1, "sushi": 1}, SplitSettings(method="retrain"))


# --- Folders as people have them ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["__MACOSX", "@eaDir", "$RECYCLE.BIN", "#recycle", "lost+found", ".thumbnails"]
)
def test_directories_of_the_system_are_neither_labels_nor_sets(tmp_path: Path, name: str) -> None:
    sizes = {"train/pizza": 20, "train/sushi": 20, "test/pizza": 1, "test/sushi": 1}
    top = write_photos(tmp_path / "photos", {**sizes, name: 2, f"train/{name}": 2, f"train/pizza/{name}": 2})
    folder = dataset.scan(top)
    assert folder.labels == ("pizza", "sushi")
    assert len(folder.photos) == 42
    assert set(folder.subsets.values()) == {TESTING}
    assert folder.warnings[1:] == (f"3 directories of operating systems left out: {name}.",)
    assert dataset.scan(top / "train").labels == ("pizza", "sushi")
    assert len(dataset.list_photos(top).photos) == 42


def test_a_directory_without_photos_is_no_label(tmp_path: Path) -> None:
    top = write_photos(tmp_path / "photos", {"pizza": 20, "sushi": 20, "films": 0})
    (top / "models" / "food" / "1" / "assets").mkdir(parents=True)
    for name in ("saved_model.pb", "assets/labels.txt"):
        (top / "models" / "food" / "1" / name).write_bytes(b"not a photo")
    (top / "films" / "a.mp4").write_bytes(b"\0\0\0\x20ftypmp42" + bytes(20))
    folder = dataset.scan(top)
    assert count_photos(folder) == {"pizza": 20, "sushi": 20}
    assert folder.warnings == tuple(
        f"Label {name!r} has no photos and is left out." for name in ("films", "models")
    )


def test_pictures_that_the_training_itself_wrote_are_no_label(tmp_path: Path) -> None:
    top = write_photos(tmp_path / "photos", {"pizza": 20, "sushi": 20, "logs/projector": 1})
    assert dataset.scan(top, own=[str(top / "logs")]).labels == ("pizza", "sushi")
    assert dataset.scan(top, own=[str(tmp_path)]).labels == ("logs", "pizza", "sushi")


def test_photos_without_a_suffix_make_a_label(tmp_path: Path) -> None:
    top = write_photos(tmp_path / "photos", {"pizza": 20, "sushi": 20, "soup": 0, "heic": 0})
    (top / "soup" / "0").write_bytes(b"\xff\xd8\xff\xe0")
    (top / "heic" / "0.upload").write_bytes(b"\0\0\0\x18ftypheic" + bytes(20))
    assert count_photos(dataset.scan(top)) == {"heic": 1, "pizza": 20, "soup": 1, "sushi": 20}


def test_a_directory_without_photos_beside_sets_is_left_out(tmp_path: Path) -> None:
    top = write_sets(tmp_path / "photos", {name: {"pizza": 20, "sushi": 20} for name in ("train", "test")})
    (top / "models").mkdir()
    (top / "models" / "saved_model.pb").write_bytes(b"not a photo")
    folder = dataset.scan(top)
    assert folder.labels == ("pizza", "sushi")
    assert "models/ left out, without photos." in folder.warnings


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"test/pizza": 2, "extra": 2}, "test/ and train/ look like sets .* but extra/ does not"),
        ({"test/pizza": 2, "extra/pizza": 2}, "but extra/ does not"),
        ({"test": 2}, "but test/ does not"),
        ({"extra/sushi": 2, "more": 1}, "train/ looks like a set .* but extra/ and more/ do not"),
    ],
)
def test_sets_beside_other_directories_are_an_error(
    tmp_path: Path, others: dict[str, int], message: str
) -> None:
    sizes = {"train/pizza": 20, "train/sushi": 20}
    with pytest.raises(InputError, match=message) as caught:
        dataset.scan(write_photos(tmp_path / "photos", {**sizes, **others}))
    assert "train/<label>/" in caught.value.remedy


@pytest.mark.parametrize(
    ("others", "found"),
    [
        ({}, "but eval/ is not named like one."),
        ({"cats": 2}, "but cats/ does not. Move cats/ elsewhere or into the sets, as train/<label>/."),
    ],
)
def test_a_set_under_another_name_is_an_error_that_says_how_to_call_it(
    tmp_path: Path, others: dict[str, int], found: str
) -> None:
    sizes = {f"{name}/{label}": 20 for name in ("train", "eval") for label in ("pizza", "sushi")}
    with pytest.raises(InputError) as caught:
        dataset.scan(write_photos(tmp_path / "photos", sizes | others))
    text = str(caught.value)
    assert "eval/ and train/ look like sets with one directory per label, but" in text
    assert "Rename eval/ to val/ or test/. " in text
    assert found in text.replace("Rename eval/ to val/ or test/. ", "")


@pytest.mark.parametrize(
    "sets",
    [
        *(("train2017", "val2017"), ("Training_Set", "Test_Set"), ("train set", "validation set")),
        *(("train ", "test"), ("val", "test"), ("trainset", "testset"), ("my-train-data", "dev data")),
    ],
)
def test_labels_that_look_like_sets_are_an_error(tmp_path: Path, sets: tuple[str, str]) -> None:
    top = write_sets(tmp_path / "photos", {name: {"pizza": 2, "sushi": 2} for name in sets})
    one, other = sorted(sets)
    message = f"{one}/ and {other}/ look like sets .* pizza/ and sushi/"
    with pytest.raises(InputError, match=message) as caught:
        dataset.scan(top)
    assert "Rename the sets to train/" in caught.value.remedy
    top.rename(tmp_path / "train")
    (tmp_path / "photos").mkdir()
    (tmp_path / "train").rename(tmp_path / "photos" / "train")
    with pytest.raises(InputError, match=f"train/{one}/ and train/{other}/ look like sets") as caught:
        dataset.scan(tmp_path / "photos")
    assert str(tmp_path / "photos" / "train") in caught.value.remedy


@pytest.mark.parametrize(
    "sizes",
    [
        {"training shoe/red": 2, "test tube/glass": 2},
        {"train": 2, "test": 2},
        {"trains/red": 2, "tests/red": 2, "contrast/red": 2, "validity/red": 2},
    ],
)
def test_labels_may_be_called_somewhat_like_sets(tmp_path: Path, sizes: dict[str, int]) -> None:
    labels = sorted({name.partition("/")[0] for name in sizes})
    assert list(dataset.scan(write_photos(tmp_path / "photos", sizes)).labels) == labels


def test_a_label_may_be_called_train(tmp_path: Path) -> None:
    top = write_photos(tmp_path / "photos", {"train/steam": 2, "train/diesel": 2, "bus": 4, "car/red": 2})
    assert dataset.scan(top).labels == ("bus", "car", "train")


def test_labels_without_usable_photos_are_left_out_of_the_listing(tmp_path: Path) -> None:
    folder = dataset.scan(write_photos(tmp_path / "photos", {"a": 1, "b": 2, "c": 3}))
    assert count_photos(folder.keep_labels([0, 2])) == {"a": 1, "c": 3}
