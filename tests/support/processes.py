"""Commands of hubhead as separate processes, as a cluster runs them."""

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
    """Ports of `hubhead serve`; `rest` is 0 if the REST API is off."""

    grpc: int
    rest: int


def command(arguments: Sequence[str]) -> list[str]:
    """Return a command line that runs hubhead from this source tree, whatever is installed."""
    return [sys.executable, str(REPO / "hubhead.py"), *arguments]


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment of this process with this source tree first in PYTHONPATH."""
    return {**os.environ, "PYTHONPATH": str(REPO), "COLUMNS": "200", **(more or {})}


def start(
    arguments: Sequence[str], log: Path, more: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    """Start a command, with its stderr appended to `log`."""
    with log.open("a") as stderr:
        return subprocess.Popen(
            command(arguments), stdout=subprocess.PIPE, stderr=stderr, text=True, env=environment(more)
        )


def wait_ready(process: subprocess.Popen[str], log: Path, seconds: float = 120.0) -> Ports:
    """Wait until `hubhead serve` prints that it is ready, and return its ports."""
    assert process.stdout
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        assert selector.select(seconds), f"not ready within {seconds:g} s: {log.read_text()}"
    line = process.stdout.readline()
    found = READY.search(line)
    assert found, f"{line!r}, {log.read_text()}"
    return Ports(int(found[1]), int(found[2] or 0))


def end(process: subprocess.Popen[str], seconds: float = 60.0) -> int:
    """Stop a process as Kubernetes does, SIGTERM and later SIGKILL, and return its exit code."""
    process.terminate()
    try:
        process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
    return process.returncode


@contextmanager
def serving(arguments: Sequence[str], log: Path) -> Iterator[Ports]:
    """Run `hubhead serve`; yield its ports once it is ready, and stop it afterwards."""
    process = start(["serve", *arguments], log)
    try:
        yield wait_ready(process, log)
    finally:
        end(process)


def eventually(condition: object, what: str, seconds: float = 60.0) -> None:
    """Wait until `condition` returns True; fail after `seconds` with the description `what`."""
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.1)
