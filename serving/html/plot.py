"""Diagrams as SVG: axes, and marks on them. Colours are the page's, by class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from serving.html.markup import Element, element

_WIDTH, _HEIGHT = 420, 330
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 18, 14, 50


@dataclass(frozen=True)
class Axis:
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


def across(low: float, high: float, ticks: Sequence[tuple[float, str]], title: str) -> Axis:
    """The horizontal axis of a chart."""
    return Axis(low, high, _LEFT, _WIDTH - _RIGHT, ticks, title)


def up(low: float, high: float, ticks: Sequence[tuple[float, str]], title: str) -> Axis:
    """The vertical axis of a chart."""
    return Axis(low, high, _HEIGHT - _BOTTOM, _TOP, ticks, title)


def shares(step: float) -> list[tuple[float, str]]:
    """Ticks from 0 to 1, told as percent."""
    return [(number * step, f"{number * step:.0%}") for number in range(round(1 / step) + 1)]


def line(points: Sequence[tuple[float, float]]) -> Element:
    """A line through places of the chart."""
    return element("polyline", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in points), class_="line")


def dot(x: float, y: float, said: str, kind: str = "dot") -> Element:
    """A point that says what it is; `kind` "taken" makes it stand out."""
    return element("circle", element("title", said), cx=x, cy=y, r=6 if kind == "taken" else 4, class_=kind)


def chart(said: str, x: Axis, y: Axis, marks: Sequence[Element]) -> Element:
    """Axes with marks on them; `said` is for those who do not see them."""
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
