"""Split of the photos into sets by their content, so that a photo keeps its set when its file moves.

The split assigns units: photos that have to stay together because they are identical, belong to one
group (of the manifest, or with the same name before `_nohash_`), or are near-duplicates, if the
caller says so. The hash of one of a unit's groups gives its position between 0 and 100, and the
position decides its set.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from serving.errors import InputError
from serving.storage.files import local_path
from trainer.dataset.dataset import DatasetListing, Example, Subset

_RETRAIN_BUCKETS = 2**27 - 1
"""MAX_NUM_IMAGES_PER_CLASS of retrain.py; part of its hash."""


@dataclass(frozen=True)
class SplitSettings:
    """Sizes of the sets and method of the split.

    Attributes:
        testing_percentage, validation_percentage: approximate share of the photos, 0 to 100.
        method: "content", or "retrain" to reproduce the sets of retrain.py exactly. The latter
            depend on how the path is spelled (pathlib drops a leading "./" and a trailing "/") and
            may leave a label without photos.
    """

    testing_percentage: float = 10.0
    validation_percentage: float = 10.0
    method: str = "content"

    def __post_init__(self) -> None:
        held_out = self.testing_percentage + self.validation_percentage
        if min(self.testing_percentage, self.validation_percentage) < 0 or held_out >= 100:
            raise InputError(
                f"--testing_percentage {self.testing_percentage:g} and --validation_percentage "
                f"{self.validation_percentage:g} leave nothing to train on.",
                remedy="Give two percentages of 0 or more with a sum below 100.",
            )

    @property
    def held_out(self) -> tuple[tuple[Subset, float], ...]:
        """Requested sets other than training, with their percentages."""
        shares = (
            (Subset.VALIDATION, self.validation_percentage),
            (Subset.TESTING, self.testing_percentage),
        )
        return tuple((subset, share) for subset, share in shares if share > 0)

    def missing_subsets(self, predefined: Collection[Subset]) -> tuple[Subset, ...]:
        """Return the requested sets that are not predefined and have to be split off."""
        return tuple(subset for subset, _ in self.held_out if subset not in predefined)


def check_counts(
    counts: Mapping[str, int], settings: SplitSettings, predefined: Collection[Subset] = frozenset()
) -> None:
    """Check that every label has enough photos for one in each set that is split off.

    Args:
        counts: photos of each label that are not predefined for validation or testing; photos that
            must stay together count once (`count_groups`).
        settings: requested sets.
        predefined: sets that are predefined and need no photos from the split.

    Raises:
        InputError: a label has too few photos; the message lists the labels with their counts.
    """
    if settings.method == "retrain":
        return
    needed = 1 + len(settings.missing_subsets(predefined))
    short = [f"{label!r} ({count})" for label, count in counts.items() if count < needed]
    if short:
        sets = f"each of {needed} sets" if needed > 1 else "the training set"
        raise InputError(
            f"Too few photos for one in {sets}: {', '.join(short)}. Photos of one group, or with the same "
            "name before _nohash_, stay together and count once.",
            remedy="Add photos, remove the label, or set --validation_percentage or --testing_percentage 0.",
        )


def check_listing(listing: DatasetListing, settings: SplitSettings) -> None:
    """Apply `check_counts` to the files of a folder or manifest, before any of them is opened.

    Raises:
        InputError: a label has too few files.
    """
    found = Counter(label for photo, label in listing.photos.items() if photo.uri not in listing.subsets)
    counts = {label: found[index] for index, label in enumerate(listing.labels)}
    check_counts(counts, settings, listing.predefined_subsets)


def check_examples(
    examples: Sequence[Example],
    labels: Sequence[str],
    settings: SplitSettings,
    together: Iterable[Sequence[int]] = (),
) -> None:
    """Apply `check_counts` to the usable photos; groups and near-duplicates count once.

    Raises:
        InputError: a label has too few photos.
    """
    check_counts(count_groups(examples, labels, together), settings, _predefined_subsets(examples))


def split(
    examples: Sequence[Example],
    settings: SplitSettings,
    image_dir: str | os.PathLike[str] = "",
    together: Iterable[Sequence[int]] = (),
) -> list[Subset]:
    """Assign each photo to a set; the same photo always gets the same set.

    Predefined validation and test sets are used exactly as they are. A requested set that is not
    predefined is split off from the remaining photos.

    If a label has no unit in a set, the unit whose position is nearest to that set moves there,
    preferably one of the training set. As the folder grows the repair becomes unnecessary, and only
    that unit moves back. A label with fewer units than sets (`check_counts`) keeps its gap. So may a
    label that shares its groups with other labels, since no unit moves that another label needs in
    its set: `describe_missing_labels` reports such gaps.

    Args:
        examples: distinct photos.
        settings: requested sets and their percentages.
        image_dir: directory as the user spelled it; the method "retrain" hashes it.
        together: rows of examples that must be in one set, such as near-duplicates; ignored by the
            method "retrain".

    Returns:
        The set of each example.
    """
    missing = settings.missing_subsets(_predefined_subsets(examples))
    subsets = [example.subset or Subset.TRAINING for example in examples]
    if settings.method == "retrain":
        for row in _rows_to_split(examples):
            position = _retrain_position(_retrain_path(examples[row].uri, os.fspath(image_dir)))
            subsets[row] = _subset_at(position, settings, missing)
        return subsets
    units = _build_units(examples, together)
    for unit, subset in zip(units, _assign_units(units, settings, missing), strict=True):
        for row in unit.rows:
            subsets[row] = subset
    return subsets


def describe_missing_labels(
    examples: Sequence[Example], subsets: Sequence[Subset], labels: Sequence[str]
) -> list[str]:
    """Return one sentence for each set in which some labels have photos and others have none."""
    found = {(example.label, subset) for example, subset in zip(examples, subsets, strict=True)}
    sentences = []
    for subset in Subset:
        without = [label for index, label in enumerate(labels) if (index, subset) not in found]
        if 0 < len(without) < len(labels):
            names = ", ".join(map(repr, without))
            sentences.append(f"The {subset} set has no photo of the labels {names}.")
    return sentences


def count_groups(
    examples: Sequence[Example], labels: Sequence[str], together: Iterable[Sequence[int]] = ()
) -> dict[str, int]:
    """Return the number of units of each label, zeros included; a unit is never split across sets."""
    counts = Counter(label for unit in _build_units(examples, together) for label in unit.labels)
    return {label: counts[index] for index, label in enumerate(labels)}


def assign_groups(examples: Sequence[Example], together: Iterable[Sequence[int]] = ()) -> NDArray[np.int64]:
    """Return group ids int64 [N], equal for photos that have to stay together.

    Photos of predefined sets are included.

    Args:
        examples: distinct photos.
        together: rows of examples that must stay together, such as near-duplicates.
    """
    numbers = np.empty(len(examples), np.int64)
    for number, rows in enumerate(_join_rows(examples, range(len(examples)), together)):
        numbers[rows] = number
    return numbers


@dataclass(frozen=True, slots=True)
class _Unit:
    """Photos that are assigned to a set together.

    Attributes:
        rows: rows of the examples.
        labels: labels of these photos.
        position: value between 0 and 100, uniformly distributed and independent of the files' paths.
    """

    rows: tuple[int, ...]
    labels: frozenset[int]
    position: float


def _predefined_subsets(examples: Iterable[Example]) -> frozenset[Subset]:
    return frozenset(example.subset for example in examples if example.subset) - {Subset.TRAINING}


def _rows_to_split(examples: Sequence[Example]) -> list[int]:
    """Return the rows that are not predefined for validation or testing."""
    return [row for row, example in enumerate(examples) if example.subset in (None, Subset.TRAINING)]


def _build_units(examples: Sequence[Example], together: Iterable[Sequence[int]]) -> list[_Unit]:
    """Return the units of the photos to split, in the order of their first rows."""
    return [
        _Unit(
            tuple(rows),
            frozenset(examples[row].label for row in rows),
            _hash_position({_group_of(examples[row]) for row in rows}),
        )
        for rows in _join_rows(examples, _rows_to_split(examples), together)
    ]


def _join_rows(
    examples: Sequence[Example], rows: Iterable[int], together: Iterable[Sequence[int]]
) -> list[list[int]]:
    """Group the given rows by what has to stay together, in the order of each group's first row."""
    # Union-find: a root is always the lowest row of its group, so the order of the rows does not matter.
    root = {row: row for row in rows}

    def find(row: int) -> int:
        while root[row] != row:
            root[row] = root[root[row]]
            row = root[row]
        return row

    def join(one: int, other: int) -> None:
        low, high = sorted((find(one), find(other)))
        root[high] = low

    first: dict[tuple[int | str, str], int] = {}
    for row in root:
        for key in (_group_key(examples[row]), ("", examples[row].sha256)):
            join(first.setdefault(key, row), row)
    for alike in together:
        known = [row for row in alike if row in root]
        for row in known[1:]:
            join(known[0], row)
    members: dict[int, list[int]] = {}
    for row in root:
        members.setdefault(find(row), []).append(row)
    return list(members.values())


