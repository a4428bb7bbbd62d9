"""Text for people: names may contain control characters, which terminals obey, and addresses secrets."""

from __future__ import annotations

import codecs
import re
from typing import Any

ESCAPE = "hubhead.escape"
"""Error handler for streams that `register_escape` registers."""

_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters besides tab and newline, line separators, changes of the direction of writing, and bytes
of file names that are not UTF-8."""

_SECRETS = (
    (re.compile(r"(^|://)[^/\s:@]*:[^/\s]*@"), r"\1***@"),  # user and password
    (re.compile(r"(https?://)[^/\s]*@"), r"\1***@"),  # a token in place of the user
    (re.compile(r"(https?://[^\s?]*\?)\S+"), r"\1***"),  # the signature of a presigned URL
)
"""Parts of addresses that may be secret, each with what is shown instead; elsewhere `?` is a wildcard."""


def redact(value: Any) -> Any:
    """Return a text without the secrets of its addresses, or JSON values with all their texts so.

    Secrets are user and password of any address, and the query of a URL.
    """
    if isinstance(value, str):
        for pattern, shown in _SECRETS:
            value = pattern.sub(shown, value)
    elif isinstance(value, dict):
        return {key: redact(part) for key, part in value.items()}
    elif isinstance(value, list | tuple):
        return [redact(part) for part in value]
    return value


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
