"""Unit tests import neither TensorFlow nor Beam, open no sockets and start no processes.

An audit hook (PEP 578) enforces it while a unit test is collected or runs: what breaks the rule fails
with the name of what it did. Such a test belongs into tests/integration.
"""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

UNIT_TESTS = Path(__file__).parent

FORBIDDEN_PACKAGES = {"tensorflow", "tensorflow_hub", "keras", "apache_beam"}
FORBIDDEN_EVENTS = {
    "os.exec",
    "os.fork",
    "os.forkpty",
    "os.posix_spawn",
    "os.system",
    "socket.bind",
    "socket.connect",
    "socket.getaddrinfo",
    "subprocess.Popen",
}
"""Names of audit events. A bare socket is allowed: every asyncio event loop has a pair of them."""

GRPC_ENTRY_POINTS = tuple(
    (module, name) for module in (grpc, grpc.aio) for name in ("insecure_channel", "secure_channel", "server")
)
"""gRPC opens its sockets in C, where no audit event is raised."""

_active = False


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    """Fail the running unit test where it does what it may not; an audit hook cannot be removed again."""
    if not _active:
        return
    if event == "import" and str(arguments[0]).partition(".")[0] in FORBIDDEN_PACKAGES:
        pytest.fail(f"a unit test may not import {arguments[0]}: move it to tests/integration")
    if event in FORBIDDEN_EVENTS:
        pytest.fail(f"a unit test may not do {event} {arguments!r:.100}: move it to tests/integration")


sys.addaudithook(_refuse)


def _refuse_grpc(*_: object, **__: object) -> None:
    pytest.fail("a unit test may not open gRPC channels or servers: move it to tests/integration")


@contextmanager
def guarded(path: Path) -> Iterator[None]:
    """Enforce the rule for a while, where the path is that of a unit test."""
    global _active
    if not path.is_relative_to(UNIT_TESTS):
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        for module, name in GRPC_ENTRY_POINTS:
            patch.setattr(module, name, _refuse_grpc)
        _active = True
        try:
            yield
        finally:
            _active = False


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, Any, Any]:
    """Guard the imports of the test modules."""
    with guarded(collector.path):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, Any]:
    """Guard the tests and their fixtures, whatever the scope."""
    with guarded(item.path):
        return (yield)
