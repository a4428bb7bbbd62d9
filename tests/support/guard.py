"""Guard of what a test may use, by an audit hook (PEP 578), so that markers and tests/unit stay true.

The hook names what a test did: imports of TensorFlow and Beam (the first one in a process raises an
event, so that a run of one file or of `-m "not tf"` sees what a run of everything may not), ports that are
opened, and processes that are started.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Any

import grpc
import pytest
import urllib3  # noqa: F401 # TensorFlow and Beam import it, and its import binds a socket to look for IPv6


class Use(StrEnum):
    """Something that a test may or may not use; the first three are markers of pytest."""

    TENSORFLOW = "tf"
    BEAM = "beam"
    SERVER = "server"
    SOCKET = "socket"
    PROCESS = "process"


PACKAGES = {
    "tensorflow": Use.TENSORFLOW,
    "tensorflow_hub": Use.TENSORFLOW,
    "keras": Use.TENSORFLOW,
    "apache_beam": Use.BEAM,
}
EVENTS = {
    "os.exec": Use.PROCESS,
    "os.fork": Use.PROCESS,
    "os.forkpty": Use.PROCESS,
    "os.posix_spawn": Use.PROCESS,
    "os.system": Use.PROCESS,
    "subprocess.Popen": Use.PROCESS,
    "socket.bind": Use.SERVER,
    "socket.connect": Use.SOCKET,
    "socket.getaddrinfo": Use.SOCKET,
}
"""Audit events. A bare socket is allowed: every asyncio event loop has a pair of them."""

GRPC = {"server": Use.SERVER, "insecure_channel": Use.SOCKET, "secure_channel": Use.SOCKET}
"""Functions of grpc and grpc.aio, which opens its sockets in C, where no audit event is raised."""

_forbidden: frozenset[Use] = frozenset()


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    """Fail the running test where it uses what it may not; an audit hook cannot be removed again."""
    if not _forbidden:
        return
    package = str(arguments[0]).partition(".")[0] if event == "import" else ""
    if use := PACKAGES.get(package) or EVENTS.get(event):
        _check(use, f"{event} {arguments[:1]!r:.100}")  # os.fork has no arguments


def _check(use: Use, what: str) -> None:
    if use in _forbidden:
        pytest.fail(f"not marked as {use}, and used it: {what}. Unit tests use none of {', '.join(Use)}")


sys.addaudithook(_audit)


def _guarded(function: Callable[..., Any], use: Use) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> Any:
        _check(use, f"grpc.{function.__name__}")
        return function(*arguments, **options)

    return call


@contextmanager
def forbidding(uses: Collection[Use]) -> Iterator[None]:
    """Fail what uses one of these, until the end of the block."""
    global _forbidden
    before = _forbidden
    with pytest.MonkeyPatch.context() as patch:
        for module in (grpc, grpc.aio):
            for name, use in GRPC.items():
                if use in uses:
                    patch.setattr(module, name, _guarded(getattr(module, name), use))
        _forbidden = frozenset(uses)
        try:
            yield
        finally:
            _forbidden = before
