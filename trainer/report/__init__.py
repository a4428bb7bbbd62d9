"""The report of a training: one HTML file that needs no other, for people who look rather than read.

`compose` takes what is to be told from what a training knows, `render` makes the page of it, with
the small pictures given, and `write` does all of it.
"""

from trainer.report.contents import Answers, Coverage, LabelRow, Report, compose
from trainer.report.page import render, write

__all__ = ["Answers", "Coverage", "LabelRow", "Report", "compose", "render", "write"]
