"""Import of Beam: all of it, or without what a run in this process does not need."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_OPTIONAL = (
    # Beam's own access to storage; hubhead reads and writes by serving.storage.
    "apache_beam.io.aws.s3filesystem",
    "apache_beam.io.azure.blobstoragefilesystem",
    "apache_beam.io.gcp.gcsfilesystem",
    "apache_beam.io.hadoopfilesystem",
    # Sources and sinks; the second one is that of MongoDB.
    "apache_beam.io.gcp.bigquery",
    "bson",
)
"""Modules that Beam imports where they are installed, and does without elsewhere (observed with Beam 2.77).

With the clients of the clouds that they import they take half of the time of Beam's import.
"""


def import_beam(*, optional: bool = True) -> None:
    """Import Beam.

    Args:
        optional: False to leave out its optional modules. Beam then lacks them until the process ends, so
            this is for processes in which no other code uses Beam.
    """
    with _hidden(() if optional else _OPTIONAL), _suppress_messages():
        import apache_beam  # noqa: F401


@contextmanager
def _hidden(names: tuple[str, ...]) -> Iterator[None]:
    """Make the import of modules fail within a `with` block, unless they are imported already."""
    hidden = [name for name in names if name not in sys.modules]
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]  # documented: makes the import fail
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


@contextmanager
def _suppress_messages() -> Iterator[None]:
    """Suppress within a `with` block what Beam logs about packages that are missing or hidden."""

    def keep(record: logging.LogRecord) -> bool:
        return "apitools not found" not in record.getMessage() and "bson package" not in record.getMessage()

    loggers = [logging.getLogger(name) for name in (None, "apache_beam.io.mongodbio")]
    for logger in loggers:
        logger.addFilter(keep)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(keep)
