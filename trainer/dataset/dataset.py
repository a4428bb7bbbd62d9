"""The labels and photos of a folder or dataset manifest, and the rows that training uses of them."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import NamedTuple

from batch.inputs.listing import Photo
from serving.errors import InputError

FEW_PHOTOS = 20
"""A label with fewer photos gets a warning, as in retrain.py."""

MAX_WARNINGS = 10
"""Labels with few photos up to which each gets a warning of its own; more of them get one in common."""


class Subset(StrEnum):
    """The sets of the split."""

    TRAINING = "training"
    VALIDATION = "validation"
    TESTING = "testing"


SET_NAMES = {
    "train": Subset.TRAINING,
    "training": Subset.TRAINING,
    "val": Subset.VALIDATION,
    "valid": Subset.VALIDATION,
    "validation": Subset.VALIDATION,
    "dev": Subset.VALIDATION,
    "test": Subset.TESTING,
    "testing": Subset.TESTING,
}
"""Name of a set in a directory or a manifest, in lower case, and the set. Case is ignored."""

# Identical photos in several sets count for the first of these sets: see `select_distinct`.
_PRECEDENCE = (Subset.TESTING, Subset.VALIDATION, Subset.TRAINING)


@dataclass(frozen=True)
class Example:
    """One distinct photo of one label.

    Attributes:
        uri: path or address of the photo.
        sha256: hex digest of the photo's content.
        label: index into the labels.
        group: name of the group, whose photos stay in one set; "" for none.
        subset: VALIDATION or TESTING if the folder or manifest predefines it, else TRAINING.
    """

    uri: str
    sha256: str
    label: int
    group: str = ""
    subset: Subset = Subset.TRAINING


@dataclass(frozen=True)
class DatasetListing:
    """The labels and files of a folder or dataset manifest, listed but not yet opened.

    Attributes:
        labels: label names, verbatim and sorted; they are the classes in this order.
        photos: every file, with the index of its label.
        warnings: messages for the user, one sentence each.
        left_out: (path, reason) of each entry that cannot be used.
        subsets: uri -> set, for the photos that are predefined for validation or testing.
        groups: uri -> group, for the photos that have one.
    """

    labels: tuple[str, ...]
    photos: Mapping[Photo, int]
    warnings: tuple[str, ...]
    left_out: tuple[tuple[str, str], ...] = ()
    subsets: Mapping[str, Subset] = field(default_factory=dict)
    groups: Mapping[str, str] = field(default_factory=dict)

    def make_example(self, photo: Photo, sha256: str) -> Example:
        """Return the example of a listed photo whose content has been hashed."""
        group, subset = self.groups.get(photo.uri, ""), self.subsets.get(photo.uri, Subset.TRAINING)
        return Example(photo.uri, sha256, self.photos[photo], group, subset)

    def keep_labels(self, kept: Sequence[int]) -> DatasetListing:
        """Return the listing with some of the labels, given by their indices in ascending order."""
        index = {label: number for number, label in enumerate(kept)}
        photos = {photo: index[label] for photo, label in self.photos.items() if label in index}
        return replace(self, labels=tuple(self.labels[label] for label in kept), photos=photos)


class LabelledPhoto(NamedTuple):
    """One listed photo with its label (None where it has none), its set and its group."""

    photo: Photo
    label: str | None
    subset: Subset = Subset.TRAINING
    group: str = ""


@dataclass(frozen=True)
class PhotoListing:
    """Contents of a folder or dataset manifest, before the checks of a training.

    Attributes:
        where: folder or manifest, for messages.
        photos: every photo once.
        names: label names, sorted; may include labels without photos.
        notes: messages for the user, one sentence each.
        sets_from: description of what predefines the sets; "" if nothing does.
        left_out: (path, reason) of each entry that cannot be used.
    """

    where: str
    photos: Sequence[LabelledPhoto]
    names: Sequence[str]
    notes: Sequence[str] = ()
    sets_from: str = ""
    left_out: Sequence[tuple[str, str]] = ()


def build_listing(listing: PhotoListing, remedy: str) -> DatasetListing:
    """Sort the labelled photos of a listing by label, and check that there are photos to train on.

    Args:
        listing: photos; those without a label are left out.
        remedy: advice for the error about fewer than two labels.

    Raises:
        InputError: fewer than two labels have photos, or one has none to train on.
    """
    names, where, left_out = listing.names, listing.where, listing.left_out
    check_label_names(names, where=where)
    files: dict[str, list[Photo]] = {name: [] for name in names}
    for photo, label, *_ in sorted(listing.photos, key=lambda entry: entry.photo.uri):
        if label is not None:
            files[label].append(photo)
    subsets = {entry.photo.uri: entry.subset for entry in listing.photos if entry.subset != Subset.TRAINING}
    groups = {entry.photo.uri: entry.group for entry in listing.photos if entry.group}
    labels = [name for name in names if files[name]]
    if len(labels) < 2:
        what = f"only the label {labels[0]!r}" if labels else "no label with photos"
        missing = f" {left_out[0][0]}, for example, is left out: {left_out[0][1]}." if left_out else ""
        if empty := [name for name in names if not files[name]]:
            missing += f" No file of {', '.join(map(repr, empty[:3]))} is a photo."
        raise InputError(f"{where} has {what}; at least two labels are needed.{missing}", remedy=remedy)
    trained = {name: sum(photo.uri not in subsets for photo in files[name]) for name in labels}
    if alone := [name for name in labels if not trained[name]]:
        raise InputError(
            f"{where}: nothing to train on for {', '.join(map(repr, alone))}: all photos are in the sets for "
            f"{' and '.join(sorted({subsets[photo.uri] for name in alone for photo in files[name]}))}.",
            remedy="Add training photos of each label, or remove these labels from the other sets.",
        )
    photos = {photo: index for index, name in enumerate(labels) for photo in files[name]}
    warnings = [*listing.notes, *_warn_of_few_photos(files, trained)]
    if listing.sets_from:
        warnings.insert(0, _describe_sets(listing.sets_from, len(photos), Counter(subsets.values())))
    return DatasetListing(tuple(labels), photos, tuple(warnings), tuple(left_out), subsets, groups)


def _warn_of_few_photos(files: Mapping[str, Sequence[Photo]], trained: Mapping[str, int]) -> Iterator[str]:
    """Yield warnings of labels that have no photos, or fewer than FEW_PHOTOS to train on."""
    few = {name: trained[name] for name, found in files.items() if found and trained[name] < FEW_PHOTOS}
    if len(few) > MAX_WARNINGS:
        fewest = min(few, key=lambda name: few[name])
        yield (
            f"{len(few)} labels have fewer than {FEW_PHOTOS} photos to train on, {fewest!r} the fewest "
            f"({few[fewest]}); labels with so few photos rarely train well."
        )
    for name, found in files.items():
        if not found:
            yield f"Label {name!r} has no photos and is left out."
        elif name in few and len(few) <= MAX_WARNINGS:
            what = "photos" if few[name] == len(found) else "photos to train on"
            yield f"Label {name!r} has {few[name]} {what}; fewer than {FEW_PHOTOS} rarely train well."


def _describe_sets(source: str, photos: int, held_out: Counter[Subset]) -> str:
    """Return the sentence that says which sets are predefined, and which are split off."""
    counts = Counter({Subset.TRAINING: photos - held_out.total()}) + held_out
    sizes = ", ".join(f"{counts[subset]} for {subset}" for subset in Subset if counts[subset])
    missing = " and ".join(subset for subset in Subset if not counts[subset])
    rest = f"; photos for {missing} are split off from training" if missing else ""
    return f"The sets are predefined by {source}: {sizes}{rest}."


def check_label_names(names: Iterable[str], *, where: str) -> None:
    """Check that label names can be written to labels.txt and told apart.

    Raises:
        InputError: a name is not UTF-8, contains a line break or a null character, or has no visible
            character, or two names differ only in case, surrounding space or Unicode form.
    """
    seen: dict[str, str] = {}
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"{where}: the label {os.fsencode(name)!r} is not UTF-8.",
                remedy="Rename it: labels.txt is encoded in UTF-8.",
            ) from error
        if len(name.splitlines()) != 1:
            raise InputError(
                f"{where}: the label {name!r} contains a line break.",
                remedy="Rename it: labels.txt has one label per line.",
            )
        if "\0" in name or not any(map(_is_visible, name)):
            raise InputError(
                f"{where}: the label {name!r} contains a null character or nothing that can be seen.",
                remedy="Rename it.",
            )
        key = unicodedata.normalize("NFC", name).casefold().strip()
        if seen.setdefault(key, name) != name:
            raise InputError(
                f"{where}: the labels {seen[key]!r} and {name!r} differ only in case, space or Unicode form.",
                remedy="Rename one of them, or merge their photos.",
            )


def _is_visible(character: str) -> bool:
    """Return whether a character has a glyph: it is neither a space nor a control or format character."""
    return unicodedata.category(character)[0] not in "CZ" or unicodedata.category(character) == "Co"


def select_distinct(examples: Sequence[Example]) -> list[int]:
    """Return the rows to use, ascending: one of each group of identical photos of a label.

    A photo that is predefined for testing as well as for training counts for testing, so that the
    test figures do not include photos that the head was trained on; validation comes second.
    """
    chosen: dict[tuple[str, int], int] = {}
    for row in sorted(range(len(examples)), key=lambda row: _PRECEDENCE.index(examples[row].subset)):
        chosen.setdefault((examples[row].sha256, examples[row].label), row)
    return sorted(chosen.values())


def group_identical(examples: Iterable[Example]) -> list[list[Example]]:
    """Return the groups of two or more examples that have the same bytes."""
    by_content: dict[str, list[Example]] = {}
    for example in examples:
        by_content.setdefault(example.sha256, []).append(example)
    return [same for same in by_content.values() if len(same) > 1]


def describe_conflicting_labels(examples: Sequence[Example], labels: Sequence[str]) -> list[str]:
    """Return one sentence for each photo that has more than one label."""
    return [
        f"The same photo has the labels {' and '.join(repr(labels[e.label]) for e in same)}: "
        f"{', '.join(e.uri for e in same)}."
        for same in group_identical(examples)
        if len({e.label for e in same}) > 1
    ]


def count_labels(indices: Iterable[int], labels: Sequence[str]) -> dict[str, int]:
    """Return how often each label occurs among indices into the labels, zeros included."""
    counts = Counter(indices)
    return {label: counts[index] for index, label in enumerate(labels)}
