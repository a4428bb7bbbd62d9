"""Configuration of Sphinx for `make docs`.

The source directory is the repository, so that links to k8s/README.md or to a source file are the same on
GitHub and in the HTML. Nothing is read from the network.
"""

from __future__ import annotations

import re
from importlib import metadata
from typing import TYPE_CHECKING

from sphinx_click.ext import ClickDirective

if TYPE_CHECKING:
    import click
    from docutils import nodes
    from sphinx.application import Sphinx

project = "hubhead"
version = release = metadata.version("hubhead")
language = "en"

root_doc = "docs/index"
include_patterns = [
    "docs/**",
    "k8s/README.md",
    "k8s/RUNBOOK.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "SECURITY.md",
]
exclude_patterns = [".*", "build", "demo", "dist", "tests", "**/__pycache__"]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_click"]
myst_heading_anchors = 6
default_role = "literal"  # single backticks in docstrings
smartquotes = False  # --flag stays as it is

html_theme = "furo"
html_title = "hubhead"
html_additional_pages = {"index": "redirect.html"}  # the pages are in docs/, as in the repository
templates_path = ["templates"]
html_show_sourcelink = False
html_show_copyright = False

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 90

# Names of other packages have no target without the network; types of ours that no page documents are listed.
nitpick_ignore_regex = [("py:.*", "(?!serving|batch|trainer).*")]
nitpick_ignore = [
    ("py:class", "batch.monitoring.drift.DecisionCounts"),
    ("py:class", "batch.monitoring.drift.Moments"),
    ("py:class", "batch.monitoring.sample_photos.Examples"),
    ("py:class", "serving.contract.PhotoRejection"),
    ("py:class", "serving.server.metrics.Metrics"),
    ("py:class", "serving.server.models.manager.Manager"),
]


class Command(ClickDirective):
    """Documentation of a command below a heading of the page, which replaces the directive's own."""

    def run(self) -> list[nodes.Node]:
        (section,) = super().run()
        return list(section.children[1:])


def mark_up(app: Sphinx, context: click.Context, lines: list[str]) -> None:
    """Turn the plain text of a help into reStructuredText: no emphasis by asterisks, and flags as code."""
    del app, context
    for number, line in enumerate(lines):
        if line != "**Required**" and not line.lstrip().startswith(".."):
            text = line.replace("*", r"\*").replace(r"\*\*Required\*\*", "**Required**")
            lines[number] = re.sub(r"(?<![\w`-])--[a-z]\w+", r"``\g<0>``", text)


def keep_lines(app: Sphinx, context: click.Context, lines: list[str]) -> None:
    """Show the examples at the end of a help as a block of code."""
    del app
    if not lines:
        return
    title, *examples = (context.command.epilog or "").replace("\b", "").strip().splitlines()
    lines[:] = [
        f".. rubric:: {title.rstrip(':')}",
        "",
        ".. code-block:: sh",
        "",
        *(f"   {x}" for x in examples),
        "",
    ]


def setup(app: Sphinx) -> None:
    """Register what is above."""
    app.add_directive("click", Command, override=True)
    app.connect("sphinx-click-process-epilog", keep_lines)
    for part in ("description", "options", "arguments"):
        app.connect(f"sphinx-click-process-{part}", mark_up)
