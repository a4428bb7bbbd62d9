"""Rendering of the report with its thumbnails."""

from __future__ import annotations

from batch.monitoring.sample_photos import Examples
from batch.output.run_diff import RunDiff
from batch.output.run_record import RunRecord
from batch.report.page import THUMBNAIL_PIXELS, render, select_photos
from serving.photos.thumbnails import make_thumbnails


def build(run: RunRecord, examples: Examples, changes: RunDiff | None = None) -> bytes:
    """Return the report of a run as HTML in UTF-8. Photos that cannot be read have no thumbnail.

    Args:
        run: content of run.json.
        examples: sample photos of labels and of rejections.
        changes: difference from the previous run; None if there is none.
    """
    thumbnails = make_thumbnails(select_photos(run, examples), THUMBNAIL_PIXELS)
    return render(run, examples, changes, thumbnails).encode()
