"""The score histogram of a scoring run."""

from __future__ import annotations

from collections.abc import Sequence

from serving.html.markup import Element, element
from serving.html.plot import chart, line, percent_ticks, x_axis, y_axis


def draw_score_histogram(now: Sequence[int], before: Sequence[int] | None = None) -> Element:
    """Draw the histogram of the top scores as columns, and that of the previous run as a line.

    Args:
        now: rows by top score, in bins of equal width from 0 to 1.
        before: the same of the previous run, or None.
    """
    runs = [_to_fractions(now)] + ([_to_fractions(before)] if before else [])
    highest = max(max(fractions) for fractions in runs) or 1.0
    x = x_axis(0, 1, percent_ticks(0.25), "top score")
    y = y_axis(
        0,
        1.08 * highest,  # leaves room above the highest column
        [(highest * step, f"{100 * highest * step:.0f} %") for step in (0, 0.5, 1)],
        "photos",
    )
    bins = len(now)
    marks = []
    for at, fraction in enumerate(runs[0]):
        left, right = x(at / bins), x((at + 1) / bins)
        tooltip = f"{at / bins:.2f} to {(at + 1) / bins:.2f}: {now[at]:,} photos"
        marks.append(
            element(
                "rect",
                element("title", tooltip),
                x=left + 1,
                y=y(fraction),
                width=right - left - 2,
                height=y(0) - y(fraction),
                class_="column",
            )
        )
    for fractions in runs[1:]:
        marks.append(line([(x((at + 0.5) / bins), y(fraction)) for at, fraction in enumerate(fractions)]))
    upper = sum(now[bins // 2 :]) / (sum(now) or 1)
    return chart(f"Histogram of the top scores: {upper:.0%} of photos score above 0.5.", x, y, marks)


def _to_fractions(counts: Sequence[int]) -> list[float]:
    total = sum(counts) or 1
    return [count / total for count in counts]
