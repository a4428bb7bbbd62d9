"""Contents of a chart, in the units of its axes. The macro `chart` of `macros.html` draws it as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# Edges of the area between the axes in the viewBox of 420 x 330, as in `macros.html`. The margins leave room
# for tick labels and axis titles.
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 402, 14, 280


@dataclass(frozen=True)
class Axis:
    """A linear axis.

    Attributes:
        low: value at the start of the axis.
        high: value at its end.
        ticks: value and text of each tick.
        title: the quantity and its unit.
    """

    low: float
    high: float
    ticks: Sequence[tuple[float, str]]
    title: str

    def scale(self, value: float) -> float:
        """Return the position of a value: 0 at the start of the axis, 1 at its end."""
        return (value - self.low) / (self.high - self.low)


@dataclass(frozen=True)
class Point:
    """A point of a chart.

    Attributes:
        x, y: position of the point.
        description: its tooltip.
        highlighted: draw it larger and in another colour.
        note: text below the point.
    """

    x: float
    y: float
    description: str
    highlighted: bool = False
    note: str = ""


@dataclass(frozen=True)
class Chart:
    """Axes with grid lines, and the marks drawn over them.

    Attributes:
        description: text for screen readers.
        x: horizontal axis.
        y: vertical axis.
        lines: (x, y) of the points of each line.
        points: single points, drawn over the lines.
        columns: left edge, right edge, height and tooltip of each column of a histogram.
        intervals: x, low and high of each interval, drawn below the lines.
        diagonal: text at a dashed line from (0, 0) to (1, 1); "" draws no such line.
    """

    description: str
    x: Axis
    y: Axis
    lines: Sequence[Sequence[tuple[float, float]]] = ()
    points: Sequence[Point] = ()
    columns: Sequence[tuple[float, float, float, str]] = ()
    intervals: Sequence[tuple[float, float, float]] = ()
    diagonal: str = ""

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Return the coordinates of a point in the viewBox, rounded to a tenth."""
        return (
            round(_LEFT + self.x.scale(x) * (_RIGHT - _LEFT), 1),
            round(_BOTTOM - self.y.scale(y) * (_BOTTOM - _TOP), 1),
        )


def percent_ticks(step: float) -> list[tuple[float, str]]:
    """Return ticks from 0 to 1 every `step`, with percentages as texts."""
    return [(number * step, f"{number * step:.0%}") for number in range(round(1 / step) + 1)]
