"""Comparison of two versions on the same photos, which neither was trained on.

Compared are the best labels and the probabilities; thresholds for abstention play no part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from serving.bundle import Bundle, training_digests
from serving.errors import InputError
from serving.storage.names import describe_respelled, respell
from trainer.dataset import Example
from trainer.evaluation.metrics import Evaluation, evaluate
from trainer.evaluation.paired_comparison import align_columns, compare, estimate_difference
from trainer.evaluation.version_changes import LabelChange, LiveComparison, PhotoChange
from trainer.gate.predictions import Bools, Predictions
from trainer.heads import Floats, Ints


@dataclass(frozen=True)
class UsablePhotos:
    """Photos that two versions can be compared on.

    Attributes:
        examples: N photos; their labels are indices of the new version's labels.
        rows: int64 [N], numbers of these photos among all.
        left_out: number of other photos, by reason.
        trained_on_known: True if the versions record which photos they were trained on.
    """

    examples: Sequence[Example]
    rows: Ints
    left_out: Mapping[str, int]
    trained_on_known: bool


def select_photos(
    examples: Sequence[Example], labels: Sequence[str], live: Bundle, new: Bundle | None = None
) -> UsablePhotos:
    """Return the photos that neither version was trained on, of labels that both know.

    Args:
        examples: photos of the new version's labels.
        labels: label names of the new version.
        live: the live version.
        new: the new version; None if `examples` are its test photos.

    Raises:
        BundleError: the training digests of a version are damaged.
    """
    marks = training_digests.truncate_digests(example.sha256 for example in examples)
    usable = np.ones(len(examples), bool)
    left_out: dict[str, int] = {}
    trained_on_known = True

    def leave_out(excluded: Bools, reason: str) -> None:
        left_out[reason] = int((usable & excluded).sum())
        usable[excluded] = False

    for name, version in {"live": live, **({"new": new} if new else {})}.items():
        known = training_digests.read(version.path)
        trained_on_known = trained_on_known and known is not None
        if known is not None:
            leave_out(np.isin(marks, known), f"that the {name} version was trained on")
    known_labels = set(respell(live.metadata.labels, labels))
    foreign = [labels[example.label] not in known_labels for example in examples]
    leave_out(np.array(foreign, bool), "of labels that only one version knows")
    rows = np.flatnonzero(usable)
    return UsablePhotos([examples[row] for row in rows.tolist()], rows, left_out, trained_on_known)


def compare_predictions(
    live: Bundle,
    labels: Sequence[str],
    photos: UsablePhotos,
    new: Predictions,
    old: Predictions,
    *,
    same_backbone: bool,
) -> LiveComparison:
    """Compare two versions on the photos that both answer.

    Args:
        live: the live version.
        labels: label names of the new version.
        photos: N photos.
        new: predictions of the new version for them.
        old: predictions of the live version for them.
        same_backbone: True if both versions have the same backbone.

    Raises:
        InputError: no photo is left for the comparison.
    """
    own = respell(live.metadata.labels, labels)
    answered = new.answered & old.answered
    counts = {**photos.left_out, "that a version rejects or that cannot be read": int((~answered).sum())}
    left_out = {reason: count for reason, count in counts.items() if count}
    if not answered.any():
        why = ", ".join(f"{count} {reason}" for reason, count in left_out.items()) or "there are none"
        raise InputError(
            f"No photo can be used to compare with {live.path}: {why}.",
            remedy="Keep test photos that it was not trained on, or give --compare_with none.",
        )
    # Both versions are evaluated over the labels of both, so that a wrong new label counts as an error.
    removed = tuple(label for label in own if label not in labels)
    both = (*labels, *removed)
    compared = [photos.examples[row] for row in np.flatnonzero(answered).tolist()]
    rows = align_columns(new.probabilities[answered], labels, both)
    old_rows = align_columns(old.probabilities[answered], own, both)
    targets = np.array([example.label for example in compared], np.int64)
    new_evaluation, old_evaluation = evaluate(rows, targets, both), evaluate(old_rows, targets, both)
    right, was_right = (probabilities.argmax(axis=1) == targets for probabilities in (rows, old_rows))
    gained, lost = right & ~was_right, was_right & ~right
    return LiveComparison(
        name=live.name,
        version=live.version,
        same_backbone=same_backbone,
        added=tuple(label for label in labels if label not in own),
        removed=removed,
        left_out=left_out,
        trained_on_known=photos.trained_on_known,
        new=new_evaluation,
        live=old_evaluation,
        difference=compare(rows, old_rows, targets),
        labels=_list_label_changes(new_evaluation, old_evaluation, targets, gained, lost),
        newly_right=_list_photo_changes(compared, rows, old_rows, both, gained),
        newly_wrong=_list_photo_changes(compared, rows, old_rows, both, lost),
        respelled=describe_respelled(labels, live.metadata.labels),
    )


def _list_label_changes(
    new: Evaluation, old: Evaluation, targets: Ints, gained: Bools, lost: Bools
) -> tuple[LabelChange, ...]:
    """Return the change of each label that has photos."""
    changes = []
    for index, label in enumerate(new.labels):
        of_label = targets == index
        if of_label.any():
            more, fewer = int((of_label & gained).sum()), int((of_label & lost).sum())
            difference = estimate_difference(more, fewer, int(of_label.sum()))
            changes.append(LabelChange(label, new.recall[label], old.recall[label], difference, more, fewer))
    return tuple(changes)


def _list_photo_changes(
    examples: Sequence[Example], new: Floats, old: Floats, labels: Sequence[str], chosen: Bools
) -> tuple[PhotoChange, ...]:
    """Return the chosen photos, in descending order of the new version's confidence."""
    rows = np.flatnonzero(chosen)
    rows = rows[np.argsort(-new[rows].max(axis=1), kind="stable")]
    return tuple(
        PhotoChange(
            examples[row].uri,
            labels[examples[row].label],
            _pick_best(new[row], labels),
            _pick_best(old[row], labels),
        )
        for row in rows.tolist()
    )


def _pick_best(row: Floats, labels: Sequence[str]) -> tuple[str, float]:
    """Return the label with the highest probability, and that probability."""
    index = int(row.argmax())
    return labels[index], float(row[index])
