"""Charts as SVG: axes and the marks on them. Colours come from the page's style sheet, by CSS class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from serving.html.markup import Element, element

# Size of a chart and its margins, in the units of its viewBox. The margins leave room for tick labels and
# axis titles.
_WIDTH, _HEIGHT = 420, 330
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 18, 14, 50


@dataclass(frozen=True)
class Axis:
    """A linear axis: it maps values to coordinates when called, and has ticks and a title.

    Attributes:
        low: value at the start of the axis.
        high: value at its end.
        start: coordinate of `low`.
        end: coordinate of `high`.
        ticks: value and text of each tick.
        title: the quantity and its unit.
    """

    low: float
    high: float
    start: float
    end: float
    ticks: Sequence[tuple[float, str]]
    title: str

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def interval_bar(value: float, low: float, high: float, description: str) -> Element:
    """Return a bar from 0 to 1 that shows a proportion and its confidence interval.

    Args:
        value: the proportion; the bar is empty if it or an end of the interval is NaN.
        low: lower end of the interval.
        high: upper end of the interval.
        description: text for screen readers.
    """
    known = not any(math.isnan(number) for number in (value, low, high))
    marks = [element("rect", x=0, y=4, width=100, height=4, rx=2, class_="track")]
    if known:
        # A mark is at least one unit wide and stays inside the bar, so that it is visible at 0 and at 1.
        width = max(1.0, 100 * (high - low))
        marks += [
            element("rect", x=min(100 * low, 99), y=4, width=width, height=4, rx=2, class_="reach"),
            element("rect", x=min(max(100 * value - 1, 0), 98), y=1, width=2, height=10, rx=1, class_="at"),
        ]
    return element(
        "svg",
        element("title", description),
        *marks,
        viewBox="0 0 100 12",
        preserveAspectRatio="none",
        class_="interval",
        role="img",
    )


def x_axis(low: float, high: float, ticks: Sequence[tuple[float, str]], title: str) -> Axis:
    """Return the horizontal axis of a chart."""
    return Axis(low, high, _LEFT, _WIDTH - _RIGHT, ticks, title)


def y_axis(low: float, high: float, ticks: Sequence[tuple[float, str]], title: str) -> Axis:
    """Return the vertical axis of a chart."""
    return Axis(low, high, _HEIGHT - _BOTTOM, _TOP, ticks, title)


def percent_ticks(step: float) -> list[tuple[float, str]]:
    """Return ticks from 0 to 1 every `step`, with percentages as texts."""
    return [(number * step, f"{number * step:.0%}") for number in range(round(1 / step) + 1)]


def line(points: Sequence[tuple[float, float]]) -> Element:
    """Return a line through points given in chart coordinates."""
    return element("polyline", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in points), class_="line")


def point(x: float, y: float, description: str, *, highlighted: bool = False) -> Element:
    """Return a point whose tooltip is `description`; a highlighted one is larger and in another colour."""
    return element(
        "circle",
        element("title", description),
        cx=x,
        cy=y,
        r=6 if highlighted else 4,
        class_="highlighted" if highlighted else "point",
    )


def chart(description: str, x: Axis, y: Axis, marks: Sequence[Element]) -> Element:
    """Return a chart: axes with grid lines, and the marks drawn over them.

    Args:
        description: text for screen readers.
        x: horizontal axis.
        y: vertical axis.
        marks: lines, points and other elements in chart coordinates.
    """
    parts = [element("title", description)]
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
