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
from itertools import chain, pairwise, product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from serving.errors import InputError
from serving.storage.files import local_path
from trainer.dataset.dataset import DatasetListing, Example, Subset, count_labels
from trainer.dataset.similarity_graph import find_components

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
    def intervals(self) -> dict[Subset, tuple[float, float]]:
        """Lowest and highest position of each set, in ascending order."""
        held_out = self.validation_percentage + self.testing_percentage
        return {
            Subset.VALIDATION: (0.0, self.validation_percentage),
            Subset.TESTING: (self.validation_percentage, held_out),
            Subset.TRAINING: (held_out, 100.0),
        }

    def missing_subsets(self, predefined: Collection[Subset]) -> tuple[Subset, ...]:
        """Return the requested sets other than training that are not predefined and have to be split off."""
        others = {*predefined, Subset.TRAINING}
        return tuple(s for s, (low, high) in self.intervals.items() if low < high and s not in others)


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
    to_split = (label for photo, label in listing.photos.items() if photo.uri not in listing.subsets)
    check_counts(count_labels(to_split, listing.labels), settings, set(listing.subsets.values()))


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
    predefined = {example.subset for example in examples}
    check_counts(count_groups(examples, labels, together), settings, predefined)


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
    subsets = [example.subset for example in examples]
    missing = settings.missing_subsets(subsets)
    if settings.method == "retrain":
        for row in _rows_to_split(examples):
            position = _retrain_position(examples[row].uri, os.fspath(image_dir))
            subsets[row] = _subset_at(position, settings, missing)
        return subsets
    units = _build_units(examples, together)
    _assign_units(units, settings, missing)
    for unit in units:
        for row in unit.rows:
            subsets[row] = unit.subset
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
    return count_labels((label for unit in _build_units(examples, together) for label in unit.labels), labels)


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


@dataclass(slots=True)
class _Unit:
    """Photos that are assigned to a set together.

    Attributes:
        rows: rows of the examples.
        labels: labels of these photos.
        position: value between 0 and 100, uniformly distributed and independent of the files' paths.
        subset: set that the unit is assigned to.
    """

    rows: tuple[int, ...]
    labels: frozenset[int]
    position: float
    subset: Subset = Subset.TRAINING


def _rows_to_split(examples: Sequence[Example]) -> list[int]:
    """Return the rows that are not predefined for validation or testing."""
    return [row for row, example in enumerate(examples) if example.subset is Subset.TRAINING]


def _build_units(examples: Sequence[Example], together: Iterable[Sequence[int]]) -> list[_Unit]:
    """Return the units of the photos to split, in the order of their first rows."""
    return [
        _Unit(
            tuple(rows),
            frozenset(examples[row].label for row in rows),
            _hash_position({_group_of(examples[row])[1] for row in rows}),
        )
        for rows in _join_rows(examples, _rows_to_split(examples), together)
    ]


def _join_rows(
    examples: Sequence[Example], rows: Iterable[int], together: Iterable[Sequence[int]]
) -> list[list[int]]:
    """Group the given rows by what has to stay together, in the order of each group's first row."""
    at = {row: index for index, row in enumerate(rows)}
    first: dict[tuple[int | str, str], int] = {}
    alike = (
        (first.setdefault(key, index), index)
        for row, index in at.items()
        for key in (_group_of(examples[row]), ("", examples[row].sha256))
    )
    joined = (pairwise(at[row] for row in rows if row in at) for rows in together)
    links = np.fromiter(chain(alike, *joined), np.dtype((np.int64, 2)))
    members: dict[int, list[int]] = {}
    for row, component in zip(at, find_components(len(at), *links.T).tolist(), strict=True):
        members.setdefault(component, []).append(row)
    return list(members.values())


def _assign_units(units: Sequence[_Unit], settings: SplitSettings, missing: Sequence[Subset]) -> None:
    """Assign each unit to a set, with every label in every set as far as possible."""
    # Repair: labels and sets in a fixed order, units by position, so that the result is deterministic.
    of_label: dict[int, list[_Unit]] = {}
    for unit in sorted(units, key=lambda unit: unit.position):
        unit.subset = _subset_at(unit.position, settings, missing)
        for label in unit.labels:
            of_label.setdefault(label, []).append(unit)
    counts = Counter((label, unit.subset) for unit in units for label in unit.labels)
    for label, wanted in product(sorted(of_label), (*missing, Subset.TRAINING)):
        if counts[label, wanted]:
            continue
        low, high = settings.intervals[wanted]
        # A unit may move only if none of its labels loses its last unit in the set that it leaves.
        spare = [unit for unit in of_label[label] if all(counts[one, unit.subset] > 1 for one in unit.labels)]
        if spare:
            in_training = [unit for unit in spare if unit.subset is Subset.TRAINING]
            nearest = min(in_training or spare, key=lambda u: max(low - u.position, u.position - high))
            for other in nearest.labels:
                counts[other, nearest.subset] -= 1
                counts[other, wanted] += 1
            nearest.subset = wanted


def _group_of(example: Example) -> tuple[int | str, str]:
    """Return the scope and the name of the group that an example belongs to.

    It is the manifest's group, among all labels; else the directory and the name before `_nohash_`,
    among the photos of the label; else the content's digest.
    """
    if example.group:
        return "group", example.group
    path = Path(example.uri)
    name, mark, _ = path.name.partition("_nohash_")
    return (example.label, f"{path.parent.name}/{name}") if mark else ("", example.sha256)


def _hash_position(groups: Iterable[str]) -> float:
    """Return a unit's position between 0 and 100: the hash of one of its groups.

    One part of the hash selects the group and another part gives the position. Positions of units
    with many groups are therefore uniform too (the minimum of the positions would not be), and a
    group that joins n others moves the unit with a probability of 1 / (n + 1).
    """
    digests = (hashlib.sha256(group.encode(errors="surrogateescape")).digest() for group in groups)
    chosen = min(digests, key=lambda digest: digest[8:])
    return int.from_bytes(chosen[:8], "big") / 2**64 * 100


def _retrain_position(uri: str, image_dir: str) -> float:
    """Return the position that retrain.py computes: SHA-1 of the path as spelled, up to `_nohash_`.

    retrain.py spelled a path as --image_dir as given, joined with the relative path.
    """
    path = local_path(uri)
    if image_dir:
        path = os.path.join(image_dir, os.path.relpath(path, image_dir))  # noqa: PTH118
    digest = hashlib.sha1(path.partition("_nohash_")[0].encode(errors="surrogateescape")).hexdigest()
    return int(digest, 16) % (_RETRAIN_BUCKETS + 1) * (100.0 / _RETRAIN_BUCKETS)


def _subset_at(position: float, settings: SplitSettings, missing: Collection[Subset]) -> Subset:
    """Return the set at a position; training if that set is predefined or not requested."""
    found = next(
        (subset for subset, (_, high) in settings.intervals.items() if position < high), Subset.TRAINING
    )
    return found if found in missing else Subset.TRAINING
