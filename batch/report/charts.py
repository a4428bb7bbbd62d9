"""The diagram of a scoring run."""

from __future__ import annotations

from collections.abc import Sequence

from serving.html.markup import Element, element
from serving.html.plot import chart, line, percent_ticks, x_axis, y_axis


def scores(now: Sequence[int], before: Sequence[int] | None = None) -> Element:
    """The shares of rows by best score as columns, and those of another run as a line."""
    parts = [_shares(now)] + ([_shares(before)] if before else [])
    most = max(max(part) for part in parts) or 1.0
    x = x_axis(0, 1, percent_ticks(0.25), "best score")
    y = y_axis(
        0,
        1.08 * most,
        [(most * step, f"{100 * most * step:.0f} %") for step in (0, 0.5, 1)],
        "share of photos",
    )
    bins = len(now)
    marks = []
    for at, share in enumerate(parts[0]):
        left, right = x(at / bins), x((at + 1) / bins)
        said = f"{at / bins:.2f} to {(at + 1) / bins:.2f}: {now[at]:,} photos"
        marks.append(
            element(
                "rect",
                element("title", said),
                x=left + 1,
                y=y(share),
                width=right - left - 2,
                height=y(0) - y(share),
                class_="column",
            )
        )
    for part in parts[1:]:
        marks.append(line([(x((at + 0.5) / bins), y(share)) for at, share in enumerate(part)]))
    sure = sum(now[bins // 2 :]) / (sum(now) or 1)
    return chart(f"Histogram of the best scores: {sure:.0%} of photos score above one half.", x, y, marks)


def _shares(counts: Sequence[int]) -> list[float]:
    total = sum(counts) or 1
    return [count / total for count in counts]
