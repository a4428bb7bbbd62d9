"""Text for people: names may contain control characters, which terminals obey, and addresses secrets."""

from __future__ import annotations

import codecs
import logging
import re
import traceback
from collections.abc import Iterable
from typing import Any

ESCAPE = "hubhead.escape"
"""Error handler for streams that `register_escape` registers."""

_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters besides tab and newline, line separators, changes of the direction of writing, and bytes
of file names that are not UTF-8."""

_SECRETS = (
    (re.compile(r"""(^|[\s='"(]|://)[^/\s:@='"(]*:[^/\s]*@"""), r"\1***@"),  # user and password
    (re.compile(r"(https?://)[^/\s]*@"), r"\1***@"),  # a token in place of the user
    (re.compile(r"(https?://[^\s?]*\?)\S+"), r"\1***"),  # the signature of a presigned URL
)
"""Parts of addresses that may be secret, each with what is shown instead; elsewhere `?` is a wildcard."""

_SECRET_OPTION = re.compile(r"--?[\w-]*(secret|token|password|credential|api_?key)[\w-]*", re.IGNORECASE)
"""Options of other programs whose values may be secret, such as --s3_secret_access_key of Beam."""


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


def first_line(error: Exception) -> str:
    """Return the first line of an error's text, or its class if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def redact_arguments(arguments: Iterable[str]) -> list[str]:
    """Return the arguments of a command line without the values of options that may be secret."""
    shown: list[str] = []
    follows_secret = False
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        is_secret = bool(_SECRET_OPTION.fullmatch(name))
        if follows_secret and not argument.startswith("--"):
            shown.append("***")
        else:
            shown.append(f"{name}=***" if is_secret and equals else redact(argument))
        follows_secret = is_secret and not equals
    return shown


def redact_logs() -> None:
    """Leave the secrets of addresses out of everything that this process logs, whatever handles it."""
    create = logging.getLogRecordFactory()
    if getattr(create, "redacts", False):
        return

    def create_redacted(*args: Any, **named: Any) -> logging.LogRecord:
        record = create(*args, **named)
        record.msg, record.args = redact(record.getMessage()), ()
        if record.exc_info:
            # As text, since handlers such as Beam's would format the exception by themselves.
            record.exc_text = redact("".join(traceback.format_exception(*record.exc_info)).rstrip())
            record.error_type = record.exc_info[0]
            record.exc_info = None
        return record

    create_redacted.redacts = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(create_redacted)


def get_error_type(record: logging.LogRecord) -> type[BaseException] | None:
    """Return the class of the error that a record reports, also after `redact_logs`; None without one."""
    found: type[BaseException] | None = record.exc_info[0] if record.exc_info else None
    return found or getattr(record, "error_type", None)


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
