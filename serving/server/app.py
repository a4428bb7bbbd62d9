"""Starting, running and stopping of the local model server."""

from __future__ import annotations

import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import grpc

from serving import runtime
from serving.errors import BundleError, HubheadError, InputError
from serving.server.config import files
from serving.server.config.settings import ModelSettings, ServerSettings
from serving.server.grpc.server import GrpcServer
from serving.server.health import HealthService
from serving.server.metrics import Metrics
from serving.server.models import servable
from serving.server.models.manager import Manager
from serving.server.models.servable import Loader, Servable
from serving.server.models.versions import LoadVersion
from serving.server.models.warmup import warm_up
from serving.server.rest.server import GRACE_SECONDS, RestServer
from serving.server.status_error import StatusError

_HEALTH_SECONDS = 0.5
"""Time between health checks."""

_SWITCH_SECONDS = 0.0005
"""Time after which a thread that holds the interpreter lock gives it up for another one.

With Python's 5 ms a photo waits for that long at each of its steps from thread to thread. Beside REST bodies
of 16,000 rows the p99 of a good caller was 30 times its usual, and 9 times with this; beside gRPC messages of
a million fields 18 and 12 times. The throughput of 16 callers and the processor time per photo are
the same."""

_log = logging.getLogger(__name__)


class RunningServer:
    """A running server; stop it with `stop` or use it as a context manager.

    Attributes:
        port: gRPC port; the one that was picked if the settings say 0.
        rest_port: REST port; None if it is disabled.
        manager: the served models.
        metrics: metrics of this server.
    """

    def __init__(
        self, settings: ServerSettings, manager: Manager, metrics: Metrics, configuration: bytes | None
    ) -> None:
        """Open the ports; requests are answered after `serve`, and wait until then.

        Args:
            settings: settings of the server.
            manager: the served models, which may be loaded later.
            metrics: metrics of this server.
            configuration: content of the model_config_file that is in effect; None: there is none.

        Raises:
            OutputError: a port or the socket cannot be opened.
        """
        self.manager, self.metrics = manager, metrics
        self._settings, self._configuration = settings, configuration
        self._threads: list[threading.Thread] = []
        self._stopping = threading.Event()
        self._health = HealthService(manager)
        self._grpc = GrpcServer(settings, manager, metrics, self._health)
        self.port = self._grpc.port
        try:
            self._rest = None if settings.rest_api_port is None else RestServer(settings, manager, metrics)
        except HubheadError:
            self._grpc.stop(0)
            raise
        self.rest_port = self._rest and self._rest.port

    def serve(self) -> None:
        """Start to answer requests, and the background threads; the models are loaded."""
        self._health.check()
        self._grpc.start()
        if self._rest:
            self._rest.start()
        self._threads = [
            threading.Thread(target=self._poll_versions, name="hubhead-poll", daemon=True),
            threading.Thread(target=self._check_health, name="hubhead-health", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Reject new requests, wait up to 5 seconds for those in flight, and close the ports."""
        self._stopping.set()
        self._health.drain()
        with ThreadPoolExecutor() as pool:  # both ports wait at the same time
            stopped = [pool.submit(self._grpc.stop, GRACE_SECONDS)]
            if self._rest:
                stopped.append(pool.submit(self._rest.stop))
        for thread in self._threads:
            thread.join(GRACE_SECONDS)  # one may be in the middle of loading a version
        self.manager.close()
        for port in stopped:
            port.result()  # raises its error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def _poll_versions(self) -> None:
        """Scan the base paths, and the configuration file for changes, until the server stops."""
        settings, read_at, content = self._settings, time.monotonic(), self._configuration
        while not self._stopping.wait(settings.file_system_poll_wait_seconds):
            self.manager.poll()
            every = settings.model_config_file_poll_wait_seconds
            if settings.model_config_file and every and time.monotonic() - read_at >= every:
                read_at = time.monotonic()
                current = _read(settings.model_config_file)
                if current not in (None, content) and self._reload_config_file(settings.model_config_file):
                    content = current

    def _reload_config_file(self, path: Path) -> bool:
        """Apply a changed configuration file; return False, after a warning, if it cannot be applied."""
        try:
            self.manager.configure(files.read_models(path), self._stopping.is_set)
        except (HubheadError, StatusError) as error:
            _log.warning("%s has changed but cannot be applied; will retry: %s", path, error)
            return False
        _log.info("%s has changed and was applied", path)
        return True

    def _check_health(self) -> None:
        while not self._stopping.wait(_HEALTH_SECONDS):
            self._health.check()


def start(
    settings: ServerSettings, *, loader: Loader = runtime.load, stop: threading.Event | None = None
) -> RunningServer:
    """Open the ports, load a version of every model, and serve in the background.

    A port that is in use is reported before a model is loaded. While a base path has no version, this waits
    for one, after one warning in the log.

    Args:
        settings: settings of the server.
        loader: function that loads the model in a version's directory.
        stop: event that ends the wait for a first version.

    Raises:
        InputError: the configuration cannot be used.
        BundleError: a base path does not exist, or none of its versions loads.
        OutputError: a port cannot be opened.
        StoppedError: `stop` was set before every model had a version.
    """
    stopped = (stop or threading.Event()).is_set
    metrics = Metrics()
    manager = Manager(
        _make_loader(settings, loader, metrics),
        allow_labels_for_unavailable=settings.allow_version_labels_for_unavailable_models,
    )
    # Read before it is applied: a change during the wait for a first version must not be missed.
    configuration = _read(settings.model_config_file)
    models = _resolve_models(settings)
    for model in models:
        _check_base_path(model)
    server = RunningServer(settings, manager, metrics, configuration)
    try:
        manager.configure(models, stopped)
    except BaseException as error:
        server.stop()
        if not isinstance(error, StatusError):
            raise
        if stopped():
            raise StoppedError from error
        raise _to_hubhead_error(error) from error
    server.serve()
    return server


class StoppedError(Exception):
    """The server was stopped before it had a version to serve."""


def serve_until_signalled(
    settings: ServerSettings, on_ready: Callable[[RunningServer], None], *, loader: Loader = runtime.load
) -> None:
    """Serve until SIGTERM or SIGINT; call it from the main thread.

    Args:
        settings: settings of the server.
        on_ready: function that is called once the ports are open.
        loader: function that loads the model in a version's directory.

    Raises:
        HubheadError: errors of `start`.
    """
    sys.setswitchinterval(_SWITCH_SECONDS)
    with _stop_on_signals() as stop:
        try:
            server = start(settings, loader=loader, stop=stop)
        except StoppedError:
            return
        with server:
            on_ready(server)
            stop.wait()


def _resolve_models(settings: ServerSettings) -> tuple[ModelSettings, ...]:
    """Return the models to serve: those of the configuration file, of `models`, or of the base path.

    Raises:
        InputError: none of the three is given, or the file cannot be used.
    """
    if settings.model_config_file:
        return files.read_models(settings.model_config_file)
    if settings.models:
        return settings.models
    if settings.model_base_path is None:
        raise InputError(
            "No model to serve.",
            remedy="Give --model_base_path, the directory above the versions, or --model_config_file.",
        )
    base = settings.model_base_path.resolve()
    return (ModelSettings(settings.model_name or base.name, base),)


def _check_base_path(model: ModelSettings) -> None:
    """Check that a base path is a directory; warn if it has no version yet.

    Raises:
        BundleError: it is not a directory, or has no versions itself, but directories that have.
    """
    base = model.base_path
    if not base.is_dir():
        raise BundleError(
            f"The model base path {base} {'is not a directory' if base.exists() else 'does not exist'}.",
            remedy="Give --model_base_path the directory above the numbered versions, such as models/food.",
        )
    if (base / "saved_model.pb").exists():
        raise BundleError(
            f"{base} is a version of a model.",
            remedy=f"Give --model_base_path the directory above it: {base.parent}",
        )
    directories = [child for child in base.iterdir() if child.is_dir()]
    if any(child.name.isdecimal() for child in directories):
        return
    models = sorted(str(child) for child in directories if any(child.glob("[0-9]*/saved_model.pb")))
    if models:
        raise BundleError(
            f"{base} has no versions itself; models with versions in it: {', '.join(models[:3])}.",
            remedy=f"Give --model_base_path one of them, such as {models[0]}, or list all in "
            "--model_config_file.",
        )
    _log.warning("%s has no version yet; waiting for a directory such as %s", base, base / "1")


def _make_loader(settings: ServerSettings, loader: Loader, metrics: Metrics) -> LoadVersion:
    """Return a function that loads and warms up a version, and counts both in the metrics."""

    def load(name: str, version: int, directory: Path) -> Servable:
        try:
            loaded = servable.load(name, version, directory, loader, settings, metrics)
        except Exception:  # TensorFlow may raise anything for a broken model
            metrics.count_load(str(directory), loaded=False)
            raise
        metrics.count_load(str(directory), loaded=True)
        if settings.enable_model_warmup:
            start, status = time.perf_counter(), "OK"
            try:
                warm_up(loaded, directory, settings.num_request_iterations_for_warmup)
            except BundleError:
                status = "INTERNAL"
                raise
            finally:
                metrics.observe_warmup(str(directory), status, time.perf_counter() - start)
        return loaded

    return load


def _to_hubhead_error(error: StatusError) -> HubheadError:
    """Return the error of the command for a configuration that was rejected."""
    if error.code is grpc.StatusCode.FAILED_PRECONDITION:
        return InputError(
            f"{error.details}.",
            remedy="Add --allow_version_labels_for_unavailable_models: as in TensorFlow Serving, "
            "labels in the first configuration require it.",
        )
    return BundleError(error.details)


def _read(path: Path | None) -> bytes | None:
    """Return the content of a file; None if it cannot be read."""
    try:
        return path.read_bytes() if path else None
    except OSError:
        return None


@contextmanager
def _stop_on_signals() -> Iterator[threading.Event]:
    """Yield an event that SIGTERM and SIGINT set in place of ending the process."""
    event = threading.Event()
    previous = {
        number: signal.signal(number, lambda *_: event.set()) for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield event
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
