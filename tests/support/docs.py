"""Test data and helpers: docs."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tests.support.repository import REPO

if TYPE_CHECKING:
    pass


def code_blocks(document: str, language: str = "") -> list[str]:
    """The code blocks that a language is named for, or none."""
    text = (REPO / document).read_text(encoding="utf-8")
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [block for named, block in blocks if named == language]
