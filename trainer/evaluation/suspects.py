"""Suspected label errors: duplicates under two labels first, then labels that the head contradicts.

A photo is suspected for one of three reasons: a file with the same content has another label; a
near-duplicate has another label; or its out-of-fold probabilities contradict its label (`label_errors`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, NamedTuple

import numpy as np

from serving.bundle.sections import SuspectRecord, SuspectsRecord
from trainer import heads
from trainer.dataset import Example
from trainer.dataset.near_duplicates import THRESHOLD, DuplicateReport, find_near_duplicates
from trainer.evaluation.label_errors import find_label_errors
from trainer.heads import Floats, HeadSettings, Ints, Vectors

MAX_RECORDED = 500
"""Largest number of suspected photos in hubhead.json, so that it stays below 100 KB."""


class Reason(StrEnum):
    """Reason for which a label is suspected."""

    IDENTICAL = "identical"
    NEAR_DUPLICATE = "near-duplicate"
    PREDICTION = "prediction"


class SuspectRow(NamedTuple):
    """A suspected label, by numbers.

    Attributes:
        row: row of the photo.
        suggested: class that it probably has instead.
        confidence: out-of-fold probability of its given class; NaN if the photo was not evaluated.
        reason: why it is suspected.
    """

    row: int
    suggested: int
    confidence: float
    reason: Reason


@dataclass(frozen=True)
class Suspect:
    """A photo whose label may be wrong.

    Attributes:
        uri: path or address of the photo.
        sha256: hex digest of its content.
        label: its label.
        suggested: label that it probably has instead.
        confidence: out-of-fold probability of its label; None if the photo was not evaluated.
        reason: why it is suspected.
    """

    uri: str
    sha256: str
    label: str
    suggested: str
    confidence: float | None
    reason: Reason


@dataclass(frozen=True)
class Suspects:
    """Photos of a training whose labels may be wrong.

    Attributes:
        photos: the photos, the most suspicious one first.
        examined: number of photos whose labels were compared with out-of-fold probabilities.
        contradicted: number of photos that confident learning counts under another label.
    """

    photos: tuple[Suspect, ...] = ()
    examined: int = 0
    contradicted: int = 0

    def to_dict(self) -> SuspectsRecord:
        """Return the record for hubhead.json: without paths, since bundles are shared."""
        photos: list[SuspectRecord] = [
            {
                "sha256": photo.sha256,
                "label": photo.label,
                "suggested": photo.suggested,
                "confidence": photo.confidence,
                "reason": photo.reason.value,
            }
            for photo in self.photos[:MAX_RECORDED]
        ]
        return {
            "examined": self.examined,
            "suspected": len(self.photos),
            "contradicted": self.contradicted,
            "photos": photos,
        }

    def list_photos(self) -> list[dict[str, Any]]:
        """Return all photos as JSON values with their paths, as printed by --json."""
        return [{"photo": values.pop("uri"), **values} for values in map(asdict, self.photos)]


def find_suspects(
    examples: Sequence[Example],
    labels: Sequence[str],
    rows: Ints,
    probabilities: Floats,
    duplicates: DuplicateReport,
) -> Suspects:
    """Return the photos whose labels may be wrong.

    Args:
        examples: N distinct photos of each label.
        labels: K label names.
        rows: int64 [n], photos with probabilities, each at most once.
        probabilities: float32 [n,K] of these photos, out of fold and calibrated.
        duplicates: duplicates among the photos.
    """
    targets = np.array([example.label for example in examples], np.int64)
    row_of = {example.uri: row for row, example in enumerate(examples)}
    near = [[row_of[picture.uri] for picture in group.pictures] for group in duplicates.near_label_conflicts]
    conflicts = list(list_conflicts(examples, near))
    found = [
        Suspect(
            examples[one.row].uri,
            examples[one.row].sha256,
            labels[targets[one.row]],
            labels[one.suggested],
            None if np.isnan(one.confidence) else one.confidence,
            one.reason,
        )
        for one in rank_suspects(targets, rows, probabilities, conflicts)
    ]
    contradicted = find_label_errors(probabilities, targets[rows]).contradicted if len(rows) else 0
    return Suspects(tuple(found), len(rows), contradicted)


def suspect_labels(
    examples: Sequence[Example],
    classes: int,
    embeddings: Vectors,
    *,
    settings: HeadSettings | None = None,
    threshold: float = THRESHOLD,
    seed: int = 0,
) -> list[SuspectRow]:
    """Return the suspected labels of photos, the most suspicious one first, from their embeddings alone.

    The out-of-fold probabilities are those by which `heads.fit` selects its settings: of all photos, or of a
    fifth if there are thousands.

    Args:
        examples: N distinct photos of each label.
        classes: number of labels, K; each has a photo.
        embeddings: float32 or float16 [N,D].
        settings: settings of the head.
        threshold: cosine of near-duplicates.
        seed: seed of the folds.
    """
    targets = np.array([example.label for example in examples], np.int64)
    _, selection = heads.fit(embeddings, targets, classes, settings=settings, seed=seed)
    rows = heads.list_held_out(targets, 0, classes, seed)
    near = find_near_duplicates(embeddings, threshold).together
    conflicts = list(list_conflicts(examples, near))
    return rank_suspects(targets, rows, selection.probabilities, conflicts)


def list_conflicts(
    examples: Sequence[Example], near: Iterable[Sequence[int]]
) -> Iterator[tuple[Reason, list[int]]]:
    """Yield the rows of duplicates that have several labels: identical files, then near-duplicates.

    Args:
        examples: distinct photos of each label.
        near: rows of each group of near-duplicates, which may include identical files.
    """
    by_content: dict[str, list[int]] = {}
    for row, example in enumerate(examples):
        by_content.setdefault(example.sha256, []).append(row)
    # Distinct examples with the same content differ in their labels.
    yield from ((Reason.IDENTICAL, same) for same in by_content.values() if len(same) > 1)
    for group in near:
        if len({examples[row].label for row in group}) > 1:
            yield Reason.NEAR_DUPLICATE, list(group)


def rank_suspects(
    targets: Ints, rows: Ints, probabilities: Floats, conflicts: Sequence[tuple[Reason, Sequence[int]]] = ()
) -> list[SuspectRow]:
    """Return the suspected labels, the most suspicious one first.

    Duplicates under two labels come first: of each group the photos that do not have its most frequent label,
    or all of them if there is a tie. The photos of a group stay together. The others are those that
    `find_label_errors` finds, by the probability of their label.

    Args:
        targets: int64 [N], given classes of all photos.
        rows: int64 [n], photos with probabilities.
        probabilities: float32 [n,K] of these photos, out of fold and calibrated.
        conflicts: reason and rows of each group of duplicates that have several classes.
    """
    position = {row: place for place, row in enumerate(rows.tolist())}

    def probability(row: int, label: int) -> float:
        return float(probabilities[position[row], label]) if row in position else float("nan")

    found: dict[int, SuspectRow] = {}
    ranked = []
    for reason, group in conflicts:
        suspected = [
            SuspectRow(
                row, _suggest(row, targets, group, probability), probability(row, targets[row]), reason
            )
            for row in _select_minority(targets, group)
        ]
        suspected.sort(key=lambda one: _order(one.confidence))
        ranked.append(suspected)
    ranked.sort(key=lambda group: (group[0].reason is not Reason.IDENTICAL, _order(group[0].confidence)))
    for suspected in ranked:
        for one in suspected:
            found.setdefault(one.row, one)
    if len(rows):
        errors = find_label_errors(probabilities, targets[rows])
        for at, suggested, confidence in zip(errors.rows, errors.suggested, errors.confidences, strict=True):
            row = int(rows[at])
            found.setdefault(row, SuspectRow(row, int(suggested), float(confidence), Reason.PREDICTION))
    return list(found.values())


def _select_minority(targets: Ints, group: Sequence[int]) -> list[int]:
    """Return the rows of a group that do not have its most frequent label; all rows if there is a tie."""
    counts = Counter(int(targets[row]) for row in group)
    (first, most), (_, second) = counts.most_common(2)
    return [row for row in group if most == second or targets[row] != first]


def _suggest(row: int, targets: Ints, group: Sequence[int], probability: Any) -> int:
    """Return the label of another photo of the group: the most frequent one, then the most probable one."""
    counts = Counter(int(targets[other]) for other in group if targets[other] != targets[row])
    return max(counts, key=lambda label: (counts[label], -_order(probability(row, label)), -label))


def _order(confidence: float) -> float:
    """Return the confidence as a sort key; photos that were not evaluated come last."""
    return 2.0 if np.isnan(confidence) else confidence
