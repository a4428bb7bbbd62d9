"""Output of commands: lines and tables, without the control characters of names."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum, auto
from typing import TypeAlias

import click

from serving.text import escape_controls, redact

_PACKAGES = ("serving", "batch", "trainer")
"""Packages whose messages `--verbose` shows; those of libraries stay at their level."""

_UNLIMITED_COLUMNS = 100_000
"""Width of tables that no terminal limits."""


class Verbosity(Enum):
    """Amount of output on stderr beside warnings and errors: none, progress, or also what is done."""

    QUIET = auto()
    NORMAL = auto()
    VERBOSE = auto()


_verbosity = Verbosity.NORMAL

Cell: TypeAlias = str | tuple[str, str]
"""A text, or a text and its style, such as "bold" or "green"."""


def echo(text: object = "", *, err: bool = False, nl: bool = True) -> None:
    """Print a text on stdout as `click.echo` does, or a message without secrets on stderr."""
    click.echo(escape_controls(redact(str(text)) if err else str(text)), err=err, nl=nl)


@contextmanager
def use_verbosity(verbosity: Verbosity) -> Iterator[None]:
    """Set what this process prints on stderr, for the time of the block."""
    before = _verbosity
    _set_verbosity(verbosity)
    try:
        yield
    finally:
        _set_verbosity(before)


def _set_verbosity(verbosity: Verbosity) -> None:
    global _verbosity
    _verbosity = verbosity
    level = logging.DEBUG if verbosity is Verbosity.VERBOSE else logging.NOTSET
    for package in _PACKAGES:
        logging.getLogger(package).setLevel(level)


def is_quiet() -> bool:
    """Return whether progress is not to be shown."""
    return _verbosity is Verbosity.QUIET


def say(text: object) -> None:
    """Print a line of progress on stderr, unless the command is quiet."""
    if not is_quiet():
        echo(text, err=True)


def warn(text: object, colour: str = "yellow") -> None:
    """Print a warning on stderr: in colour on a terminal, if NO_COLOR is not set."""
    shown = escape_controls(redact(str(text)))
    click.secho(shown, err=True, fg=colour, color=False if os.environ.get("NO_COLOR") else None)


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
