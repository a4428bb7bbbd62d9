"""Which set a photo belongs to: by its content, so that it stays there wherever the file goes.

What is divided are units: photos that have to stay together, because they are identical, of one
group (a manifest's, or alike before `_nohash_`), or near-duplicates where the caller says so.
A unit's place between 0 and 100 is the hash of one of its groups, which decides its set.
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
from trainer.dataset.dataset import Example, Folder, Subset

_RETRAIN_BUCKETS = 2**27 - 1
"""MAX_NUM_IMAGES_PER_CLASS of retrain.py: part of how it hashes."""


@dataclass(frozen=True)
class SplitSettings:
    """How photos are divided.

    Attributes:
        testing_percentage, validation_percentage: share of the photos, 0 to 100, about.
        method: "content" (this project's), or "retrain" for the very sets of retrain.py,
            which depend on how the path is spelled (pathlib drops a leading "./" and a trailing
            "/") and may leave a label without photos.
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
                remedy="Give two shares of 0 or more that add up to less than 100.",
            )

    @property
    def held_out(self) -> tuple[tuple[Subset, float], ...]:
        """The sets beside training that are asked for, with their shares."""
        shares = (
            (Subset.VALIDATION, self.validation_percentage),
            (Subset.TESTING, self.testing_percentage),
        )
        return tuple((subset, share) for subset, share in shares if share > 0)

    def split_off(self, given: Collection[Subset]) -> tuple[Subset, ...]:
        """The sets that are asked for and not among those laid out."""
        return tuple(subset for subset, _ in self.held_out if subset not in given)


def check_counts(
    counts: Mapping[str, int], settings: SplitSettings, given: Collection[Subset] = frozenset()
) -> None:
    """Refuse labels that have too few photos for one in every set.

    Args:
        counts: photos of each label that are not laid out for another set than training; those
            that must stay together count once (`count_groups`).
        settings: the sets asked for.
        given: the sets that are laid out, which need nothing.

    Raises:
        InputError: with the labels and their counts.
    """
    if settings.method == "retrain":
        return
    needed = 1 + len(settings.split_off(given))
    short = [f"{label!r} ({count})" for label, count in counts.items() if count < needed]
    if short:
        sets = f"each of {needed} sets" if needed > 1 else "the training set"
        raise InputError(
            f"Too few photos for one in {sets}: {', '.join(short)}. Photos named alike before "
            "_nohash_, or of one group, stay together and count once.",
            remedy="Add photos, remove the label, or set --validation_percentage or --testing_percentage 0.",
        )


def check_folder(folder: Folder, settings: SplitSettings) -> None:
    """`check_counts` on what a folder or manifest lists, before any file is opened.

    Raises:
        InputError: with the labels that have too few files.
    """
    found = Counter(label for photo, label in folder.photos.items() if photo.uri not in folder.subsets)
    counts = {label: found[index] for index, label in enumerate(folder.labels)}
    check_counts(counts, settings, folder.given)


def check_examples(
    examples: Sequence[Example],
    labels: Sequence[str],
    settings: SplitSettings,
    together: Iterable[Sequence[int]] = (),
) -> None:
    """`check_counts` on the photos that can be used, groups and near-duplicates counted once.

    Raises:
        InputError: with the labels that have too few.
    """
    check_counts(count_groups(examples, labels, together), settings, _given(examples))


def split(
    examples: Sequence[Example],
    settings: SplitSettings,
    image_dir: str | os.PathLike[str] = "",
    together: Iterable[Sequence[int]] = (),
) -> list[Subset]:
    """Assign each photo to a set; the same photo always to the same one.

    Where photos are laid out for validation or testing, these sets are exactly those photos;
    a set that is asked for and not laid out is split off from the others.

    A label that would go without a set gets the unit whose place lies nearest to it, from its
    training photos where they can spare one; as the folder grows that repair becomes needless, and
    only that unit moves. A label with fewer units than sets (`check_counts`) stays without. So
    may one that shares its groups with other labels, since no unit is moved that another label
    cannot spare: `gaps` tells.

    Args:
        examples: distinct photos.
        settings: the sets and their shares.
        image_dir: the directory as the user spelled it, which the method "retrain" hashes.
        together: rows of examples that must come into one set, such as near-duplicates. The
            method "retrain" knows of none.
    """
    missing = settings.split_off(_given(examples))
    subsets = [example.subset or Subset.TRAINING for example in examples]
    if settings.method == "retrain":
        for row in _free(examples):
            position = _retrain_position(_spelled(examples[row].uri, os.fspath(image_dir)))
            subsets[row] = _subset(position, settings, missing)
        return subsets
    units = _units(examples, together)
    for unit, subset in zip(units, _assign(units, settings, missing), strict=True):
        for row in unit.rows:
            subsets[row] = subset
    return subsets


def gaps(examples: Sequence[Example], subsets: Sequence[Subset], labels: Sequence[str]) -> list[str]:
    """The labels that have no photo in a set that others have photos in, one sentence a set."""
    found = {(example.label, subset) for example, subset in zip(examples, subsets, strict=True)}
    sentences = []
    for subset in Subset:
        without = [label for index, label in enumerate(labels) if (index, subset) not in found]
        if 0 < len(without) < len(labels):
            names = ", ".join(map(repr, without))
            sentences.append(f"There is no photo for {subset} of the labels {names}.")
    return sentences


