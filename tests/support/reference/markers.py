"""Replacement of the generated parts of a page.

A generated part stands between `<!-- generated: NAME -->` and `<!-- end -->`, each on a line of its own.
Figures that a part with figures of its own replaces stand between `<!-- until: NAME -->` and
`<!-- end until -->`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

_PART = re.compile(r"^<!-- generated: ([\w-]+) -->\n.*?^<!-- end -->$", re.DOTALL | re.MULTILINE)

_UNTIL = re.compile(r"^<!-- until: ([\w-]+) -->\n.*?^<!-- end until -->\n\n?", re.DOTALL | re.MULTILINE)


def list_parts(text: str) -> list[str]:
    """Return the names of the generated parts of a page."""
    return [match[1] for match in _PART.finditer(text)]


def fill(text: str, generators: Mapping[str, Callable[[], str]]) -> str:
    """Return a page with its generated parts replaced.

    Args:
        text: content of the page.
        generators: function that returns the content of a part, by the name of the part.

    Raises:
        ValueError: a marker has no counterpart, or an unknown name.
    """
    parts = list_parts(text)
    if text.count("<!-- generated:") != len(parts) or text.count("<!-- end -->") != len(parts):
        raise ValueError("a marker of a generated part has no counterpart")
    if unknown := sorted(set(parts) - generators.keys()):
        raise ValueError(f"unknown parts: {', '.join(unknown)}")

    def replace(match: re.Match[str]) -> str:
        return f"<!-- generated: {match[1]} -->\n{generators[match[1]]().strip()}\n<!-- end -->"

    return _PART.sub(replace, text)


def list_superseded(text: str) -> list[str]:
    """Return the names of the parts until which a page has other figures."""
    return [match[1] for match in _UNTIL.finditer(text)]


def drop_superseded(text: str, has_figures: Callable[[str], bool]) -> str:
    """Return a page without the figures that were kept until a part has figures of its own.

    Args:
        text: content of the page.
        has_figures: whether the part of this name has them.
    """
    return _UNTIL.sub(lambda match: "" if has_figures(match[1]) else match[0], text)
