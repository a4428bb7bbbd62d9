"""A shell in a pseudo-terminal, in which keys are pressed as by a person."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

ARGUMENTS = {
    "bash": ("--norc", "--noprofile", "-i"),
    "zsh": ("-f", "-i"),
    "fish": ("--no-config", "-i"),
}
"""Arguments with which a shell reads none of the user's files."""

LIMIT = 60.0
"""Time limit in seconds of every wait."""

_TAB, _ENTER, _TO_START, _TO_END = "\t", "\r", "\x01", "\x05"

_LAST = "end"
_WORD = re.compile("\x1d(.*?)\x1e", re.DOTALL)
"""A word as printf prints it; the terminal shows the format itself with backslashes."""


class InteractiveShell:
    """A shell whose user presses keys; use it in a `with` block.

    Args:
        name: name of the shell, of ARGUMENTS.
        directory: directory in which it starts.
        environment: environment variables that it has beside those of this process.
    """

    def __init__(self, name: str, directory: Path, environment: Mapping[str, str]) -> None:
        self._terminal, follower = pty.openpty()
        self._shell = subprocess.Popen(
            ["setsid", "--ctty", name, *ARGUMENTS[name]],  # so that the terminal is its controlling one
            cwd=directory,
            env={**os.environ, "TERM": "dumb", "EDITOR": "", "VISUAL": "", "LANG": "C.UTF-8", **environment},
            stdin=follower,
            stdout=follower,
            stderr=follower,
        )
        os.close(follower)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._shell.kill()
        self._shell.wait(LIMIT)
        os.close(self._terminal)

    def run(self, command: str) -> None:
        """Run a command to its end."""
        self._press(command + _ENTER)
        self._press(f"printf '\\035%s\\036' {_LAST}{_ENTER}")
        self._read_words()

    def complete(self, line: str) -> list[str]:
        """Type a line and press the tabulator; return the words of the completed line, without quotes."""
        self._press(f"{line}{_TAB}{_TO_START}printf '\\035%s\\036' {_TO_END} {_LAST}{_ENTER}")
        return self._read_words()

    def _press(self, keys: str) -> None:
        os.write(self._terminal, keys.encode())

    def _read_words(self) -> list[str]:
        """Return the words that the next printf prints, without the last one."""
        shown, deadline = "", time.monotonic() + LIMIT
        while not (words := _WORD.findall(shown)) or words[-1] != _LAST:
            left = deadline - time.monotonic()
            assert left > 0, f"The shell printed only this: {shown}"
            if select.select([self._terminal], [], [], left)[0]:
                shown += os.read(self._terminal, 65536).decode(errors="replace")
        return words[:-1]
