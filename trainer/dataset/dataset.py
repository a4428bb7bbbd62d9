"""What a folder or a manifest holds: labels, photos, and what is known of each photo."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from batch.inputs.listing import Photo
from serving.errors import InputError

FEW_PHOTOS = 20
"""Below this many photos a label is warned of, as in retrain.py."""


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
"""What directories and manifests call the sets, in any case."""

_RANK = {Subset.TESTING: 0, Subset.VALIDATION: 1, Subset.TRAINING: 2, None: 2}


@dataclass(frozen=True)
class Example:
    """One distinct photo of one label.

    Attributes:
        uri: its path.
        sha256: hex digest of its content.
        label: index into the labels.
        group: photos of a group stay in one set, "" for none.
        subset: VALIDATION or TESTING where the folder or the manifest says so, else None.
    """

    uri: str
    sha256: str
    label: int
    group: str = ""
    subset: Subset | None = None


@dataclass(frozen=True)
class Folder:
    """The labels of a folder or manifest and their files, before any file is opened.

    Attributes:
        labels: verbatim, sorted; they are the classes in this order.
        photos: every file, with the index of its label.
        warnings: what the user should know, one sentence each.
        left_out: (path, reason) of what is listed and cannot be used.
        subsets: by uri, the photos that are laid out for validation or testing.
        groups: by uri, the group of the photos that have one.
    """

    labels: tuple[str, ...]
    photos: Mapping[Photo, int]
    warnings: tuple[str, ...]
    left_out: tuple[tuple[str, str], ...] = ()
    subsets: Mapping[str, Subset] = field(default_factory=dict)
    groups: Mapping[str, str] = field(default_factory=dict)

    @property
    def counts(self) -> dict[str, int]:
        """Files of each label."""
        found = Counter(self.photos.values())
        return {label: found[index] for index, label in enumerate(self.labels)}

    @property
    def given(self) -> frozenset[Subset]:
        """The sets beside training that are laid out and not to be split off."""
        return frozenset(self.subsets.values())

    def example(self, photo: Photo, sha256: str) -> Example:
        """A photo of this folder, now that its content is known."""
        uri = photo.uri
        return Example(uri, sha256, self.photos[photo], self.groups.get(uri, ""), self.subsets.get(uri))


class Labelled(NamedTuple):
    """One photo on its way into a Folder."""

    photo: Photo
    label: str
    subset: Subset | None = None
    group: str = ""


def assemble(
    names: Sequence[str],
    found: Iterable[Labelled],
    *,
    where: str,
    remedy: str,
    notes: Sequence[str] = (),
    sets_from: str = "",
    left_out: Sequence[tuple[str, str]] = (),
) -> Folder:
    """Bring labelled photos into the order of their labels, and see that there is something to train on.

    Args:
        names: the labels, those without photos included, sorted.
        found: each photo once.
        where: the folder or manifest.
        remedy: what to do where there are fewer than two labels.
        notes: what the user should know beside what is found here.
        sets_from: what says which set a photo belongs to, "" where nothing does.
        left_out: (path, reason).

    Raises:
        InputError: fewer than two labels have photos, or one has none to train on.
    """
    check_label_names(names, where=where)
    files: dict[str, list[Photo]] = {name: [] for name in names}
    subsets: dict[str, Subset] = {}
    groups: dict[str, str] = {}
    for photo, label, subset, group in found:
        files[label].append(photo)
        if subset not in (None, Subset.TRAINING):
            subsets[photo.uri] = subset
        if group:
            groups[photo.uri] = group
    labels = [name for name in names if files[name]]
    if len(labels) < 2:
        what = f"only the label {labels[0]!r}" if labels else "no label with photos"
        missing = f" {left_out[0][0]}, for one, is left out: {left_out[0][1]}." if left_out else ""
        raise InputError(f"{where} holds {what}; at least two are needed.{missing}", remedy=remedy)
    trained = {name: sum(photo.uri not in subsets for photo in files[name]) for name in labels}
    if alone := [name for name in labels if not trained[name]]:
        raise InputError(
            f"{where}: nothing to train on for {', '.join(map(repr, alone))}: all photos are laid out for "
            f"{' and '.join(sorted({subsets[photo.uri] for name in alone for photo in files[name]}))}.",
            remedy="Give each label photos in the training set, or take these labels out of the other sets.",
        )
    photos = {
        photo: index
        for index, name in enumerate(labels)
        for photo in sorted(files[name], key=lambda photo: photo.uri)
    }
    warnings = [*notes, *_few(files, trained)]
    if sets_from:
        warnings.insert(0, _sets(sets_from, len(photos), Counter(subsets.values())))
    return Folder(tuple(labels), photos, tuple(warnings), tuple(left_out), subsets, groups)


def _few(files: Mapping[str, Sequence[Photo]], trained: Mapping[str, int]) -> Iterator[str]:
    for name, found in files.items():
        if not found:
            yield f"Label {name!r} has no photos and is left out."
        elif trained[name] < FEW_PHOTOS:
            what = "photos" if trained[name] == len(found) else "photos to train on"
            yield f"Label {name!r} has {trained[name]} {what}; fewer than {FEW_PHOTOS} rarely train well."


def _sets(source: str, photos: int, held_out: Counter[Subset]) -> str:
    """The sentence that tells which sets were laid out, and which are split off."""
    counts = Counter({Subset.TRAINING: photos - held_out.total()}) + held_out
    told = ", ".join(f"{counts[subset]} for {subset}" for subset in Subset if counts[subset])
    missing = " and ".join(subset for subset in Subset if not counts[subset])
    rest = f"; what {missing} asks for is split off from training" if missing else ""
    return f"The sets are those of {source}: {told}{rest}."


def check_label_names(names: Iterable[str], *, where: str) -> None:
    """Refuse names that are not UTF-8, hold a line break, or differ only in case or Unicode form.

    Raises:
        InputError: with the names.
    """
    seen: dict[str, str] = {}
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"{where}: the label {os.fsencode(name)!r} is not UTF-8.",
                remedy="Rename it: labels.txt is UTF-8.",
            ) from error
        if len(name.splitlines()) != 1:
            raise InputError(
                f"{where}: the label {name!r} holds a line break.",
                remedy="Rename it: labels.txt has one label a line.",
            )
        key = unicodedata.normalize("NFC", name).casefold().strip()
        if seen.setdefault(key, name) != name:
            raise InputError(
                f"{where}: the labels {seen[key]!r} and {name!r} differ only in case, space or Unicode form.",
                remedy="Rename one of them, or merge their photos.",
            )


def distinct(examples: Sequence[Example]) -> list[int]:
    """The rows to use: of identical photos of a label one, in the order in which they come.

    A photo that is laid out for testing as well as for training counts for testing, so that the
    figures are not those of photos the head has seen; validation comes second.
    """
    chosen: dict[tuple[str, int], int] = {}
    for row, example in enumerate(examples):
        key = example.sha256, example.label
        first = chosen.setdefault(key, row)
        if _RANK[example.subset] < _RANK[examples[first].subset]:
            chosen[key] = row
    return sorted(chosen.values())


def same_content(examples: Iterable[Example]) -> list[list[Example]]:
    """Examples of which there are several with the same bytes."""
    by_content: dict[str, list[Example]] = {}
    for example in examples:
        by_content.setdefault(example.sha256, []).append(example)
    return [same for same in by_content.values() if len(same) > 1]


def contradictions(examples: Sequence[Example], labels: Sequence[str]) -> list[str]:
    """Photos that stand under more than one label, one sentence each."""
    return [
        f"One photo has the labels {' and '.join(repr(labels[e.label]) for e in same)}: "
        f"{', '.join(e.uri for e in same)}."
        for same in same_content(examples)
        if len({e.label for e in same}) > 1
    ]


def count_labels(examples: Iterable[Example], labels: Sequence[str]) -> dict[str, int]:
    """Photos of each label, zeros included."""
    counts = Counter(example.label for example in examples)
    return {label: counts[index] for index, label in enumerate(labels)}
