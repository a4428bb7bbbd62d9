"""The page with its pictures, as a file."""

from __future__ import annotations

from batch import files
from batch.changes import Changes, Run
from batch.examples import Examples
from batch.report.page import SIDE, pictured, render
from batch.thumbnails import thumbnails


def write(uri: str, run: Run, examples: Examples, changes: Changes | None = None) -> None:
    """Write the page of a run.

    Args:
        uri: of the page.
        run: what run.json says.
        examples: photos that stand for labels and reasons.
        changes: since another run.

    Raises:
        OutputError: the place cannot be written.
    """
    files.write(uri, render(run, examples, changes, thumbnails(pictured(run, examples), SIDE)).encode())
