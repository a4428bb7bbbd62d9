"""Structure of outputs: what stays of a line when numbers, sizes, durations and paths are masked."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby

from tests.support.docs.shell import LEFT_OUT, Recorded

_MASKS = (
    (re.compile(r"[─━┏┓┗┛┳┻╇╈┡┩┬┴┼├┤└┘┌┐╺╸]+"), "─"),
    (re.compile(r"(?:[\w.~-]*/)+[\w.+-]*"), "PATH"),
    (re.compile(r"\b[0-9a-f]{8,}\b"), "HASH"),
    (re.compile(r"[-+−]?\d(?:[\d.,:]*\d)?(?:e[-+]?\d+\b)?"), "N"),
    (re.compile(r"\s+"), " "),
)

_CONTINUED_ROW = re.compile(r"│\s+│")
"""Second line of a row, whose first cell is empty."""


def mask(line: str) -> str:
    """Return the structure of a line."""
    for pattern, name in _MASKS:
        line = pattern.sub(name, line)
    return line.strip()


def outline(lines: Sequence[str]) -> list[str]:
    """Return the structure of an output; of rows of a table one after the other only the number of cells."""
    masked = [f"row of {line.count('│') - 1} cells" if line.startswith("│") else mask(line) for line in lines]
    return [line for line, _ in groupby(masked)]


def compare(command: Recorded, lines: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the structures of what a command printed and of what its page shows, which should be equal.

    Which rows a query finds depends on the scores, and these on the processor. So its structure is the names
    of the columns, and that there are rows.
    """
    shown, found = list(command.output), elide(command.output, lines)
    if command.command.startswith("hubhead query"):
        return _outline_query(found), _outline_query(shown)
    return outline(found), outline(shown)


def check_outputs(commands: Sequence[Recorded], outputs: Sequence[Sequence[str]]) -> None:
    """Fail if what a command printed has another structure than its page shows."""
    for command, output in zip(commands, outputs, strict=True):
        if not command.hidden:
            found, shown = compare(command, output)
            assert found == shown, f"{command.fence.place}: {command.command}\n" + "\n".join(output)


def _outline_query(lines: Sequence[str]) -> list[str]:
    return [*outline(lines[:1]), *(["rows"] if lines[1:] else [])]


def elide(written: Sequence[str], lines: Sequence[str]) -> list[str]:
    """Return an output with as much left out as the written one leaves out.

    Lines of the written output before its first `...` and after its last one are counted; parts between two
    of them are found by the structure of their first line, and dropped if there is no such line. A row of a
    table is known by its first cell, and is shown to its end.
    """
    if LEFT_OUT not in written:
        return list(lines)
    parts = [list(part) for left_out, part in groupby(written, LEFT_OUT.__eq__) if not left_out]
    first = len(parts.pop(0)) if written[0] != LEFT_OUT else 0
    last = len(parts.pop()) if parts and written[-1] != LEFT_OUT else 0
    if first + last >= len(lines):
        return list(lines)
    position, end = first, len(lines) - last
    result = [*lines[:first], LEFT_OUT]
    for part in parts:
        start = _name_line(part[0])
        found = next((at for at in range(position, end) if _name_line(lines[at]) == start), None)
        if found is not None:
            position = min(found + len(part), end)
            while position < end and _CONTINUED_ROW.match(lines[position]):
                position += 1
            result += [*lines[found:position], LEFT_OUT]
    return [*result, *lines[end:]]


def _name_line(line: str) -> str:
    """Return the first cell of a row of a table, or the structure of another line."""
    return mask(line.split("│")[1] if line.startswith("│") else line)
