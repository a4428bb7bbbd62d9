"""The page with its pictures, as a file."""

from __future__ import annotations

from batch.monitoring.sample_photos import Examples
from batch.output.run_diff import RunDiff, RunRecord
from batch.report.page import THUMBNAIL_PIXELS, render, select_photos
from serving.photos.thumbnails import make_thumbnails
from serving.storage import files


def write(uri: str, run: RunRecord, examples: Examples, changes: RunDiff | None = None) -> None:
    """Write the page of a run.

    Args:
        uri: of the page.
        run: what run.json says.
        examples: photos that stand for labels and reasons.
        changes: since another run.

    Raises:
        OutputError: the place cannot be written.
    """
    files.write(
        uri,
        render(
            run, examples, changes, make_thumbnails(select_photos(run, examples), THUMBNAIL_PIXELS)
        ).encode(),
    )
