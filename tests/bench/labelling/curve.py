"""Learning curves by strategy as an SVG, with the 95 % interval of each as a band."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

from tests.bench.labelling.simulate import Accuracies, interval_of_mean

COLOURS = {"random": "#6b7280", "mixed": "#0d746e", "uncertain": "#c14a20", "diverse": "#5b5bd6"}

_WIDTH, _HEIGHT, _LEFT, _TOP, _RIGHT, _BOTTOM = 430, 330, 56, 40, 14, 48

_STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #1d2126; }
  .soft { fill: #5b636d; } .title { font-weight: 600; font-size: 15px; } .grid { stroke: #e1dfd8; }
  .paper { fill: #ffffff; }
  @media (prefers-color-scheme: dark) {
    text { fill: #e8e6e1; } .soft { fill: #a2a9b1; } .grid { stroke: #333a41; } .paper { fill: #14171a; }
  }
"""


def draw_curves(
    pools: Mapping[str, Mapping[str, Accuracies]], budgets: Mapping[str, Sequence[int]], reference: int
) -> str:
    """Return an SVG with one chart for each pool, side by side.

    Args:
        pools: accuracies float64 [seeds,steps] by pool and strategy.
        budgets: number of labels after each step by pool.
        reference: number of random labels whose accuracy is drawn as a line.
    """
    width = _WIDTH * len(pools)
    charts = [
        _draw_chart(name, curves, budgets[name], reference, _WIDTH * number)
        for number, (name, curves) in enumerate(pools.items())
    ]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {_HEIGHT}" role="img">',
            "<title>Accuracy by the number of labels and the strategy</title>",
            f"<style>{_STYLE}</style>",
            f'<rect class="paper" width="{width}" height="{_HEIGHT}"/>',
            *charts,
            "</svg>\n",
        ]
    )


def _draw_chart(
    name: str, curves: Mapping[str, Accuracies], budgets: Sequence[int], reference: int, left: int
) -> str:
    """Return the elements of one chart, whose left edge is at `left`."""
    every = np.concatenate([values.mean(axis=0) for values in curves.values()])
    low, high = np.floor(10 * every.min()) / 10, np.ceil(10 * every.max()) / 10
    inner_width, inner_height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def place(budget: float, accuracy: float) -> tuple[float, float]:
        x = left + _LEFT + budget / budgets[-1] * inner_width
        return round(x, 1), round(_TOP + (high - accuracy) / (high - low) * inner_height, 1)

    parts = [f'<text class="title" x="{left + _LEFT}" y="22">{escape(name)}</text>']
    for accuracy in np.arange(low, high + 0.05, 0.1):
        (x1, y), (x2, _) = place(0, accuracy), place(budgets[-1], accuracy)
        parts.append(f'<line class="grid" x1="{x1}" x2="{x2}" y1="{y}" y2="{y}"/>')
        parts.append(
            f'<text class="soft" x="{x1 - 8}" y="{y + 4}" text-anchor="end">{accuracy * 100:.0f} %</text>'
        )
    bottom = _HEIGHT - _BOTTOM
    for budget in range(0, budgets[-1] + 1, 50):
        x = place(budget, low)[0]
        parts.append(f'<text class="soft" x="{x}" y="{bottom + 18}" text-anchor="middle">{budget}</text>')
    middle = left + _LEFT + inner_width / 2
    parts.append(f'<text class="soft" x="{middle}" y="{bottom + 38}" text-anchor="middle">labels</text>')
    if reference in budgets and "random" in curves:
        level = float(curves["random"][:, list(budgets).index(reference)].mean())
        (x1, y), (x2, _) = place(0, level), place(budgets[-1], level)
        line = f'x1="{x1}" x2="{x2}" y1="{y}" y2="{y}"'
        parts.append(f'<line {line} stroke="{COLOURS["random"]}" stroke-dasharray="4 5"/>')
    for number, (strategy, values) in enumerate(curves.items()):
        found = [interval_of_mean(values[:, step]) for step in range(len(budgets))]
        colour = COLOURS[strategy]
        line = " ".join(
            "{},{}".format(*place(budget, mean)) for budget, (mean, _, _) in zip(budgets, found, strict=True)
        )
        if len(values) > 1:
            upper = [place(budget, top) for budget, (_, _, top) in zip(budgets, found, strict=True)]
            lower = [place(budget, bottom) for budget, (_, bottom, _) in zip(budgets, found, strict=True)]
            band = " ".join(f"{x},{y}" for x, y in [*upper, *reversed(lower)])
            parts.append(f'<polygon points="{band}" fill="{colour}" opacity=".15"/>')
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        y = bottom - 14 - 18 * (len(curves) - 1 - number)
        x = left + _WIDTH - _RIGHT - 84
        parts.append(
            f'<line x1="{x}" x2="{x + 18}" y1="{y - 4}" y2="{y - 4}" stroke="{colour}" stroke-width="3"/>'
        )
        parts.append(f'<text x="{x + 24}" y="{y}">{escape(strategy)}</text>')
    return "\n".join(parts)
