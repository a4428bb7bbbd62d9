"""External merge sort: sorts more lines than fit into memory, by sorted runs on disk and a final merge."""

from __future__ import annotations

import heapq
import tempfile
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import IO

from serving.errors import OutputError

MEMORY = 16 << 20
"""Bytes of lines that are kept in memory; as Python objects they take about half as much again."""

_FAN_IN = 64
"""Runs that are merged at a time, far below the number of files that a process can have open."""

_LINES = 4096
"""Lines that are written to a run at a time."""


class Sorter:
    """Sorter that accepts lines in any order and returns them in the order of their bytes.

    Lines that do not fit into memory are kept in unnamed temporary files, which the operating
    system deletes however the process ends.

    Args:
        memory: bytes of lines to keep in memory.
    """

    def __init__(self, memory: int = MEMORY) -> None:
        self._memory = memory
        self._buffer: list[bytes] = []
        self._size = 0
        # Level 0 has the runs of the buffer, each other level those that the one before was merged into.
        self._levels: list[list[IO[bytes]]] = []

    def __enter__(self) -> Sorter:
        return self

    def __exit__(self, *exception: object) -> None:
        self._buffer = []
        self._close_runs()

    def add(self, line: bytes) -> None:
        """Add a line; its only newline is at its end.

        Raises:
            OutputError: the temporary directory is full or cannot be written.
        """
        self._buffer.append(line)
        self._size += len(line)
        if self._size >= self._memory:
            self._buffer.sort()
            run = _write_run(self._buffer)
            self._buffer, self._size = [], 0
            self._keep(run, 0)

    def lines(self) -> Iterator[bytes]:
        """Yield all added lines in sorted order; can be called once."""
        self._buffer.sort()
        buffered = _drain(self._buffer)
        self._buffer = []
        yield from heapq.merge(*chain.from_iterable(self._levels), buffered)

    def _keep(self, run: IO[bytes], level: int) -> None:
        """Add a run to a level; a full level is merged into one run of the next.

        So few files are open, and each line is written once per level; 100 million lines have two levels.
        """
        if level == len(self._levels):
            self._levels.append([])
        runs = self._levels[level]
        runs.append(run)
        if len(runs) == _FAN_IN:
            merged = _write_run(heapq.merge(*runs))
            _close(runs)
            self._keep(merged, level + 1)

    def _close_runs(self) -> None:
        for runs in self._levels:
            _close(runs)


def _close(runs: list[IO[bytes]]) -> None:
    """Close the runs of a list and empty it."""
    for run in runs:
        run.close()
    runs.clear()


def _drain(lines: list[bytes]) -> Iterator[bytes]:
    """Yield the lines and release the memory of each as soon as it is yielded."""
    lines.reverse()
    while lines:
        yield lines.pop()


def _write_run(lines: Iterable[bytes]) -> IO[bytes]:
    """Write sorted lines to a temporary file, and return it positioned at its beginning."""
    file = tempfile.TemporaryFile(prefix="hubhead-sort-")  # noqa: SIM115 # closed by the sorter
    source = iter(lines)
    try:
        while block := b"".join(islice(source, _LINES)):
            file.write(block)
        file.seek(0)
    except OSError as error:
        file.close()
        raise OutputError(
            f"Cannot write temporary files to {tempfile.gettempdir()}: {error.strerror or error}.",
            remedy="Set the environment variable TMPDIR to a directory with more space.",
        ) from error
    return file
