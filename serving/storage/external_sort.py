"""Sorting more lines than fit into memory: sorted pieces on disk, then one merge of them."""

from __future__ import annotations

import heapq
import tempfile
from collections.abc import Iterable, Iterator
from itertools import islice
from types import TracebackType
from typing import IO

from serving.errors import OutputError

MEMORY = 16 << 20
"""Bytes of lines that are held at a time; as Python objects they take about half as much again."""

_FAN_IN = 64
"""Pieces that are merged at a time, far below the number of files that a process may hold open."""

_LINES = 4096


class Sorter:
    """Takes lines in any order and gives them back in the order of their bytes.

    What does not fit stands in temporary files that have no name, so that nothing of them
    stays behind, however the process ends.

    Args:
        memory: bytes of lines to hold.
    """

    def __init__(self, memory: int = MEMORY) -> None:
        self._memory = memory
        self._held: list[bytes] = []
        self._size = 0
        self._pieces: list[IO[bytes]] = []

    def __enter__(self) -> Sorter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held = []
        self._drop()

    def add(self, line: bytes) -> None:
        """Take a line, which ends in its only newline.

        Raises:
            OutputError: the temporary directory is full or cannot be written.
        """
        self._held.append(line)
        self._size += len(line)
        if self._size >= self._memory:
            self._held.sort()
            piece = _piece(self._held)
            self._held, self._size = [], 0
            self._pieces.append(piece)
            if len(self._pieces) == _FAN_IN:
                merged = _piece(heapq.merge(*self._pieces))
                self._drop()
                self._pieces = [merged]

    def lines(self) -> Iterator[bytes]:
        """All lines that were taken, sorted, once."""
        self._held.sort()
        held = _forgetting(self._held)
        self._held = []
        yield from heapq.merge(*self._pieces, held)

    def _drop(self) -> None:
        for piece in self._pieces:
            piece.close()
        self._pieces = []


def _forgetting(lines: list[bytes]) -> Iterator[bytes]:
    """The lines, each let go of as it is given."""
    lines.reverse()
    while lines:
        yield lines.pop()


def _piece(lines: Iterable[bytes]) -> IO[bytes]:
    """Sorted lines in a temporary file, to be read from its beginning."""
    file = tempfile.TemporaryFile(prefix="hubhead-sort-")  # noqa: SIM115 # closed by the sorter
    source = iter(lines)
    try:
        while block := b"".join(islice(source, _LINES)):
            file.write(block)
        file.seek(0)
    except OSError as error:
        file.close()
        raise OutputError(
            f"Cannot sort the photos in {tempfile.gettempdir()}: {error.strerror or error}.",
            remedy="Name a directory with more room in the environment variable TMPDIR.",
        ) from error
    return file