def _assign_units(units: Sequence[_Unit], settings: SplitSettings, missing: Sequence[Subset]) -> list[Subset]:
    """Return the set of each unit, with every label in every set as far as possible."""
    subsets = [_subset_at(unit.position, settings, missing) for unit in units]
    counts = Counter(
        (label, subset) for unit, subset in zip(units, subsets, strict=True) for label in unit.labels
    )
    # Repair: labels and sets in a fixed order, units by position, so that the result is deterministic.
    of_label: dict[int, list[int]] = {}
    for index in sorted(range(len(units)), key=lambda index: units[index].position):
        for label in units[index].labels:
            of_label.setdefault(label, []).append(index)
    for label, wanted in (
        (label, wanted) for label in sorted(of_label) for wanted in (*missing, Subset.TRAINING)
    ):
        if counts[label, wanted]:
            continue
        # A unit may move only if none of its labels loses its last unit in the set that it leaves.
        spare = [
            index
            for index in of_label[label]
            if all(counts[other, subsets[index]] > 1 for other in units[index].labels)
        ]
        if spare:
            low, high = _interval(wanted, settings)
            nearest = min(
                spare,
                key=lambda index: (
                    subsets[index] is not Subset.TRAINING,
                    max(low - units[index].position, units[index].position - high),
                ),
            )
            for other in units[nearest].labels:
                counts[other, subsets[nearest]] -= 1
                counts[other, wanted] += 1
            subsets[nearest] = wanted
    return subsets


