"""The live version held against the new one, on test photos that neither was trained on.

What is judged are the best labels and the probabilities; thresholds for "none of these" play no part.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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

NONE = "none"
"""In place of a bundle: compare with none."""

Flags = NDArray[np.bool_]

Tolerance = float | Literal["surely"]
"""How much worse the new version may be: percent points of accuracy; or not beyond what chance explains."""


def find(given: str | Path, base: Path) -> Bundle | None:
    """The version to compare with, None where there is none.

    Args:
        given: a version directory, or the base path above it; "" for the newest version of `base`; or
            NONE.
        base: where the new version will be published.

    Raises:
        BundleError: it cannot be read, or has no head.
    """
    if str(given) == NONE or (not str(given) and not bundle.versions(base)):
        return None
    found = bundle.read(Path(given) if str(given) else base)
    if not found.metadata.labels:
        raise BundleError(
            f"{found.path} is a headless bundle: it has no answers to compare with.",
            remedy="Give one that hubhead train made with --compare_with, or --compare_with none.",
        )
    return found


def judge(
    live: Bundle,
    fingerprint: str,
    labels: Sequence[str],
    examples: Sequence[Example],
    embeddings: Vectors,
    probabilities: Floats,
) -> LiveComparison:
    """Compare on test photos that the live version was not trained on, of labels that both know.

    Where the backbone is the same, the live head is asked about the embeddings; else the live bundle is
    asked about the photos' bytes, as any client would ask it.

    Args:
        live: the other version.
        fingerprint: of the new version's backbone.
        labels: K of the new version.
        examples: the N test photos.
        embeddings: float32 or float16 [N,D].
        probabilities: float32 [N,K] of the new version.

    Raises:
        InputError: no test photo is left to compare by.
        BundleError, RunError: the live version cannot be loaded, or does not answer.
    """
    own, known = live.metadata.labels, training_digests.read(live.path)
    seen = np.zeros(len(examples), bool)
    if known is not None:
        seen = np.isin(training_digests.truncate_digests(example.sha256 for example in examples), known)
    foreign = np.array([labels[example.label] not in own for example in examples], bool)
    rows = np.flatnonzero(~seen & ~foreign)
    same = live.metadata.fingerprint == fingerprint
    if same:
        fitted = load_head(live.path / contract.HEAD_FILE)[0]
        answers, answered = predict_probabilities(fitted, embeddings, rows), np.ones(len(rows), bool)
    else:
        answers, answered = _ask(live, [examples[row].uri for row in rows.tolist()])
    counted = {
        "that it was trained on": int(seen.sum()),
        "of labels that it does not know": int((foreign & ~seen).sum()),
        "that it refuses": int((~answered).sum()),
    }
    left_out = {reason: count for reason, count in counted.items() if count}
    rows, answers = rows[answered], answers[answered]
    if not len(rows):
        why = ", ".join(f"{count} {reason}" for reason, count in left_out.items()) or "there are none"
        raise InputError(
            f"No test photo can be used to compare with {live.path}: {why}.",
            remedy="Keep photos for the test that it was not trained on, or give --compare_with none.",
        )
    removed = tuple(label for label in own if label not in labels)
    both = (*labels, *removed)
    new, old = align_columns(probabilities[rows], labels, both), align_columns(answers, own, both)
    judged = [examples[row] for row in rows.tolist()]
    targets = np.array([example.label for example in judged], np.int64)
    figures = evaluate(new, targets, both), evaluate(old, targets, both)
    gained, lost = _differing(new, old, targets)
    return LiveComparison(
        name=live.name,
        version=live.version,
        same_backbone=same,
        added=tuple(label for label in labels if label not in own),
        removed=removed,
        left_out=left_out,
        trained_on_known=known is not None,
        new=figures[0],
        live=figures[1],
        difference=compare(new, old, targets),
        labels=_label_changes(*figures, targets, gained, lost),
        newly_right=_photo_changes(judged, new, old, both, gained),
        newly_wrong=_photo_changes(judged, new, old, both, lost),
    )


def check(found: LiveComparison, tolerance: Tolerance) -> None:
    """Refuse a new version that is worse than the live one.

    Args:
        found: the comparison.
        tolerance: "surely" refuses where the 95 % interval says that it is worse (`PairedComparison.is_worse`);
            percent points refuse where the accuracy falls by more, whatever the interval.

    Raises:
        GateRejected: with the figures.
    """
    fall = -100 * found.difference.accuracy.value
    if found.difference.is_worse if tolerance == "surely" else fall > tolerance + 1e-9:
        allowed = "" if tolerance == "surely" else f" by more than {tolerance:g} points"
        raise GateRejected(
            f"Worse than version {found.version} of {found.name}{allowed}: {found.difference}; "
            "nothing was published (--assert_not_worse_than_live).",
            remedy="Look at what changed in the photos, or allow a larger fall.",
        )


def _differing(new: Floats, old: Floats, targets: Ints) -> tuple[Flags, Flags]:
    """The photos, bool [N], that the first alone gets right, and those that the second alone does."""
    right, was_right = (found.argmax(axis=1) == targets for found in (new, old))
    return right & ~was_right, was_right & ~right


def _label_changes(
    new: Evaluation, old: Evaluation, targets: Ints, gained: Flags, lost: Flags
) -> tuple[LabelChange, ...]:
    changes = []
    for index, label in enumerate(new.labels):
        mine = targets == index
        if mine.any():
            more, fewer = int((mine & gained).sum()), int((mine & lost).sum())
            difference = estimate_difference(more, fewer, int(mine.sum()))
            changes.append(LabelChange(label, new.recall[label], old.recall[label], difference, more, fewer))
    return tuple(changes)


def _photo_changes(
    examples: Sequence[Example], new: Floats, old: Floats, labels: Sequence[str], chosen: Flags
) -> tuple[PhotoChange, ...]:
    """The chosen photos, those that the new version is surest of first."""
    places = np.flatnonzero(chosen)
    places = places[np.argsort(-new[places].max(axis=1), kind="stable")]
    return tuple(
        PhotoChange(
            examples[place].uri,
            labels[examples[place].label],
            _best(new[place], labels),
            _best(old[place], labels),
        )
        for place in places.tolist()
    )


def _best(row: Floats, labels: Sequence[str]) -> tuple[str, float]:
    index = int(row.argmax())
    return labels[index], float(row[index])


def _ask(live: Bundle, uris: Sequence[str]) -> tuple[Floats, Flags]:
    """Probabilities float32 [N,K] of photos, and which of them the bundle answers, bool [N]."""
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
    asked: list[int] = []
    with Converter(limits) as converter:

        def photos() -> Iterator[bytes]:
            for row, uri in enumerate(uris):
                try:
                    image = converter.convert_if_needed(files.read(uri))
                except OSError:
                    continue
                if isinstance(image, bytes):
                    asked.append(row)
                    yield image

        done = 0
        for outputs in model.imap(contract.PROBABILITIES, contract.IMAGE_BYTES, photos()):
            count = len(outputs[contract.STATUS])
            rows = asked[done : done + count]
            probabilities[rows] = outputs[contract.PROBABILITIES]
            answered[rows] = [Status(status.decode()).usable for status in outputs[contract.STATUS]]
            done += count
    return probabilities, answered
