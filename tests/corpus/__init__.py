"""Odd and broken files, each with the status that every path must give it.

`cases()` makes them, the same bytes at every call. The statuses follow from the formats'
specifications and the rules of the graph; where only the decoder can tell, they are kept in
flips.json (`python -m tests.corpus --golden` makes it again).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from serving.contract import Status
from tests.corpus import bmp, flips, gif, jpeg, other, png, webp
from tests.corpus.case import Case

__all__ = ["Case", "cases", "generate"]

MODULES = (jpeg, png, gif, bmp, webp, other, flips)


def generate() -> Iterator[Case]:
    """All cases; those that are `golden` have no answer yet."""
    for module in MODULES:
        yield from module.cases()


def cases() -> list[Case]:
    """All cases."""
    answers = flips.golden()["answers"]
    return [_answered(case, *answers[case.name]) if case.golden else case for case in generate()]


def _answered(case: Case, status: str, height: int, width: int) -> Case:
    return replace(case, status=Status(status), height=height, width=width)
