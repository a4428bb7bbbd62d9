"""A folder of labelled photos, one directory a label, and its split into training, validation and test.

The rules of retrain.py that are sound hold: the directory's name is the label, a photo stays
in its set as the folder grows, and photos whose names share what stands before `_nohash_` stay
together. Unlike there, the split hashes the photo's content and not the path as it was spelled,
identical photos count once, and every label has a photo in every set.
"""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from batch.files import local_path
from batch.photos import Photo, find
from serving.errors import InputError

FEW_PHOTOS = 20
"""Below this many photos a label is warned of, as in retrain.py."""

_RETRAIN_BUCKETS = 2**27 - 1
"""MAX_NUM_IMAGES_PER_CLASS of retrain.py: part of how it hashes."""


class Subset(StrEnum):
    """The sets of the split."""

    TRAINING = "training"
    VALIDATION = "validation"
    TESTING = "testing"


@dataclass(frozen=True)
class Folder:
    """The labels of an image directory and their files, before any file is opened.

    Attributes:
        labels: directory names, verbatim, sorted; they are the classes in this order.
        photos: every file below them, with the index of its label.
        warnings: what the user should know, one sentence each.
    """

    labels: tuple[str, ...]
    photos: Mapping[Photo, int]
    warnings: tuple[str, ...]

    @property
    def counts(self) -> dict[str, int]:
        """Files of each label."""
        found = Counter(self.photos.values())
        return {label: found[index] for index, label in enumerate(self.labels)}


@dataclass(frozen=True)
class Example:
    """One distinct photo of one label.

    Attributes:
        uri: its path.
        sha256: hex digest of its content.
        label: index into the labels.
    """

    uri: str
    sha256: str
    label: int


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


def scan(image_dir: str | os.PathLike[str]) -> Folder:
    """List `image_dir/<label>/**`: labels and files, none of them opened.

    Hidden files and directories are left out.

    Raises:
        InputError: no such directory, fewer than two labels with files, or label names
            that cannot be told apart or written down.
    """
    top = Path(image_dir)
    if not top.is_dir():
        raise InputError(
            f"--image_dir {image_dir}: there is no such directory.",
            remedy="Give a directory that holds one directory of photos a label.",
        )
    names = sorted(child.name for child in top.iterdir() if child.is_dir() and not child.name.startswith("."))
    check_label_names(names, where=str(top))
    files: dict[str, list[Photo]] = {name: [] for name in names}
    beside = 0
    for photo in find(str(top), none_is_fine=True) if names else ():
        name, _, rest = local_path(photo.uri).removeprefix(f"{os.path.abspath(top)}/").partition("/")  # noqa: PTH100
        if rest:
            files[name].append(photo)
        else:
            beside += 1
    labels = [name for name in names if files[name]]
    if len(labels) < 2:
        found = f"only the label {labels[0]!r}" if labels else "no label with photos"
        raise InputError(
            f"{top} holds {found}; at least two are needed.",
            remedy=f"Put the photos into one directory a label, such as {top / 'pizza'} and {top / 'sushi'}.",
        )
    photos = {photo: index for index, name in enumerate(labels) for photo in files[name]}
    return Folder(tuple(labels), photos, tuple(_warnings(files, beside)))


def _warnings(files: Mapping[str, Sequence[Photo]], beside: int) -> Iterator[str]:
    if beside:
        yield f"{beside} files that are in no label's directory are left out."
    for name, found in files.items():
        if not found:
            yield f"Label {name!r} has no photos and is left out."
        elif len(found) < FEW_PHOTOS:
            yield f"Label {name!r} has {len(found)} photos; fewer than {FEW_PHOTOS} rarely train well."


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
                f"{where}: the directory name {os.fsencode(name)!r} is not UTF-8.",
                remedy="Rename it: the name becomes the label.",
            ) from error
        if len(name.splitlines()) != 1:
            raise InputError(
                f"{where}: the directory name {name!r} holds a line break.",
                remedy="Rename it: labels.txt has one label a line.",
            )
        key = unicodedata.normalize("NFC", name).casefold().strip()
        if key in seen:
            raise InputError(
                f"{where}: the labels {seen[key]!r} and {name!r} differ only in case, space or Unicode form.",
                remedy="Rename one of them, or merge their photos.",
            )
        seen[key] = name


