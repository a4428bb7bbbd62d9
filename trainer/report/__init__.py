"""The training report: one HTML file without external resources, for people.

`compose` takes the contents from the results of a training, `render` makes the page from them and the
thumbnails, and `write` also makes the thumbnails and writes the file.
"""

from trainer.report.contents import Report, compose
from trainer.report.page import render, write

__all__ = ["Report", "compose", "render", "write"]
