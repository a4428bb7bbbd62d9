"""The diagrams, as SVG drawn by a few functions. Colours are the page's, by class."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trainer.evaluate import Calibration
from trainer.report.contents import Coverage
from trainer.report.markup import Element, element

_WIDTH, _HEIGHT = 420, 330
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 18, 14, 50


@dataclass(frozen=True)
class _Axis:
    """One axis: where a value lies between two ends, and what is written beside it.

    Attributes:
        low, high: values at the ends.
        start, end: their places.
        ticks: value and text.
        title: what it measures.
    """

    low: float
    high: float
    start: float
    end: float
    ticks: Sequence[tuple[float, str]]
    title: str

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def reliability(calibration: Calibration) -> Element:
    """How often photos of about the same best probability are right, with intervals."""
    x, y = _across(0, 1, _shares(0.25), "best probability"), _up(0, 1, _shares(0.25), "share that is right")
    marks = [
        element("line", x1=x(0), y1=y(0), x2=x(1), y2=y(1), class_="ideal"),
        element("text", "as it should be", x=x(0.13), y=y(0.035), class_="note"),
    ]
    for point in calibration.bins:
        at, share = x(point.confidence), point.accuracy
        marks.append(element("line", x1=at, x2=at, y1=y(share.low), y2=y(share.high), class_="whisker"))
    marks.append(_line([(x(point.confidence), y(point.accuracy.value)) for point in calibration.bins]))
    for point in calibration.bins:
        words = f"{point.confidence:.0%} sure, right {point.accuracy}"
        marks.append(_dot(x(point.confidence), y(point.accuracy.value), words))
    said = (
        f"Reliability: {len(calibration.bins)} groups of photos, best probability against share right. "
        f"Calibration error {calibration.error:.3f}."
    )
    return _chart(said, x, y, marks)


def losses(by_strength: Mapping[float, float], taken: float) -> Element:
    """Log-loss for each candidate C, on a logarithmic axis, the one taken marked."""
    points = sorted(by_strength.items())
    ends = math.log(points[0][0]), math.log(points[-1][0])
    margin = 0.08 * (ends[1] - ends[0]) or 1.0
    ticks = [(math.log(strength), f"{strength:g}") for strength, _ in points]
    x = _across(ends[0] - margin, ends[1] + margin, ticks, "C: the larger, the less regularised")
    low, high = min(by_strength.values()), max(by_strength.values())
    spread = max(high - low, 0.01)
    bottom, top = low - 0.25 * spread, high + 0.25 * spread
    steps = [bottom + (top - bottom) * part for part in (0.1, 0.37, 0.63, 0.9)]
    y = _up(bottom, top, [(step, f"{step:.3f}") for step in steps], "log-loss, held out")
    places = [(x(math.log(strength)), y(loss)) for strength, loss in points]
    marks = [_line(places)]
    for (strength, loss), place in zip(points, places, strict=True):
        is_taken = strength == taken
        marks.append(_dot(*place, f"C={strength:g}: log-loss {loss:.4f}", "taken" if is_taken else "dot"))
        if is_taken:
            marks.append(
                element("text", "taken", x=place[0], y=place[1] + 21, class_="note", text_anchor="middle")
            )
    told = ", ".join(f"{loss:.3f} at C={strength:g}" for strength, loss in points)
    return _chart(f"Log-loss by strength of regularisation: {told}. Taken: C={taken:g}.", x, y, marks)


def coverage(curve: Coverage) -> Element:
    """Share of right answers against share answered, the least sure left out first."""
    lowest = min((share for _, share in curve.points), default=0.0)
    bottom = max(0.0, math.floor((lowest - 0.02) * 10) / 10)
    step = 0.1 if 1 - bottom <= 0.5 else 0.2
    ticks = [t for t in ((1 - i * step, f"{1 - i * step:.0%}") for i in range(10)) if t[0] >= bottom - 1e-9]
    x = _across(0, 1, _shares(0.25), "share of photos answered")
    y = _up(bottom, 1, ticks, "share of answers right")
    marks = [_line([(x(answered), y(right)) for answered, right in curve.points])]
    for wanted, threshold in curve.thresholds.items():
        if threshold:
            words = f"threshold {threshold} (for {wanted:.0%})"
            marks.append(_dot(x(threshold.coverage.value), y(threshold.precision.value), words))
    ends = f" All answered: {curve.points[-1][1]:.1%} right." if curve.points else ""
    return _chart(f"Share of right answers against share of photos answered.{ends}", x, y, marks)


def interval(value: float, low: float, high: float, said: str) -> Element:
    """A share with its interval on a bar from 0 to 1."""
    known = not any(math.isnan(number) for number in (value, low, high))
    marks = [element("rect", x=0, y=4, width=100, height=4, rx=2, class_="track")]
    if known:
        reach = max(1.0, 100 * (high - low))
        marks += [
            element("rect", x=min(100 * low, 99), y=4, width=reach, height=4, rx=2, class_="reach"),
            element("rect", x=min(max(100 * value - 1, 0), 98), y=1, width=2, height=10, rx=1, class_="at"),
        ]
    return element(
        "svg",
        element("title", said),
        *marks,
        viewBox="0 0 100 12",
        preserveAspectRatio="none",
        class_="interval",
        role="img",
    )


def _across(low: float, high: float, ticks: Sequence[tuple[float, str]], title: str) -> _Axis:
    return _Axis(low, high, _LEFT, _WIDTH - _RIGHT, ticks, title)


def _up(low: float, high: float, ticks: Sequence[tuple[float, str]], title: str) -> _Axis:
    return _Axis(low, high, _HEIGHT - _BOTTOM, _TOP, ticks, title)


def _shares(step: float) -> list[tuple[float, str]]:
    return [(number * step, f"{number * step:.0%}") for number in range(round(1 / step) + 1)]


def _line(points: Sequence[tuple[float, float]]) -> Element:
    return element("polyline", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in points), class_="line")


def _dot(x: float, y: float, said: str, kind: str = "dot") -> Element:
    return element("circle", element("title", said), cx=x, cy=y, r=6 if kind == "taken" else 4, class_=kind)


def _chart(said: str, x: _Axis, y: _Axis, marks: Sequence[Element]) -> Element:
    """Axes with marks on them."""
    parts = [element("title", said)]
    for value, text in y.ticks:
        at = y(value)
        parts.append(element("line", x1=x.start, x2=x.end, y1=at, y2=at, class_="grid"))
        parts.append(element("text", text, x=x.start - 8, y=at + 4, text_anchor="end"))
    for value, text in x.ticks:
        parts.append(element("text", text, x=x(value), y=y.start + 20, text_anchor="middle"))
    middle = (y.start + y.end) / 2
    return element(
        "svg",
        *parts,
        element("line", x1=x.start, x2=x.end, y1=y.start, y2=y.start, class_="axis"),
        element("text", x.title, x=(x.start + x.end) / 2, y=_HEIGHT - 8, text_anchor="middle", class_="name"),
        element(
            "text",
            y.title,
            transform=f"translate(14 {middle:g}) rotate(-90)",
            text_anchor="middle",
            class_="name",
        ),
        *marks,
        viewBox=f"0 0 {_WIDTH} {_HEIGHT}",
        class_="chart",
        role="img",
    )
