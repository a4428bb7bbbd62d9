"""The report of a scoring run: one self-contained HTML file.

`render` returns the page for the content of run.json; `write` also reads and downscales the photos that it
shows.
"""

from batch.report.page import render
from batch.report.write import write

__all__ = ["render", "write"]
