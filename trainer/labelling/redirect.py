"""File through which a browser opens the labelling page.

Other users of this machine can read the arguments of its processes. A browser that is started with the
address would show them the token; started with this file, it shows a path that only its owner can read.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from pathlib import Path

from serving.storage import files

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="referrer" content="no-referrer">
<meta http-equiv="refresh" content="0;url={url}">
<title>hubhead label</title>
</head>
<body><p><a href="{url}">Open the labelling page</a></p></body>
</html>
"""


@contextmanager
def redirect_file(url: str) -> Iterator[Path]:
    """Provide an HTML file that leads to an address, and delete it in the end.

    Only the user can list its directory and read it (modes 0700 and 0600).

    Raises:
        OutputError: there is no place for temporary files.
    """
    with files.output_errors(tempfile.gettempdir()):
        directory = tempfile.TemporaryDirectory(prefix="hubhead-label-", ignore_cleanup_errors=True)
    with directory as path:
        page = Path(path) / "open.html"
        with files.output_errors(str(page)):
            page.touch(0o600)
            page.write_text(_PAGE.format(url=escape(url)), encoding="utf-8")
        yield page
