"""The page with its pictures, as a file."""

from __future__ import annotations

from batch.monitoring.sample_photos import Examples
from batch.output.run_diff import Changes, Run
from batch.report.page import SIDE, pictured, render
from serving.photos.thumbnails import thumbnails
from serving.storage import files


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