def _group_of(example: Example) -> str:
    """Return the manifest's group, else directory and name before `_nohash_`, else the content's digest."""
    path = Path(example.uri)
    name, mark, _ = path.name.partition("_nohash_")
    return example.group or (f"{path.parent.name}/{name}" if mark else example.sha256)


def _group_key(example: Example) -> tuple[int | str, str]:
    """Return the group with its scope: all labels for a manifest's group, the label for `_nohash_`."""
    group = _group_of(example)
    if example.group:
        return "group", group
    return ("" if group == example.sha256 else example.label), group


def _hash_position(groups: Iterable[str]) -> float:
    """Return a unit's position between 0 and 100: the hash of one of its groups.

    One part of the hash selects the group and another part gives the position. Positions of units
    with many groups are therefore uniform too (the minimum of the positions would not be), and a
    group that joins n others moves the unit with a probability of 1 / (n + 1).
    """
    digests = (hashlib.sha256(group.encode(errors="surrogateescape")).digest() for group in groups)
    chosen = min(digests, key=lambda digest: digest[8:])
    return int.from_bytes(chosen[:8], "big") / 2**64 * 100


def _retrain_path(uri: str, image_dir: str) -> str:
    """Return the path as retrain.py spelled it: --image_dir as given, joined with the relative path."""
    path = local_path(uri)
    return os.path.join(image_dir, os.path.relpath(path, image_dir)) if image_dir else path  # noqa: PTH118


def _retrain_position(path: str) -> float:
    """Return the position that retrain.py computes: SHA-1 of the path as spelled, up to `_nohash_`."""
    digest = hashlib.sha1(path.partition("_nohash_")[0].encode(errors="surrogateescape")).hexdigest()
    return int(digest, 16) % (_RETRAIN_BUCKETS + 1) * (100.0 / _RETRAIN_BUCKETS)


def _interval(subset: Subset, settings: SplitSettings) -> tuple[float, float]:
    """Return the lowest and highest position of a set."""
    held_out = settings.validation_percentage + settings.testing_percentage
    return {
        Subset.VALIDATION: (0.0, settings.validation_percentage),
        Subset.TESTING: (settings.validation_percentage, held_out),
        Subset.TRAINING: (held_out, 100.0),
    }[subset]


def _subset_at(position: float, settings: SplitSettings, missing: Collection[Subset]) -> Subset:
    """Return the set at a position; training if that set is predefined or not requested."""
    for subset in (Subset.VALIDATION, Subset.TESTING):
        if position < _interval(subset, settings)[1]:
            return subset if subset in missing else Subset.TRAINING
    return Subset.TRAINING
