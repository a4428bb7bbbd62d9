"""Charts of the training report: reliability diagram, risk-coverage curve, regularisation strength."""

from __future__ import annotations

import math
from collections.abc import Mapping

from serving.html.markup import Element, element
from serving.html.plot import chart, line, percent_ticks, point, x_axis, y_axis
from trainer.evaluation.metrics import Calibration
from trainer.report.contents import RiskCoverageCurve


def draw_reliability_diagram(calibration: Calibration) -> Element:
    """Draw the accuracy of photos of about the same best probability, with intervals."""
    x, y = (
        x_axis(0, 1, percent_ticks(0.25), "best probability"),
        y_axis(0, 1, percent_ticks(0.25), "accuracy"),
    )
    marks = [
        element("line", x1=x(0), y1=y(0), x2=x(1), y2=y(1), class_="ideal"),
        element("text", "perfectly calibrated", x=x(0.13), y=y(0.035), class_="note"),
    ]
    for group in calibration.bins:
        position, accuracy = x(group.confidence), group.accuracy
        ends = {"y1": y(accuracy.low), "y2": y(accuracy.high)}
        marks.append(element("line", x1=position, x2=position, **ends, class_="whisker"))
    marks.append(line([(x(group.confidence), y(group.accuracy.value)) for group in calibration.bins]))
    for group in calibration.bins:
        description = f"mean probability {group.confidence:.0%}, accuracy {group.accuracy}"
        marks.append(point(x(group.confidence), y(group.accuracy.value), description))
    description = (
        f"Reliability diagram: accuracy against best probability of {len(calibration.bins)} groups of "
        f"photos. Calibration error {calibration.error:.3f}."
    )
    return chart(description, x, y, marks)


def draw_log_losses(by_strength: Mapping[float, float], chosen: float) -> Element:
    """Draw the log-loss of each candidate for C on a logarithmic axis, with the chosen one marked."""
    points = sorted(by_strength.items())
    ends = math.log(points[0][0]), math.log(points[-1][0])
    margin = 0.08 * (ends[1] - ends[0]) or 1.0
    ticks = [(math.log(strength), f"{strength:g}") for strength, _ in points]
    x = x_axis(ends[0] - margin, ends[1] + margin, ticks, "C (smaller values regularise more)")
    low, high = min(by_strength.values()), max(by_strength.values())
    spread = max(high - low, 0.01)
    bottom, top = low - 0.25 * spread, high + 0.25 * spread
    steps = [bottom + (top - bottom) * part for part in (0.1, 0.37, 0.63, 0.9)]
    y = y_axis(bottom, top, [(step, f"{step:.3f}") for step in steps], "held-out log-loss")
    places = [(x(math.log(strength)), y(loss)) for strength, loss in points]
    marks = [line(places)]
    for (strength, loss), place in zip(points, places, strict=True):
        is_chosen = strength == chosen
        marks.append(point(*place, f"C={strength:g}: log-loss {loss:.4f}", highlighted=is_chosen))
        if is_chosen:
            marks.append(
                element("text", "chosen", x=place[0], y=place[1] + 21, class_="note", text_anchor="middle")
            )
    values = ", ".join(f"{loss:.3f} at C={strength:g}" for strength, loss in points)
    return chart(f"Log-loss by regularisation strength: {values}. Chosen: C={chosen:g}.", x, y, marks)


def draw_risk_coverage_curve(curve: RiskCoverageCurve) -> Element:
    """Draw the accuracy of the answers (1 - risk) against the fraction of photos answered (coverage)."""
    lowest = min((share for _, share in curve.points), default=0.0)
    bottom = max(0.0, math.floor((lowest - 0.02) * 10) / 10)
    step = 0.1 if 1 - bottom <= 0.5 else 0.2
    ticks = [t for t in ((1 - i * step, f"{1 - i * step:.0%}") for i in range(10)) if t[0] >= bottom - 1e-9]
    x = x_axis(0, 1, percent_ticks(0.25), "coverage: photos answered")
    y = y_axis(bottom, 1, ticks, "accuracy of the answers (1 - risk)")
    marks = [line([(x(answered), y(right)) for answered, right in curve.points])]
    for wanted, threshold in curve.thresholds.items():
        if threshold:
            description = f"threshold {threshold} (for a precision of {wanted:.0%})"
            marks.append(point(x(threshold.coverage.value), y(threshold.precision.value), description))
    end = f" At full coverage the accuracy is {curve.points[-1][1]:.1%}." if curve.points else ""
    return chart(f"Risk-coverage curve: accuracy of the answers against coverage.{end}", x, y, marks)
