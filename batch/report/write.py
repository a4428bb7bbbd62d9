"""Writing of the report with its thumbnails."""

from __future__ import annotations

from batch.monitoring.sample_photos import Examples
from batch.output.run_diff import RunDiff
from batch.output.run_record import RunRecord
from batch.report.page import THUMBNAIL_PIXELS, render, select_photos
from serving.photos.thumbnails import make_thumbnails
from serving.storage import files


def write(uri: str, run: RunRecord, examples: Examples, changes: RunDiff | None = None) -> None:
    """Write the report of a run. Photos that cannot be read have no thumbnail.

    Args:
        uri: file to write.
        run: content of run.json.
        examples: sample photos of labels and of rejections.
        changes: difference from the previous run; None if there is none.

    Raises:
        OutputError: the file cannot be written.
    """
    files.write(
        uri,
        render(
            run, examples, changes, make_thumbnails(select_photos(run, examples), THUMBNAIL_PIXELS)
        ).encode(),
    )
