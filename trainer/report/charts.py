"""Charts of the training report: reliability diagram, risk-coverage curve, regularisation strength."""

from __future__ import annotations

import math
from collections.abc import Mapping

from serving.html import Axis, Chart, Point, percent_ticks
from trainer.evaluation.metrics import Calibration
from trainer.report.contents import RiskCoverageCurve


def draw_reliability_diagram(calibration: Calibration) -> Chart:
    """Draw the accuracy of photos of about the same best probability, with intervals."""
    bins = calibration.bins
    return Chart(
        f"Reliability diagram: accuracy against best probability of {len(bins)} groups of photos. "
        f"Calibration error {calibration.error:.3f}.",
        Axis(0, 1, percent_ticks(0.25), "best probability"),
        Axis(0, 1, percent_ticks(0.25), "accuracy"),
        lines=[[(group.confidence, group.accuracy.value) for group in bins]],
        points=[
            Point(
                group.confidence,
                group.accuracy.value,
                f"mean probability {group.confidence:.0%}, accuracy {group.accuracy}",
            )
            for group in bins
        ],
        intervals=[(group.confidence, group.accuracy.low, group.accuracy.high) for group in bins],
        diagonal="perfectly calibrated",
    )


def draw_log_losses(by_strength: Mapping[float, float], chosen: float) -> Chart:
    """Draw the log-loss of each candidate for C on a logarithmic axis, with the chosen one marked."""
    losses = sorted(by_strength.items())
    first, last = math.log(losses[0][0]), math.log(losses[-1][0])
    margin = 0.08 * (last - first) or 1.0
    low, high = min(by_strength.values()), max(by_strength.values())
    spread = max(high - low, 0.01)
    bottom, top = low - 0.25 * spread, high + 0.25 * spread
    steps = [bottom + (top - bottom) * part for part in (0.1, 0.37, 0.63, 0.9)]
    values = ", ".join(f"{loss:.3f} at C={strength:g}" for strength, loss in losses)
    return Chart(
        f"Log-loss by regularisation strength: {values}. Chosen: C={chosen:g}.",
        Axis(
            first - margin,
            last + margin,
            [(math.log(strength), f"{strength:g}") for strength, _ in losses],
            "C (smaller values regularise more)",
        ),
        Axis(bottom, top, [(step, f"{step:.3f}") for step in steps], "held-out log-loss"),
        lines=[[(math.log(strength), loss) for strength, loss in losses]],
        points=[
            Point(
                math.log(strength),
                loss,
                f"C={strength:g}: log-loss {loss:.4f}",
                highlighted=strength == chosen,
                note="chosen" if strength == chosen else "",
            )
            for strength, loss in losses
        ],
    )


def draw_risk_coverage_curve(curve: RiskCoverageCurve) -> Chart:
    """Draw the accuracy of the answers (1 - risk) against the fraction of photos answered (coverage)."""
    lowest = min((share for _, share in curve.points), default=0.0)
    bottom = max(0.0, math.floor((lowest - 0.02) * 10) / 10)
    step = 0.1 if 1 - bottom <= 0.5 else 0.2
    ticks = [t for t in ((1 - i * step, f"{1 - i * step:.0%}") for i in range(10)) if t[0] >= bottom - 1e-9]
    end = f" At full coverage the accuracy is {curve.points[-1][1]:.1%}." if curve.points else ""
    return Chart(
        f"Risk-coverage curve: accuracy of the answers against coverage.{end}",
        Axis(0, 1, percent_ticks(0.25), "coverage: photos answered"),
        Axis(bottom, 1, ticks, "accuracy of the answers (1 - risk)"),
        lines=[curve.points],
        points=[
            Point(
                threshold.coverage.value,
                threshold.precision.value,
                f"threshold {threshold} (for a precision of {wanted:.0%})",
            )
            for wanted, threshold in curve.thresholds.items()
            if threshold
        ],
    )
