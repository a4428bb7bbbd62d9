"""Text for terminals: names of files and labels may contain anything, terminals obey control characters."""

from __future__ import annotations

import codecs
import re

ESCAPE = "hubhead.escape"
"""Error handler for streams that `register_escape` registers."""

_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters besides tab and newline, line separators, changes of the direction of writing, and bytes
of file names that are not UTF-8."""


def escape_controls(text: str, *, newlines: bool = False) -> str:
    r"""Return text with control characters as \u001b, as JSON writes them; so JSON stays the same value.

    Args:
        text: text that is about to be shown.
        newlines: escape newlines and tabs too, as in a name that is to stay on its line.
    """
    escaped = _CONTROLS.sub(lambda found: _escape(found[0]), text)
    return re.sub(r"[\n\t]", lambda found: _escape(found[0]), escaped) if newlines else escaped


def register_escape() -> None:
    """Register ESCAPE, which writes characters that the encoding of a stream does not have as JSON does."""

    def escape(error: UnicodeError) -> tuple[str, int]:
        if not isinstance(error, UnicodeEncodeError):
            raise error
        return _escape(error.object[error.start : error.end]), error.end

    codecs.register_error(ESCAPE, escape)


def _escape(text: str) -> str:
    units = text.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))
