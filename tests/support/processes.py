"""Commands of hubhead as processes of their own, as a cluster runs them."""

from __future__ import annotations

import os
import re
import selectors
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.repository import REPO

READY = re.compile(r"localhost:(\d+) \(gRPC\)(?:.*?localhost:(\d+))?")


@dataclass(frozen=True)
class Ports:
    """Where a server of ours answers; `rest` is 0 where it does not."""

    grpc: int
    rest: int


def command(arguments: Sequence[str]) -> list[str]:
    """A command line that runs this tree's hubhead, whatever is installed."""
    return [sys.executable, str(REPO / "hubhead.py"), *arguments]


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """That of this process, with this tree first among the packages."""
    return {**os.environ, "PYTHONPATH": str(REPO), "COLUMNS": "200", **(more or {})}


def start(
    arguments: Sequence[str], log: Path, more: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    """Start a command; what it says on stderr goes to `log`."""
    with log.open("a") as stderr:
        return subprocess.Popen(
            command(arguments), stdout=subprocess.PIPE, stderr=stderr, text=True, env=environment(more)
        )


def wait_ready(process: subprocess.Popen[str], log: Path, seconds: float = 120.0) -> Ports:
    """Where `hubhead serve` says that it answers."""
    assert process.stdout
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        assert selector.select(seconds), f"not ready within {seconds:g} s: {log.read_text()}"
    line = process.stdout.readline()
    found = READY.search(line)
    assert found, f"{line!r}, {log.read_text()}"
    return Ports(int(found[1]), int(found[2] or 0))


def end(process: subprocess.Popen[str], seconds: float = 60.0) -> int:
    """End a process as Kubernetes does: SIGTERM, and SIGKILL after a while. Its exit code."""
    process.terminate()
    try:
        process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
    return process.returncode


@contextmanager
def serving(arguments: Sequence[str], log: Path) -> Iterator[Ports]:
    """`hubhead serve`, from its readiness to its end."""
    process = start(["serve", *arguments], log)
    try:
        yield wait_ready(process, log)
    finally:
        end(process)


def eventually(condition: object, what: str, seconds: float = 60.0) -> None:
    """Wait until a call says yes."""
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.1)
