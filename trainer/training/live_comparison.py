"""Comparison of the new version with the live one, on test photos that neither was trained on.

Compared are the best labels and the probabilities; thresholds for abstention play no part.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from serving import bundle, contract
from serving.bundle import Bundle, training_digests
from serving.contract import Status
from serving.errors import BundleError, GateRejected, InputError
from serving.photos.converter import ConversionLimits, Converter
from serving.storage import files
from trainer.dataset import Example
from trainer.evaluation.features import predict_probabilities
from trainer.evaluation.metrics import Evaluation, evaluate
from trainer.evaluation.paired import align_columns, compare, estimate_difference
from trainer.evaluation.version_changes import LabelChange, LiveComparison, PhotoChange
from trainer.export.head_file import load_head
from trainer.heads import Floats, Ints, Vectors

NO_COMPARISON = "none"
"""Value in place of a bundle that turns the comparison off."""

Bools = NDArray[np.bool_]

Tolerance = float | Literal["surely"]
"""How much worse the new version may be: percentage points of accuracy; or "surely", not significantly."""


def find_live_version(given: str | Path, base: Path) -> Bundle | None:
    """Return the version to compare with, None where there is none.

    Args:
        given: a version directory, or the base path above it; "" for the newest version of `base`; or
            NO_COMPARISON.
        base: base path below which the new version will be published.

    Raises:
        BundleError: the version cannot be read, or has no head.
    """
    if str(given) == NO_COMPARISON or (not str(given) and not bundle.versions(base)):
        return None
    live = bundle.read(Path(given) if str(given) else base)
    if not live.metadata.labels:
        raise BundleError(
            f"{live.path} is a headless bundle: it has no predictions to compare with.",
            remedy="Give a bundle that hubhead train made with --compare_with, or --compare_with none.",
        )
    return live


def compare_with_live(
    live: Bundle,
    fingerprint: str,
    labels: Sequence[str],
    examples: Sequence[Example],
    embeddings: Vectors,
    probabilities: Floats,
) -> LiveComparison:
    """Compare on test photos that the live version was not trained on, of labels that both versions know.

    Where the backbone is the same, the live head is evaluated on the embeddings; otherwise the live bundle
    is evaluated on the photos' bytes, as for any client.

    Args:
        live: the live version.
        fingerprint: fingerprint of the new version's backbone.
        labels: K label names of the new version.
        examples: N test photos.
        embeddings: float32 or float16 [N,D].
        probabilities: float32 [N,K] of the new version.

    Raises:
        InputError: no test photo is left for the comparison.
        BundleError, RunError: the live version cannot be loaded or run.
    """
    own = live.metadata.labels
    usable = _find_usable(live, labels, examples)
    same_backbone = live.metadata.fingerprint == fingerprint
    if same_backbone:
        predicted, answered = _predict_from_embeddings(live, embeddings, usable.rows)
    else:
        predicted, answered = _predict_from_bytes(live, [examples[row].uri for row in usable.rows.tolist()])
    counts = usable.left_out | {"that it refuses": int((~answered).sum())}
    left_out = {reason: count for reason, count in counts.items() if count}
    rows, predicted = usable.rows[answered], predicted[answered]
    if not len(rows):
        raise _make_no_photos_error(live, left_out)
    # Both versions are evaluated over the labels of both, so that a wrong new label counts as an error.
    removed = tuple(label for label in own if label not in labels)
    both = (*labels, *removed)
    new, old = align_columns(probabilities[rows], labels, both), align_columns(predicted, own, both)
    compared = [examples[row] for row in rows.tolist()]
    targets = np.array([example.label for example in compared], np.int64)
    new_evaluation, old_evaluation = evaluate(new, targets, both), evaluate(old, targets, both)
    gained, lost = _find_differences(new, old, targets)
    return LiveComparison(
        name=live.name,
        version=live.version,
        same_backbone=same_backbone,
        added=tuple(label for label in labels if label not in own),
        removed=removed,
        left_out=left_out,
        trained_on_known=usable.trained_on_known,
        new=new_evaluation,
        live=old_evaluation,
        difference=compare(new, old, targets),
        labels=_list_label_changes(new_evaluation, old_evaluation, targets, gained, lost),
        newly_right=_list_photo_changes(compared, new, old, both, gained),
        newly_wrong=_list_photo_changes(compared, new, old, both, lost),
    )


def check_not_worse(comparison: LiveComparison, tolerance: Tolerance) -> None:
    """Check that the new version is not worse than the live one.

    Args:
        comparison: the comparison of both.
        tolerance: "surely" rejects a version that is significantly worse (`PairedComparison.is_worse`);
            a number rejects a version whose accuracy is lower by more percentage points than that,
            whatever the interval.

    Raises:
        GateRejected: the new version is worse; the message has the figures.
    """
    fall = -100 * comparison.difference.accuracy.value
    if comparison.difference.is_worse if tolerance == "surely" else fall > tolerance + 1e-9:
        allowed = "" if tolerance == "surely" else f" by more than {tolerance:g} points"
        raise GateRejected(
            f"The new version is worse than version {comparison.version} of {comparison.name}{allowed}: "
            f"{comparison.difference}; nothing was published (--assert_not_worse_than_live).",
            remedy="Check what changed in the photos, or allow a larger decrease.",
        )


@dataclass(frozen=True)
class _UsablePhotos:
    """Test photos that a comparison can use.

    Attributes:
        rows: int64 [n], numbers of these photos among the test photos.
        left_out: number of other photos, by reason.
        trained_on_known: True if the live version records which photos it was trained on.
    """

    rows: Ints
    left_out: dict[str, int]
    trained_on_known: bool


def _find_usable(live: Bundle, labels: Sequence[str], examples: Sequence[Example]) -> _UsablePhotos:
    """Return the test photos that the live version was not trained on, of labels that it knows."""
    own, known = live.metadata.labels, training_digests.read(live.path)
    seen = np.zeros(len(examples), bool)
    if known is not None:
        seen = np.isin(training_digests.truncate_digests(example.sha256 for example in examples), known)
    foreign = np.array([labels[example.label] not in own for example in examples], bool)
    left_out = {
        "that it was trained on": int(seen.sum()),
        "of labels that it does not know": int((foreign & ~seen).sum()),
    }
    return _UsablePhotos(np.flatnonzero(~seen & ~foreign), left_out, known is not None)


def _make_no_photos_error(live: Bundle, left_out: Mapping[str, int]) -> InputError:
    """Return the error for a comparison without photos."""
    why = ", ".join(f"{count} {reason}" for reason, count in left_out.items()) or "there are none"
    return InputError(
        f"No test photo can be used to compare with {live.path}: {why}.",
        remedy="Keep test photos that it was not trained on, or give --compare_with none.",
    )


def _find_differences(new: Floats, old: Floats, targets: Ints) -> tuple[Bools, Bools]:
    """Return the photos, bool [N], that only the new version gets right, and those that only the old does."""
    right, was_right = (probabilities.argmax(axis=1) == targets for probabilities in (new, old))
    return right & ~was_right, was_right & ~right


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


def _predict_from_embeddings(live: Bundle, embeddings: Vectors, rows: Ints) -> tuple[Floats, Bools]:
    """Run the live head on some rows of stored embeddings; returns the same as `_predict_from_bytes`."""
    head, _ = load_head(live.path / contract.HEAD_FILE)
    return predict_probabilities(head, embeddings, rows), np.ones(len(rows), bool)


def _predict_from_bytes(live: Bundle, uris: Sequence[str]) -> tuple[Floats, Bools]:
    """Run the live bundle on the bytes of photos.

    Returns:
        Probabilities float32 [N,K], and bool [N]: True for photos that the bundle accepts.
    """
    from serving import runtime

    probabilities = np.zeros((len(uris), len(live.metadata.labels)), np.float32)
    answered = np.zeros(len(uris), bool)
    if not uris:
        return probabilities, answered
    model = runtime.load(live.path)
    settings = live.metadata.preprocessing
    limits = ConversionLimits(
        max_bytes=int(settings.get("max_bytes", ConversionLimits.max_bytes)),
        max_pixels=int(settings.get("max_whole_pixels", ConversionLimits.max_pixels)),
    )
    # Rows of the photos that were sent: those that cannot be read or converted are skipped.
    sent: list[int] = []
    with Converter(limits) as converter:

        def read_photos() -> Iterator[bytes]:
            for row, uri in enumerate(uris):
                try:
                    image = converter.convert_if_needed(files.read(uri))
                except OSError:
                    continue
                if isinstance(image, bytes):
                    sent.append(row)
                    yield image

        done = 0
        for outputs in model.imap(contract.PROBABILITIES, contract.IMAGE_BYTES, read_photos()):
            count = len(outputs[contract.STATUS])
            rows = sent[done : done + count]
            probabilities[rows] = outputs[contract.PROBABILITIES]
            answered[rows] = [Status(status.decode()).usable for status in outputs[contract.STATUS]]
            done += count
    return probabilities, answered