def check_counts(counts: Mapping[str, int], settings: SplitSettings) -> None:
    """Refuse labels that have too few photos for one in every set.

    Args:
        counts: photos of each label; those that must stay together count once (`count_groups`).
        settings: the sets asked for.

    Raises:
        InputError: with the labels and their counts.
    """
    if settings.method == "retrain":
        return
    needed = 1 + len(settings.held_out)
    short = [f"{label!r} ({count})" for label, count in counts.items() if count < needed]
    if short:
        raise InputError(
            f"Too few photos for one in each of {needed} sets: {', '.join(short)}. Photos named alike before "
            "_nohash_ stay together and count once.",
            remedy="Add photos, remove the label, or set --validation_percentage or --testing_percentage 0.",
        )


def split(
    examples: Sequence[Example], settings: SplitSettings, image_dir: str | os.PathLike[str] = ""
) -> list[Subset]:
    """Assign each photo to a set; the same photo always to the same one.

    A label that would go without a set gets the group of photos whose hash lies nearest to it,
    from its training photos where they can spare one; as the folder grows that repair becomes
    needless, and only that group moves. A label with fewer groups than sets (`check_counts`)
    stays without.

    Args:
        examples: distinct photos.
        settings: the sets and their shares.
        image_dir: the directory as the user spelled it, which the method "retrain" hashes.
    """
    if settings.method == "retrain":
        spelled = [_spelled(example.uri, os.fspath(image_dir)) for example in examples]
        return [_subset(_retrain_position(path), settings) for path in spelled]
    subsets: dict[tuple[int, str], Subset] = {}
    positions = {_key(example): _position(example) for example in examples}
    for label in {example.label for example in examples}:
        keys = sorted((key for key in positions if key[0] == label), key=positions.__getitem__)
        subsets |= {key: _subset(positions[key], settings) for key in keys}
        for wanted in (*(subset for subset, _ in settings.held_out), Subset.TRAINING):
            members = Counter(subsets[key] for key in keys)
            spare = [key for key in keys if members[subsets[key]] > 1]
            if spare and not members[wanted]:
                low, high = _interval(wanted, settings)
                nearest = min(
                    spare,
                    key=lambda key: (
                        subsets[key] is not Subset.TRAINING,
                        max(low - positions[key], positions[key] - high),
                    ),
                )
                subsets[nearest] = wanted
    return [subsets[_key(example)] for example in examples]


def contradictions(examples: Sequence[Example], labels: Sequence[str]) -> list[str]:
    """Photos that stand under more than one label, one sentence each."""
    by_content: dict[str, list[Example]] = {}
    for example in examples:
        by_content.setdefault(example.sha256, []).append(example)
    return [
        f"One photo has the labels {' and '.join(repr(labels[e.label]) for e in same)}: "
        f"{', '.join(e.uri for e in same)}."
        for same in by_content.values()
        if len({e.label for e in same}) > 1
    ]


def count_labels(examples: Iterable[Example], labels: Sequence[str]) -> dict[str, int]:
    """Photos of each label, zeros included."""
    counts = Counter(example.label for example in examples)
    return {label: counts[index] for index, label in enumerate(labels)}


def count_groups(examples: Iterable[Example], labels: Sequence[str]) -> dict[str, int]:
    """Groups of photos of each label that the split may keep apart, zeros included."""
    counts = Counter(label for label, _ in {_key(example) for example in examples})
    return {label: counts[index] for index, label in enumerate(labels)}


def _group(example: Example) -> str:
    """What must stay together: photos of a directory named alike before `_nohash_`, else the photo alone."""
    path = Path(example.uri)
    name, mark, _ = path.name.partition("_nohash_")
    return f"{path.parent.name}/{name}" if mark else example.sha256


def _key(example: Example) -> tuple[int, str]:
    return example.label, _group(example)


def _position(example: Example) -> float:
    """Where the photo's group lies between 0 and 100; uniform, and the same wherever the file is."""
    digest = hashlib.sha256(_group(example).encode(errors="surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 * 100


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


def _subset(position: float, settings: SplitSettings) -> Subset:
    for subset in (Subset.VALIDATION, Subset.TESTING):
        if position < _interval(subset, settings)[1]:
            return subset
    return Subset.TRAINING
