"""The report of a scoring run: one HTML file that needs no other.

`render` makes the page of what run.json says, `write` reads and shrinks the photos that it shows, too.
"""

from batch.report.page import render
from batch.report.write import write

__all__ = ["render", "write"]
