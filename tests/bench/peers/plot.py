"""The figures as bars, in an SVG file that depends on nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from tests.bench.peers import batch, online

_WIDTH, _LABELS, _BAR, _ROW, _TITLE = 720, 200, 16, 22, 34
_BARS = 420
"""Length of the longest bar of a group."""

_STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#444}.title{font-weight:600;fill:#111}"
    ".hubhead{fill:#c2410c}.peer{fill:#94a3b8}"
    "@media(prefers-color-scheme:dark){text{fill:#bbb}.title{fill:#eee}}"
)

Group = tuple[str, Sequence[tuple[str, float]]]
"""Title, and the name and value of each bar."""


def draw(scored: Sequence[batch.Row], served: Sequence[online.Row], cpu: str) -> str:
    """Return the SVG: photos/s without start by size of the photos, and requests/s by number of callers."""
    groups = [*_group_scored(scored), *_group_served(served)]
    parts, y = [f'<text x="0" y="16">{escape(cpu)}; longer is faster</text>'], 30
    for title, bars in groups:
        parts.append(f'<text x="0" y="{y + 16}" class="title">{escape(title)}</text>')
        y += _TITLE - 8
        longest = max(value for _, value in bars)
        for name, value in bars:
            kind = "hubhead" if name.startswith("hubhead") else "peer"
            length = round(_BARS * value / longest, 1)
            parts.append(
                f'<text x="{_LABELS - 8}" y="{y + 13}" text-anchor="end">{escape(name)}</text>'
                f'<rect x="{_LABELS}" y="{y}" width="{length}" height="{_BAR}" rx="2" class="{kind}"/>'
                f'<text x="{_LABELS + length + 6}" y="{y + 13}">{value:.1f}</text>'
            )
            y += _ROW
        y += 10
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {y}" role="img">'
    return "\n".join([head, f"<style>{_STYLE}</style>", *parts, "</svg>", ""])


def _group_scored(rows: Sequence[batch.Row]) -> Iterator[Group]:
    for size in dict.fromkeys(row.photos for row in rows):
        bars = [(row.name, row.figures.steady) for row in rows if row.photos == size and row.figures]
        yield f"{size} photos: photos/s without the start of the command", bars


def _group_served(rows: Sequence[online.Row]) -> Iterator[Group]:
    for callers in dict.fromkeys(row.callers for row in rows if row.figures):
        bars = [
            (row.name, row.figures.requests_per_second)
            for row in rows
            if row.callers == callers and row.figures
        ]
        yield f"{callers} caller{'s' if callers > 1 else ''} with one small photo each: requests/s", bars
