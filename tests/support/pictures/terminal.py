"""A command in a terminal: its screen as a page, with colours and progress bars."""

from __future__ import annotations

import codecs
import io
import os
import pty
import re
import shlex
import struct
import subprocess
import sys
import termios
from collections.abc import Sequence
from fcntl import ioctl
from pathlib import Path

from tests.support.repository import REPO

COLUMNS, ROWS = 110, 40

_CONTROL = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])|\r|\n")
_UNFINISHED = re.compile(r"\x1b(?:\[[0-9;?]*)?\Z")

_PAGE = """<!doctype html><meta charset="utf-8"><style>
body {{ margin: 0; background: {background}; color: {foreground}; padding: 20px 24px; width: max-content; }}
pre {{ margin: 0; font: 15px/1.4 "DejaVu Sans Mono", monospace; }}
{stylesheet}</style><pre>{code}</pre>
"""


class Screen:
    """Lines of a terminal whose programs rewrite whole lines, as progress bars do."""

    def __init__(self) -> None:
        self.lines = [""]
        self._row = 0
        self._returned = False

    def feed(self, text: str) -> None:
        """Interpret output: text, line ends, colours, movements up, and erased lines."""
        position = 0
        for match in _CONTROL.finditer(text):
            self._write(text[position : match.start()])
            position = match.end()
            if match[0] == "\r":
                self._returned = True
            elif match[0] == "\n":
                self._row, self._returned = self._row + 1, False
                if self._row == len(self.lines):
                    self.lines.append("")
            elif match[2] == "m":
                self._write(match[0])
            elif match[2] == "A":
                self._row = max(0, self._row - int(match[1] or 1))
            elif match[2] == "K":
                self.lines[self._row] = ""
        self._write(text[position:])

    def _write(self, text: str) -> None:
        if text and self._returned:
            self.lines[self._row], self._returned = "", False
        self.lines[self._row] += text


def run(arguments: Sequence[str], directory: Path) -> list[str]:
    """Run `hubhead` in a terminal to its end; return the lines of the screen, with codes of colours."""
    screen = Screen()
    leader, follower = pty.openpty()
    ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-c", "import hubhead; hubhead.main()", *arguments],
        stdin=follower,
        stdout=follower,
        stderr=follower,
        cwd=directory,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": str(COLUMNS), "PYTHONPATH": str(REPO)},
    )
    os.close(follower)
    screen.feed(f"\x1b[1m$ {shlex.join(['hubhead', *arguments])}\x1b[0m\n")
    decode, pending = codecs.getincrementaldecoder("utf-8")("replace").decode, ""
    while chunk := _read(leader):
        pending += decode(chunk)
        cut = _UNFINISHED.search(pending)
        text, pending = (pending[: cut.start()], cut[0]) if cut else (pending, "")
        screen.feed(text)
    os.close(leader)
    if process.wait():
        raise RuntimeError("\n".join(screen.lines))
    return screen.lines


def render(lines: Sequence[str]) -> str:
    """Return lines with colours as a page."""
    from rich.console import Console
    from rich.terminal_theme import MONOKAI
    from rich.text import Text

    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    for line in "\n".join(lines).rstrip().splitlines():
        text = Text.from_ansi(line)
        for part in text.divide(range(COLUMNS, len(text), COLUMNS)):
            console.print(part, soft_wrap=True)
    return console.export_html(theme=MONOKAI, code_format=_PAGE)


def _read(leader: int) -> bytes:
    try:
        return os.read(leader, 65536)
    except OSError:  # the last process that had the terminal open has ended
        return b""
