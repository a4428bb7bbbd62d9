"""Tables in Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_NAME = re.compile(r"(?<![\w`])(?:--[a-z]\w*|[\w./*-]*\w?_[\w./*]*\w)(?![\w`])")
"""A flag, or a name with an underscore, in a text."""


def format_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table."""
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    lines += [f"| {' | '.join(map(_format_cell, row))} |" for row in rows]
    return "\n".join(lines) + "\n"


def code(text: str) -> str:
    """Return a text as a code span."""
    shown = text.replace("\n", "\\n").replace("\t", "\\t").strip()
    return f"`` {shown} ``" if "`" in shown else f"`{shown}`"


def _format_cell(value: object) -> str:
    """Return a text as a cell; flags and names with underscores become code, which Markdown leaves alone."""
    parts = re.split(r"(``.*?``|`.*?`|\]\(.*?\))", str(value))
    parts[::2] = (_NAME.sub(r"`\g<0>`", part) for part in parts[::2])
    return "".join(parts).replace("|", "\\|").replace("\n", " ")
