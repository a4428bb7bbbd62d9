"""Output of commands: lines and tables, without the control characters of names."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TypeAlias

import click

from serving.text import escape_controls, redact

_UNLIMITED_COLUMNS = 100_000
"""Width of tables that no terminal limits."""

Cell: TypeAlias = str | tuple[str, str]
"""A text, or a text and its style, such as "bold" or "green"."""


def echo(text: object = "", *, err: bool = False, nl: bool = True) -> None:
    """Print a text on stdout as `click.echo` does, or a message without secrets on stderr."""
    click.echo(escape_controls(redact(str(text)) if err else str(text)), err=err, nl=nl)


def print_table(columns: Sequence[str], rows: Iterable[Iterable[Cell]]) -> None:
    """Print a table as wide as the terminal; texts are printed as they are, without markup.

    In a file or a pipe, such as the log of a pod, it is as wide as its texts, unless COLUMNS says otherwise.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns)
    for row in rows:
        parts = [(cell, "") if isinstance(cell, str) else cell for cell in row]
        # Text: rich would interpret markup in a file name such as a[red].jpg.
        table.add_row(*(Text(escape_controls(text), style) for text, style in parts))
    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = Console(width=_UNLIMITED_COLUMNS)
    console.print(table)
