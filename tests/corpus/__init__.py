"""Corpus of unusual and damaged files, each with the status that every path must return.

`cases()` generates them deterministically. The expected statuses follow from the specifications of the
formats and the rules of the preprocessing. If only the decoder determines the result, the status is
stored in flips.json, the golden file (`python -m tests.corpus --golden` regenerates it).
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
    """Yield all cases; `golden` ones have no expected status yet."""
    for module in MODULES:
        yield from module.cases()


def cases() -> list[Case]:
    """Return all cases with their expected statuses."""
    answers = flips.golden()["answers"]
    return [_with_answer(case, *answers[case.name]) if case.golden else case for case in generate()]


def _with_answer(case: Case, status: str, height: int, width: int) -> Case:
    return replace(case, status=Status(status), height=height, width=width)