def count_groups(
    examples: Sequence[Example], labels: Sequence[str], together: Iterable[Sequence[int]] = ()
) -> dict[str, int]:
    """Units of photos of each label that the split may keep apart, zeros included."""
    counts = Counter(label for unit in _units(examples, together) for label in unit.labels)
    return {label: counts[index] for index, label in enumerate(labels)}


def group_numbers(examples: Sequence[Example], together: Iterable[Sequence[int]] = ()) -> NDArray[np.int64]:
    """int64 [N]: equal for photos that have to stay together, laid out for a set or not.

    Args:
        examples: distinct photos.
        together: rows of examples that must come into one part, such as near-duplicates.
    """
    numbers = np.empty(len(examples), np.int64)
    for number, rows in enumerate(_joined(examples, range(len(examples)), together)):
        numbers[rows] = number
    return numbers


@dataclass(frozen=True, slots=True)
class _Unit:
    """Photos that stay together.

    Attributes:
        rows: of the examples.
        labels: theirs.
        position: between 0 and 100; uniform, and the same wherever the files are.
    """

    rows: tuple[int, ...]
    labels: frozenset[int]
    position: float


def _given(examples: Iterable[Example]) -> frozenset[Subset]:
    return frozenset(example.subset for example in examples if example.subset) - {Subset.TRAINING}


def _free(examples: Sequence[Example]) -> list[int]:
    """The rows whose set is to be decided here."""
    return [row for row, example in enumerate(examples) if example.subset in (None, Subset.TRAINING)]


def _units(examples: Sequence[Example], together: Iterable[Sequence[int]]) -> list[_Unit]:
    """The photos to divide, joined by what keeps them together, in the order of their first rows."""
    return [
        _Unit(
            tuple(rows),
            frozenset(examples[row].label for row in rows),
            _position({_group(examples[row]) for row in rows}),
        )
        for rows in _joined(examples, _free(examples), together)
    ]


def _joined(
    examples: Sequence[Example], rows: Iterable[int], together: Iterable[Sequence[int]]
) -> list[list[int]]:
    """The given rows, those in one list that have to stay together, in the order of their first ones."""
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
        for key in (_key(examples[row]), ("", examples[row].sha256)):
            join(first.setdefault(key, row), row)
    for alike in together:
        known = [row for row in alike if row in root]
        for row in known[1:]:
            join(known[0], row)
    members: dict[int, list[int]] = {}
    for row in root:
        members.setdefault(find(row), []).append(row)
    return list(members.values())


def _assign(units: Sequence[_Unit], settings: SplitSettings, missing: Sequence[Subset]) -> list[Subset]:
    """The set of each unit, every label in every set as far as that can be."""
    subsets = [_subset(unit.position, settings, missing) for unit in units]
    counts = Counter(
        (label, subset) for unit, subset in zip(units, subsets, strict=True) for label in unit.labels
    )
    of_label: dict[int, list[int]] = {}
    for index in sorted(range(len(units)), key=lambda index: units[index].position):
        for label in units[index].labels:
            of_label.setdefault(label, []).append(index)
    for label, wanted in (
        (label, wanted) for label in sorted(of_label) for wanted in (*missing, Subset.TRAINING)
    ):
        if counts[label, wanted]:
            continue
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


def _group(example: Example) -> str:
    """What must stay together: a manifest's group, or photos of a directory alike before `_nohash_`."""
    path = Path(example.uri)
    name, mark, _ = path.name.partition("_nohash_")
    return example.group or (f"{path.parent.name}/{name}" if mark else example.sha256)


def _key(example: Example) -> tuple[int | str, str]:
    """The group with the realm in which its name counts: of a manifest's groups it is all labels."""
    group = _group(example)
    if example.group:
        return "group", group
    return ("" if group == example.sha256 else example.label), group


def _position(groups: Iterable[str]) -> float:
    """Where a unit lies between 0 and 100: the hash of one group, chosen by another part of the hash.

    Chosen so, and not as the lowest, positions of units of many groups are uniform as well, and
    another group that joins n moves the unit once in n + 1 times.
    """
    digests = (hashlib.sha256(group.encode(errors="surrogateescape")).digest() for group in groups)
    chosen = min(digests, key=lambda digest: digest[8:])
    return int.from_bytes(chosen[:8], "big") / 2**64 * 100


def _spelled(uri: str, image_dir: str) -> str:
    """The path as retrain.py saw it, which put what it found behind --image_dir as it was given."""
    path = local_path(uri)
    return os.path.join(image_dir, os.path.relpath(path, image_dir)) if image_dir else path  # noqa: PTH118


def _retrain_position(path: str) -> float:
    """As retrain.py: SHA-1 of the path as spelled, cut at `_nohash_`."""
    digest = hashlib.sha1(path.partition("_nohash_")[0].encode(errors="surrogateescape")).hexdigest()
    return int(digest, 16) % (_RETRAIN_BUCKETS + 1) * (100.0 / _RETRAIN_BUCKETS)


def _interval(subset: Subset, settings: SplitSettings) -> tuple[float, float]:
    """The positions of a set."""
    held_out = settings.validation_percentage + settings.testing_percentage
    return {
        Subset.VALIDATION: (0.0, settings.validation_percentage),
        Subset.TESTING: (settings.validation_percentage, held_out),
        Subset.TRAINING: (held_out, 100.0),
    }[subset]


def _subset(position: float, settings: SplitSettings, missing: Collection[Subset]) -> Subset:
    """The set at a position; training where that set is laid out."""
    for subset in (Subset.VALIDATION, Subset.TESTING):
        if position < _interval(subset, settings)[1]:
            return subset if subset in missing else Subset.TRAINING
    return Subset.TRAINING
