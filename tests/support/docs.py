"""Extraction of code blocks from the documents."""

from __future__ import annotations

import re

from tests.support.repository import REPO


def code_blocks(document: str, language: str = "") -> list[str]:
    """Return the code blocks of a language; those without one by default."""
    text = (REPO / document).read_text(encoding="utf-8")
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [block for named, block in blocks if named == language]
