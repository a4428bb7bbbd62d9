"""Record the outputs that the documents show: `python -m tests.support.docs [PAGE ...]`.

The commands of the `console` blocks of each page, and the hidden ones between them, run in order in one
directory; a command that ends with `&` runs until the end of the page. What they print replaces the output
on the page. tests.support.docs.workspace says what the directory contains.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.support.docs.compare import elide
from tests.support.docs.markdown import DOCUMENTS, fences
from tests.support.docs.session import CommandFailed, run_commands
from tests.support.docs.shell import Recorded, list_recorded
from tests.support.docs.workspace import SEEDS, Workspace
from tests.support.repository import REPO

RECORDED = tuple(document for document in DOCUMENTS if not document.startswith("k8s/"))
"""Documents whose commands run on this machine, and not in a cluster."""


def main() -> None:
    """Record the named pages, or all pages with recorded commands."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.support.docs", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("pages", nargs="*", type=Path, help="pages to record (default: all)")
    parser.add_argument(
        "--directory", type=Path, help="directory to keep the trained model in, for the next recording"
    )
    options = parser.parse_args()
    named = [page.resolve().relative_to(REPO).as_posix() for page in options.pages]
    with tempfile.TemporaryDirectory(prefix="", dir="/tmp") as temporary:
        failed = record(named or RECORDED, options.directory or Path(temporary))
    if failed:
        raise SystemExit("Not recorded:\n" + "\n".join(failed))


def record(documents: Sequence[str], top: Path) -> list[str]:
    """Record pages in a directory; returns why some of them were not, which stay as they are."""
    from trainer.dataset.download import cache_directory
    from trainer.dataset.samples import fetch_sample_photos

    cache = cache_directory()
    workspace = Workspace(top, cache, fetch_sample_photos(cache).directory)
    failed = []
    for document in documents:
        if commands := list_recorded(document, whole=document in SEEDS):
            print(document, flush=True)
            try:
                write_outputs(document, commands, run_commands(commands, *workspace.reset(document)))
            except CommandFailed as error:
                print(error, flush=True)
                failed.append(str(error))
    return failed


def write_outputs(document: str, commands: list[Recorded], outputs: list[list[str]]) -> None:
    """Replace the outputs on a page by these ones, as much of them as the page shows."""
    path = REPO / document
    lines = path.read_text(encoding="utf-8").splitlines()
    at = {fence.line: fence for fence in fences(document, "console")}
    for line in sorted(at, reverse=True):
        own = [(c, o) for c, o in zip(commands, outputs, strict=True) if c.fence.line == line]
        indent = lines[line - 2][: len(lines[line - 2]) - len(lines[line - 2].lstrip())]
        block = [text for command, output in own for text in (*command.lines, *elide(command.output, output))]
        size = len(at[line].text.splitlines())
        lines[line - 1 : line - 1 + size] = [(indent + text).rstrip() for text in block]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
