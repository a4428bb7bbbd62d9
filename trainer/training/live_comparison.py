"""Comparison of the new version with the live one, on test photos that neither was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from serving import bundle, contract
from serving.bundle import Bundle
from serving.errors import BundleError, GateRejected
from serving.registry.verdict import format_checks
from trainer.dataset import Example
from trainer.evaluation.features import predict_probabilities
from trainer.evaluation.version_changes import LiveComparison
from trainer.export.head_file import load_head
from trainer.gate import thresholds
from trainer.gate.comparison import compare_predictions, select_photos
from trainer.gate.predictions import Predictions, predict
from trainer.gate.thresholds import RegressionLimits
from trainer.heads import Floats, Vectors

NO_COMPARISON = "none"
"""Value in place of a bundle that turns the comparison off."""


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
    store_root: str,
) -> LiveComparison:
    """Compare on test photos that the live version was not trained on, of labels that both versions know.

    Where the backbone is the same, the live head is evaluated on the embeddings; otherwise the live version
    predicts the photos as in the gate.

    Args:
        live: the live version.
        fingerprint: fingerprint of the new version's backbone.
        labels: K label names of the new version.
        examples: N test photos.
        embeddings: float32 or float16 [N,D].
        probabilities: float32 [N,K] of the new version.
        store_root: directory of the embedding store.

    Raises:
        InputError: no test photo is left for the comparison.
        BundleError, RunError: the live version cannot be loaded or run.
    """
    usable = select_photos(examples, labels, live)
    every = np.ones(len(usable.rows), bool)
    same_backbone = live.metadata.fingerprint == fingerprint
    if same_backbone:
        head, _ = load_head(live.path / contract.HEAD_FILE, live.metadata)
        old = Predictions(predict_probabilities(head, embeddings, usable.rows), every)
    else:
        old = predict(live, usable.examples, store_root)
    new = Predictions(probabilities[usable.rows], every)
    return compare_predictions(live, labels, usable, new, old, same_backbone=same_backbone)


def check_not_worse(comparison: LiveComparison, points: float) -> None:
    """Check that the new version is not worse than the live one, by the limits and tests of the gate.

    Args:
        comparison: the comparison of both.
        points: percentage points that the accuracy may fall.

    Raises:
        GateRejected: the new version is worse; the message has the figures.
    """
    checks = thresholds.judge(comparison, RegressionLimits(accuracy=points / 100))
    if failed := [check for check in checks if check.passed is False]:
        raise GateRejected(
            f"The new version is worse than version {comparison.version} of {comparison.name}: "
            f"{format_checks(failed)}. Nothing was published (--assert_not_worse_than_live).",
            remedy="Check what changed in the photos, or allow a larger decrease.",
        )
