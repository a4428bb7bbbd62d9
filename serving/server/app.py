"""Start, run and stop the local model server."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc

from serving import runtime
from serving.errors import BundleError, OutputError
from serving.server.servable import Loader
from serving.server.services import handlers
from serving.server.versions import Versions

GRACE_SECONDS = 5.0
"""How long requests in flight may still take once the server stops."""

_CALLS_AT_ONCE = 64
"""Threads that receive calls; those beyond the model's own threads wait for their turn there."""

_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.so_reuseport", 0),  # else a second server shares the port and takes half of the requests
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServerSettings:
    """What to serve, and where.

    Attributes:
        model_base_path: the directory whose numbered children are the versions.
        model_name: the name that callers use; default: the directory's name.
        port: gRPC port; 0 takes a free one.
        file_system_poll_wait_seconds: between two looks for new versions.
    """

    model_base_path: Path
    model_name: str = ""
    port: int = 8500
    file_system_poll_wait_seconds: float = 1.0

    @property
    def name(self) -> str:
        """The model's name, given or not."""
        return self.model_name or self.model_base_path.resolve().name


class RunningServer:
    """A server that answers; stop it with `stop` or by leaving its context.

    Attributes:
        name: the model's name.
        port: the gRPC port, also where the settings said 0.
    """

    def __init__(self, settings: ServerSettings, versions: Versions) -> None:
        self.name = versions.name
        self._versions = versions
        self._pool = futures.ThreadPoolExecutor(_CALLS_AT_ONCE, thread_name_prefix="hubhead-serve")
        self._server = grpc.server(self._pool, handlers=handlers(versions), options=_OPTIONS)
        self.port = _bind(self._server, settings.port)
        self._stopping = threading.Event()
        self._poller = threading.Thread(
            target=self._poll,
            args=(settings.file_system_poll_wait_seconds,),
            name="hubhead-poll",
            daemon=True,
        )
        self._server.start()
        self._poller.start()

    @property
    def version(self) -> int:
        """The version that answers now."""
        version = self._versions.current
        assert version is not None  # a server starts with one, and never lets go of the last
        return version

    def stop(self) -> None:
        """Take no more requests, give those in flight 5 seconds, close the port."""
        self._stopping.set()
        self._server.stop(GRACE_SECONDS).wait()
        self._poller.join(GRACE_SECONDS)  # it may be in the middle of loading a version
        self._pool.shutdown(wait=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _poll(self, seconds: float) -> None:
        while not self._stopping.wait(seconds):
            self._versions.poll()


def start(
    settings: ServerSettings, *, loader: Loader = runtime.load, stop: threading.Event | None = None
) -> RunningServer:
    """Load the newest version, open the port, and go on in the background.

    While the base path holds no version, this waits for one, and says so once in the log.

    Args:
        settings: what to serve, and where.
        loader: makes a model from a version's directory.
        stop: gives up waiting for a first version when it is set.

    Raises:
        BundleError: there is no such base path, or versions are there and none of them loads.
        OutputError: the port is taken.
        StoppedError: `stop` was set before there was a version.
    """
    base = settings.model_base_path
    if not base.is_dir():
        raise BundleError(
            f"The model base path {base} {'is no directory' if base.exists() else 'does not exist'}.",
            remedy="Give --model_base_path the directory above the numbered versions, such as models/food.",
        )
    versions = Versions(settings.name, base, loader)
    _first_version(versions, settings.file_system_poll_wait_seconds, stop or threading.Event())
    return RunningServer(settings, versions)


class StoppedError(Exception):
    """The server was told to stop before it had a version to serve."""


def serve_until_signalled(
    settings: ServerSettings, on_ready: Callable[[RunningServer], None], *, loader: Loader = runtime.load
) -> None:
    """Serve until SIGTERM or SIGINT, for a command's main thread.

    Args:
        settings: what to serve, and where.
        on_ready: called once, when the port is open.
        loader: makes a model from a version's directory.

    Raises:
        BundleError: as `start`.
        OutputError: as `start`.
    """
    with _set_by_signals() as stop:
        try:
            server = start(settings, loader=loader, stop=stop)
        except StoppedError:
            return
        with server:
            on_ready(server)
            stop.wait()


def _first_version(versions: Versions, seconds: float, stop: threading.Event) -> None:
    versions.poll()
    if versions.current is None and (states := versions.states()):
        reasons = " ".join(f"Version {version}: {state.error}" for version, state in states.items())
        raise BundleError(f"No version of model {versions.name} in {versions.base} loads. {reasons}")
    if versions.current is None:
        _log.warning(
            "%s holds no version yet; waiting for a directory such as %s", versions.base, versions.base / "1"
        )
    while versions.current is None:
        if stop.wait(seconds):
            raise StoppedError
        versions.poll()


def _bind(server: grpc.Server, port: int) -> int:
    try:
        bound = server.add_insecure_port(f"[::]:{port}")
    except RuntimeError as error:
        raise _taken(port) from error
    if bound == 0:  # how older releases of grpcio say the same
        raise _taken(port)
    return bound


def _taken(port: int) -> OutputError:
    return OutputError(
        f"Port {port} cannot be opened: another program has it, or you may not use it.",
        remedy="Choose another with --port, or a free one with --port 0.",
    )


@contextmanager
def _set_by_signals() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set, in place of ending the process."""
    event = threading.Event()
    previous = {
        number: signal.signal(number, lambda *_: event.set()) for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield event
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
