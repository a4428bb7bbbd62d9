"""The diagrams of a training."""

from __future__ import annotations

import math
from collections.abc import Mapping

from serving.html.markup import Element, element
from serving.html.plot import chart, line, percent_ticks, point, x_axis, y_axis
from trainer.evaluation.metrics import Calibration
from trainer.report.contents import Coverage


def reliability(calibration: Calibration) -> Element:
    """How often photos of about the same best probability are right, with intervals."""
    x, y = (
        x_axis(0, 1, percent_ticks(0.25), "best probability"),
        y_axis(0, 1, percent_ticks(0.25), "share that is right"),
    )
    marks = [
        element("line", x1=x(0), y1=y(0), x2=x(1), y2=y(1), class_="ideal"),
        element("text", "as it should be", x=x(0.13), y=y(0.035), class_="note"),
    ]
    for group in calibration.bins:
        at, share = x(group.confidence), group.accuracy
        marks.append(element("line", x1=at, x2=at, y1=y(share.low), y2=y(share.high), class_="whisker"))
    marks.append(line([(x(group.confidence), y(group.accuracy.value)) for group in calibration.bins]))
    for group in calibration.bins:
        words = f"{group.confidence:.0%} sure, right {group.accuracy}"
        marks.append(point(x(group.confidence), y(group.accuracy.value), words))
    said = (
        f"Reliability: {len(calibration.bins)} groups of photos, best probability against share right. "
        f"Calibration error {calibration.error:.3f}."
    )
    return chart(said, x, y, marks)


def losses(by_strength: Mapping[float, float], taken: float) -> Element:
    """Log-loss for each candidate C, on a logarithmic axis, the one taken marked."""
    points = sorted(by_strength.items())
    ends = math.log(points[0][0]), math.log(points[-1][0])
    margin = 0.08 * (ends[1] - ends[0]) or 1.0
    ticks = [(math.log(strength), f"{strength:g}") for strength, _ in points]
    x = x_axis(ends[0] - margin, ends[1] + margin, ticks, "C: the larger, the less regularised")
    low, high = min(by_strength.values()), max(by_strength.values())
    spread = max(high - low, 0.01)
    bottom, top = low - 0.25 * spread, high + 0.25 * spread
    steps = [bottom + (top - bottom) * part for part in (0.1, 0.37, 0.63, 0.9)]
    y = y_axis(bottom, top, [(step, f"{step:.3f}") for step in steps], "log-loss, held out")
    places = [(x(math.log(strength)), y(loss)) for strength, loss in points]
    marks = [line(places)]
    for (strength, loss), place in zip(points, places, strict=True):
        is_taken = strength == taken
        marks.append(point(*place, f"C={strength:g}: log-loss {loss:.4f}", highlighted=is_taken))
        if is_taken:
            marks.append(
                element("text", "taken", x=place[0], y=place[1] + 21, class_="note", text_anchor="middle")
            )
    told = ", ".join(f"{loss:.3f} at C={strength:g}" for strength, loss in points)
    return chart(f"Log-loss by strength of regularisation: {told}. Taken: C={taken:g}.", x, y, marks)


def coverage(curve: Coverage) -> Element:
    """Share of right answers against share answered, the least sure left out first."""
    lowest = min((share for _, share in curve.points), default=0.0)
    bottom = max(0.0, math.floor((lowest - 0.02) * 10) / 10)
    step = 0.1 if 1 - bottom <= 0.5 else 0.2
    ticks = [t for t in ((1 - i * step, f"{1 - i * step:.0%}") for i in range(10)) if t[0] >= bottom - 1e-9]
    x = x_axis(0, 1, percent_ticks(0.25), "share of photos answered")
    y = y_axis(bottom, 1, ticks, "share of answers right")
    marks = [line([(x(answered), y(right)) for answered, right in curve.points])]
    for wanted, threshold in curve.thresholds.items():
        if threshold:
            words = f"threshold {threshold} (for {wanted:.0%})"
            marks.append(point(x(threshold.coverage.value), y(threshold.precision.value), words))
    ends = f" All answered: {curve.points[-1][1]:.1%} right." if curve.points else ""
    return chart(f"Share of right answers against share of photos answered.{ends}", x, y, marks)
