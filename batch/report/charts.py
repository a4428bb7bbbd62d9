"""The score histogram of a scoring run."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from serving.html import Axis, Chart, percent_ticks


def draw_score_histogram(now: Sequence[int], before: Sequence[int] | None = None) -> Chart:
    """Draw the histogram of the top scores as columns, and that of the previous run as a line.

    Args:
        now: rows by top score, in bins of equal width from 0 to 1.
        before: the same of the previous run, or None.
    """
    fractions, earlier = _to_fractions(now), _to_fractions(before or ())
    highest = max(*fractions, *earlier) or 1.0
    bins = len(now)
    edges = [edge / bins for edge in range(bins + 1)]
    upper = sum(now[bins // 2 :]) / (sum(now) or 1)
    return Chart(
        f"Histogram of the top scores: {upper:.0%} of photos score above 0.5.",
        Axis(0, 1, percent_ticks(0.25), "top score"),
        Axis(
            0,
            1.08 * highest,  # leaves room above the highest column
            [(highest * step, f"{100 * highest * step:.3g}%") for step in (0, 0.5, 1)],
            "photos",
        ),
        lines=[[((at + 0.5) / bins, fraction) for at, fraction in enumerate(earlier)]] if before else [],
        columns=[
            (left, right, fraction, f"{left:.2f} to {right:.2f}: {count:,} photos")
            for (left, right), fraction, count in zip(pairwise(edges), fractions, now, strict=True)
        ],
    )


def _to_fractions(counts: Sequence[int]) -> list[float]:
    total = sum(counts) or 1
    return [count / total for count in counts]
