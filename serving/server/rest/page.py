"""The demo page: one HTML file that asks this server for the labels of a photo."""

from __future__ import annotations

import base64
import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from serving import contract

_FILE = Path(__file__).with_name("page.html")
_FACTS = "{{facts}}"


def render(models: Sequence[str]) -> bytes:
    """The page.

    Args:
        models: names of the models that it offers.
    """
    facts = {
        "models": list(models),
        "photo": contract.IMAGE_BYTES,
        "signature": contract.SERVING_DEFAULT,
        "statuses": {str(status): status.meaning for status in contract.Status},
    }
    text = json.dumps(facts, ensure_ascii=False).replace("<", "\\u003c")  # no "</script>" from a name
    return _text().replace(_FACTS, text).encode()


def headers() -> dict[str, str]:
    """Of the answer that carries the page: its own script and style are let in, and nothing else."""
    policy = (
        f"default-src 'none'; script-src {_digest('script')}; style-src {_digest('style')}; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return {
        "Content-Type": "text/html; charset=utf-8",
        "Content-Security-Policy": policy,
        "Cache-Control": "no-store",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }


@functools.cache
def _digest(tag: str) -> str:
    """What a Content-Security-Policy knows an element by."""
    _, _, rest = _text().partition(f"<{tag}>")
    content, _, _ = rest.partition(f"</{tag}>")
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


@functools.cache
def _text() -> str:
    return _FILE.read_text("utf-8")
