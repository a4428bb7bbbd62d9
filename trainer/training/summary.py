"""Summary of a training run: as text for people, and as JSON values for programs."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from serving import contract
from serving.text import escape_controls

if TYPE_CHECKING:
    from trainer.training.config import TrainResult


def format_summary(result: TrainResult) -> str:
    """Return the result as a few lines of text."""
    counts = ", ".join(f"{count} {name}" for name, count in result.subsets.items())
    lines = [f"{sum(result.subsets.values())} photos with {len(result.labels)} labels: {counts}"]
    if result.left_out:
        lines.append(f"{len(result.left_out)} files cannot be used:")
        lines += [f"  {escape_controls(path, newlines=True)}: {reason}" for path, reason in result.left_out]
    if result.test:
        lines.append(f"Final test accuracy: {result.test.accuracy}")
    lines.append(
        f"Accuracy by {result.method}: {result.held_out.accuracy}, log-loss {result.held_out.log_loss:.3f}"
    )
    if result.cross_validation:
        lines.append(f"Accuracy by {result.cross_validation}")
    if result.comparison:
        lines += result.comparison.format_lines()
    if result.suspects.photos:
        count, examined = len(result.suspects.photos), result.suspects.examined
        lines.append(
            f"Suspected label errors: {count} of {examined} photos, most suspicious first in the report"
        )
    if result.threshold:
        lines.append(f"Abstention threshold {result.threshold}")
    if result.known_kept:
        lines.append(f"Photos of known labels accepted by the novelty score: {result.known_kept}")
    lines.append(f"Seconds: {', '.join(f'{name} {value:.1f}' for name, value in result.seconds.items())}")
    lines.append(f"Bundle: {result.bundle.path}")
    if tflite := result.bundle.metadata.metrics.get("tflite"):
        share, photos = tflite["label_agreement"]["value"], tflite["label_agreement"]["n"]
        lines.append(
            f"TensorFlow Lite: {tflite['bytes'] / 1e6:.1f} MB, same label as the bundle for {share:.1%} of "
            f"{photos} photos"
        )
    if (page := result.bundle.path / contract.REPORT_FILE).is_file():
        lines.append(f"Report: {page}")
    return "\n".join(lines)


def to_dict(result: TrainResult) -> dict[str, Any]:
    """Return the result as JSON values, as printed by --json."""
    kinds = ("newly_right", "newly_wrong")
    compared = result.comparison
    changed = compared and {kind: [asdict(photo) for photo in getattr(compared, kind)] for kind in kinds}
    return {
        "bundle": str(result.bundle.path),
        "version": result.bundle.version,
        "metrics": result.bundle.metadata.metrics,
        "data": result.bundle.metadata.data,
        "left_out": [{"photo": path, "reason": reason} for path, reason in result.left_out],
        "misclassified": [
            {"photo": path, "label": label, "predicted": predicted, "score": score}
            for path, label, predicted, score in result.misclassified
        ],
        "label_errors": result.suspects.list_photos(),
        "changed": changed,
        "seconds": result.seconds,
    }
