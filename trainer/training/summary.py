"""What a training did, for people and for programs."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from serving import contract

if TYPE_CHECKING:
    from trainer.training.config import TrainResult


def describe(result: TrainResult) -> str:
    """The outcome in a few lines."""
    counts = ", ".join(f"{count} {name}" for name, count in result.subsets.items())
    lines = [f"{sum(result.subsets.values())} photos with {len(result.labels)} labels: {counts}"]
    if result.left_out:
        lines.append(f"{len(result.left_out)} files cannot be used:")
        lines += [f"  {path}: {reason}" for path, reason in result.left_out]
    if result.test:
        lines.append(f"Final test accuracy: {result.test.accuracy}")
    lines.append(
        f"Accuracy by {result.method}: {result.held_out.accuracy}, log-loss {result.held_out.log_loss:.3f}"
    )
    if result.cross_validation:
        lines.append(f"Accuracy by {result.cross_validation}")
    if result.comparison:
        lines += result.comparison.format_lines()
    if result.answering:
        lines.append(f"Answers from a probability of {result.answering}")
    if result.known_kept:
        lines.append(f"Photos of known labels that are not refused as unlike them: {result.known_kept}")
    lines.append(f"Seconds: {', '.join(f'{name} {value:.1f}' for name, value in result.seconds.items())}")
    lines.append(f"Bundle: {result.bundle.path}")
    if made := result.bundle.metadata.metrics.get("tflite"):
        share, of = made["label_agreement"]["value"], made["label_agreement"]["n"]
        lines.append(
            f"TensorFlow Lite: {made['bytes'] / 1e6:.1f} MB, the bundle's label on {share:.1%} of {of} photos"
        )
    if (page := result.bundle.path / contract.REPORT_FILE).is_file():
        lines.append(f"Report: {page}")
    return "\n".join(lines)


def record(result: TrainResult) -> dict[str, Any]:
    """For JSON."""
    return {
        "bundle": str(result.bundle.path),
        "version": result.bundle.version,
        "metrics": result.bundle.metadata.metrics,
        "data": result.bundle.metadata.data,
        "left_out": [{"photo": path, "reason": reason} for path, reason in result.left_out],
        "misclassified": [
            {"photo": path, "label": label, "predicted": found, "score": score}
            for path, label, found, score in result.misclassified
        ],
        "changed": {
            kind: [asdict(photo) for photo in photos]
            for kind, photos in (
                ("newly_right", result.comparison.newly_right),
                ("newly_wrong", result.comparison.newly_wrong),
            )
        }
        if result.comparison
        else None,
        "seconds": result.seconds,
    }
