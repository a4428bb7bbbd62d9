"""The report of a scoring run: one self-contained HTML file.

`render` returns the page for the content of run.json; `build` also reads and downscales the photos that it
shows.
"""

from batch.report.page import build, render

__all__ = ["build", "render"]
