"""Tables that commands print on stdout."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

Cell: TypeAlias = str | tuple[str, str]
"""A text, or a text and its style, such as "bold" or "green"."""


def print_table(columns: Sequence[str], rows: Iterable[Iterable[Cell]]) -> None:
    """Print a table as wide as the terminal; texts are printed as they are, without markup."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns)
    for row in rows:
        # Text: rich would interpret markup in a file name such as a[red].jpg.
        table.add_row(*map(Text.assemble, row))
    Console().print(table)
