"""Output of a labelling session: labels.csv, a dataset manifest that hubhead train takes.

The journal is the record; the manifest is written again from it, so that it can be deleted at any time.
Photos that have none of the labels are listed in a file of their own, since a training needs a label for
each line.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from serving.storage import files

COLUMNS = ("uri", "label", "by", "at", "strategy", "seconds", "set")


@dataclass(frozen=True)
class OutputRow:
    """One answered photo.

    Attributes:
        uri: path or address of the photo.
        label: its label; "" for none of these.
        by: person.
        at: time in UTC, ISO 8601.
        strategy: what chose the photo.
        seconds: time to the answer.
        test: true if the photo belongs to the test set.
    """

    uri: str
    label: str
    by: str
    at: str
    strategy: str
    seconds: float
    test: bool


def journal_path(output: Path) -> Path:
    """Return the path of the journal of an output."""
    return output.with_name(f"{output.name}.journal")


def none_path(output: Path) -> Path:
    """Return the path of the list of photos that have none of the labels."""
    return output.with_name(f"{output.stem}.none_of_these{output.suffix}")


def list_own(output: Path) -> list[Path]:
    """Return the paths of all files of a session, which are no photos."""
    return [output, journal_path(output), none_path(output)]


def write_output(output: Path, rows: Iterable[OutputRow], *, corrections: bool = False) -> None:
    """Write the manifest, and the list of photos with none of the labels if there are any; both atomically.

    Args:
        output: path of the manifest.
        rows: the answers.
        corrections: keep all photos in the manifest; hubhead train --corrections leaves those out that have
            an empty label there.

    Raises:
        OutputError: a file cannot be written.
    """
    labelled, others = io.StringIO(newline=""), io.StringIO(newline="")
    writers = [csv.writer(text, lineterminator="\n") for text in (labelled, others)]
    for writer in writers:
        writer.writerow(COLUMNS)
    none = 0
    for row in rows:
        apart = not row.label and not corrections
        none += apart
        writers[1 if apart else 0].writerow(
            [
                row.uri,
                row.label,
                row.by,
                row.at,
                row.strategy,
                f"{row.seconds:.2f}",
                "test" if row.test else "",
            ]
        )
    files.write(str(output), labelled.getvalue().encode())
    if none:
        files.write(str(none_path(output)), others.getvalue().encode())
    else:
        none_path(output).unlink(missing_ok=True)
