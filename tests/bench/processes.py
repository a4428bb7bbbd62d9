"""Processor time and memory of a process and all of its descendants, read from /proc."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

_INTERVAL_SECONDS = 0.1
_LIMIT_SECONDS = 1800.0
_END_SECONDS = 20.0
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE_MIB = os.sysconf("SC_PAGE_SIZE") / 2**20


@dataclass(frozen=True)
class _Process:
    """Parent, processor seconds and resident MiB of a process."""

    parent: int
    seconds: float
    mib: float


def _read_process(pid: int) -> _Process | None:
    """Read a process; None if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return None
    return _Process(int(fields[1]), (int(fields[11]) + int(fields[12])) / _TICKS, pages * _PAGE_MIB)


def cpu_seconds(pid: int) -> float:
    """Return the processor seconds that a running process has used."""
    return _require(pid).seconds


def resident_mib(pid: int) -> float:
    """Return the resident memory of a running process in MiB."""
    return _require(pid).mib


def _require(pid: int) -> _Process:
    process = _read_process(pid)
    if process is None:
        raise RuntimeError(f"Process {pid} has ended.")
    return process


class ProcessTree:
    """A process and its descendants, also those whose parents have ended while it was watched."""

    def __init__(self, root: int) -> None:
        self._members = {root}
        self._seconds: dict[int, float] = {}

    def read(self) -> tuple[float, float]:
        """Return the processor seconds, ended descendants included, and the resident MiB of now."""
        pids = (int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit())
        found = {pid: process for pid in pids if (process := _read_process(pid))}
        while (
            new := {pid for pid, process in found.items() if process.parent in self._members} - self._members
        ):
            self._members |= new
        living = {pid: found[pid] for pid in self._members & found.keys()}
        self._seconds.update({pid: process.seconds for pid, process in living.items()})
        return sum(self._seconds.values()), sum(process.mib for process in living.values())


@dataclass(frozen=True)
class Cost:
    """Cost of a command.

    Attributes:
        seconds: wall-clock time from its start to its end.
        processor_seconds: processor time of all its processes.
        peak_mib: maximum of their resident memory together; shared pages count once per process.
        output: its standard output.
    """

    seconds: float
    processor_seconds: float
    peak_mib: float
    output: str


def run_command(command: Sequence[str], environment: Mapping[str, str]) -> Cost:
    """Run a command to its end.

    Raises:
        RuntimeError: it failed.
        subprocess.TimeoutExpired: it took more than half an hour.
    """
    start, before = time.perf_counter(), os.times()
    with (
        subprocess.Popen(
            command,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process,
        _watch(process.pid) as readings,
    ):
        output, errors = process.communicate()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{errors[-2000:]}")
    seconds, after = time.perf_counter() - start, os.times()
    # The kernel's figure is exact, but leaves out descendants that nobody waited for.
    waited = after.children_user - before.children_user + after.children_system - before.children_system
    processor, memory = zip(*readings, strict=True)
    return Cost(seconds, max(waited, *processor), max(memory), output)


@contextmanager
def _watch(pid: int) -> Iterator[list[tuple[float, float]]]:
    """Read a process tree at intervals within a `with` block."""
    tree, ended = ProcessTree(pid), threading.Event()
    readings = [tree.read()]

    def watch() -> None:
        while not ended.wait(_INTERVAL_SECONDS):
            readings.append(tree.read())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield readings
    finally:
        ended.set()
        thread.join()


@contextmanager
def start_process(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Start a Python process within a `with` block; at the end terminate it, and kill what it leaves."""
    with subprocess.Popen(
        [sys.executable, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    ) as started:
        try:
            yield started
        finally:
            started.terminate()
            with suppress(subprocess.TimeoutExpired):
                started.wait(_END_SECONDS)
            with suppress(ProcessLookupError):
                os.killpg(started.pid, signal.SIGKILL)


def read_line(process: subprocess.Popen[str]) -> str:
    """Wait for a line of output: the process prints one when it is ready, and one per command.

    Raises:
        RuntimeError: it has ended instead.
    """
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"{process.args} ended before it printed a line")
    return line


def read_serve_port(process: subprocess.Popen[str]) -> int:
    """Return the gRPC port that `hubhead serve` prints when it is ready."""
    return int(read_line(process).partition("localhost:")[2].split()[0])
