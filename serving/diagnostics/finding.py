"""Findings of the checks."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """Severity of a finding: an error prevents work, a warning may affect it."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True)
class Finding:
    """Result of a check.

    Attributes:
        check: what was checked, in one or two words.
        level: severity.
        found: what was found.
        remedy: what to do about it; also how to add what is optional and missing, "" for nothing.
    """

    check: str
    level: Level
    found: str
    remedy: str = ""
