"""One file of the corpus and its expected result."""

from __future__ import annotations

from dataclasses import dataclass

from serving.contract import Status


@dataclass(frozen=True, slots=True)
class Case:
    """File, and the result that every path must return.

    Attributes:
        name: format and description, such as "jpeg/progressive/orientation 6".
        content: bytes of the file.
        status: expected status, by the rules of the format or from the golden file.
        height, width: size of the upright photo by its header; 0 for rejected ones.
        converted: expected status on paths that convert files before the call, if it differs.
        golden: true if only the decoder determines the result, so that flips.json stores it.
    """

    name: str
    content: bytes
    status: Status
    height: int = 0
    width: int = 0
    converted: Status | None = None
    golden: bool = False

    @property
    def format(self) -> str:
        """Format: the first part of the name."""
        return self.name.partition("/")[0]


def good(name: str, content: bytes, width: int, height: int, orientation: int = 1) -> Case:
    """Return a case that decodes completely; `width` and `height` are those before the orientation."""
    if orientation >= 5:
        width, height = height, width
    return Case(name, content, Status.OK, height, width)


def bad(name: str, content: bytes, status: Status, converted: Status | None = None) -> Case:
    """Return a case that is rejected; `converted` is the status on paths with conversion, if it differs."""
    return Case(name, content, status, converted=converted)


def open_case(name: str, content: bytes) -> Case:
    """Return a case whose result only the decoder determines; `cases()` takes it from the golden file."""
    return Case(name, content, Status.CORRUPT, golden=True)


def flipped(content: bytes, at: int, bit: int) -> bytes:
    """Return the content with one bit flipped."""
    changed = bytearray(content)
    changed[at] ^= 1 << bit
    return bytes(changed)
