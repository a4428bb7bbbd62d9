"""One odd file and what must become of it."""

from __future__ import annotations

from dataclasses import dataclass

from serving.contract import Status


@dataclass(frozen=True, slots=True)
class Case:
    """A file, and the answer that every path must give.

    Attributes:
        name: the format first, then what is odd: "jpeg/progressive/orientation 6".
        content: the bytes.
        status: by the rules of the format, or from the golden file.
        height, width: of the upright photo by its header; 0 for refused ones.
        converted: the status in the paths that convert a file before the call, where it differs.
        golden: only the decoder can tell what becomes of it, so flips.json holds the answer.
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
        """The first part of the name."""
        return self.name.partition("/")[0]


def good(name: str, content: bytes, width: int, height: int, orientation: int = 1) -> Case:
    """A photo that decodes whole; `width` and `height` are the stored ones."""
    if orientation >= 5:
        width, height = height, width
    return Case(name, content, Status.OK, height, width)


def bad(name: str, content: bytes, status: Status, converted: Status | None = None) -> Case:
    """A file that is refused, in the paths that convert perhaps not, or for another reason."""
    return Case(name, content, status, converted=converted)


def open_case(name: str, content: bytes) -> Case:
    """A file that only the decoder can judge; `cases()` fills in the answer of the golden file."""
    return Case(name, content, Status.CORRUPT, golden=True)


def flipped(content: bytes, at: int, bit: int) -> bytes:
    """One bit changed."""
    changed = bytearray(content)
    changed[at] ^= 1 << bit
    return bytes(changed)
