"""File through which a browser opens the labelling page: private, and gone in the end."""

from __future__ import annotations

import os
import stat
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from trainer.labelling.redirect import redirect_file

URL = "http://127.0.0.1:8765/secret-token/"


def read_refresh(page: Path) -> str:
    """Return the address to which an HTML page leads at once."""
    found: list[str] = []

    class Parser(HTMLParser):
        def handle_starttag(self, tag: str, attrs: Any) -> None:
            given = dict(attrs)
            if tag == "meta" and given.get("http-equiv") == "refresh":
                found.append(given["content"])

    Parser().feed(page.read_text(encoding="utf-8"))
    (content,) = found
    return content.removeprefix("0;url=")


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such modes")
def test_only_the_owner_can_read_the_redirect_to_the_token() -> None:
    before = os.umask(0)
    try:
        with redirect_file(URL) as page:
            assert stat.S_IMODE(page.stat().st_mode) == 0o600
            assert stat.S_IMODE(page.parent.stat().st_mode) == 0o700
            assert "secret-token" not in str(page)
    finally:
        os.umask(before)


def test_redirect_leads_to_the_page_and_is_deleted_in_the_end() -> None:
    with redirect_file(URL) as page:
        assert read_refresh(page) == URL
    assert not page.parent.exists()


def test_address_is_escaped_in_the_redirect() -> None:
    url = 'http://[::1]:1/"><script>/'
    with redirect_file(url) as page:
        assert read_refresh(page) == url
        assert "<script>" not in page.read_text(encoding="utf-8")
