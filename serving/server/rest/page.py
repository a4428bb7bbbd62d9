"""The demo page: one HTML file that classifies a photo through this server's REST API."""

from __future__ import annotations

import base64
import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from serving import contract

_FILE = Path(__file__).with_name("page.html")
_DATA_PLACEHOLDER = "{{data}}"


def render(models: Sequence[str]) -> bytes:
    """Return the page as UTF-8.

    Args:
        models: names of the models that it offers.
    """
    data = {
        "models": list(models),
        "photo": contract.IMAGE_BYTES,
        "signature": contract.SERVING_DEFAULT,
        "statuses": {str(status): status.meaning for status in contract.Status},
    }
    # "<" is escaped, or a model name could end the <script> element.
    text = json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")
    return _read_page().replace(_DATA_PLACEHOLDER, text).encode()


def make_headers() -> dict[str, str]:
    """Return the HTTP headers of the page; they allow its own script and style, and nothing else."""
    policy = (
        f"default-src 'none'; script-src {_hash_element('script')}; style-src {_hash_element('style')}; "
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
def _hash_element(tag: str) -> str:
    """Return the hash of an inline element for the Content-Security-Policy."""
    content = _read_page().partition(f"<{tag}>")[2].partition(f"</{tag}>")[0]
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


@functools.cache
def _read_page() -> str:
    return _FILE.read_text("utf-8")
