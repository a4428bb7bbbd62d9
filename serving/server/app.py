"""Start, run and stop the local model server."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc

from serving import runtime
from serving.errors import BundleError, HubheadError, InputError
from serving.server.config import files
from serving.server.config.settings import ModelSettings, ServerSettings
from serving.server.grpc.server import GrpcPort
from serving.server.health import Health
from serving.server.metrics import Metrics
from serving.server.models import servable
from serving.server.models.manager import Manager
from serving.server.models.servable import Loader, Servable
from serving.server.models.versions import Load
from serving.server.models.warmup import warm_up
from serving.server.rest import GRACE_SECONDS, Rest
from serving.server.status_error import Refusal

_HEALTH_SECONDS = 0.5

_log = logging.getLogger(__name__)


class RunningServer:
    """A server that answers; stop it with `stop` or by leaving its context.

    Attributes:
        port: the gRPC port, also where the settings said 0.
        rest_port: the REST port; None where there is none.
        manager: the models.
        metrics: what is counted.
    """

    def __init__(
        self, settings: ServerSettings, manager: Manager, metrics: Metrics, configuration: str | None
    ) -> None:
        """With the text of the model_config_file that is taken over."""
        self.manager, self.metrics = manager, metrics
        self._settings, self._configuration = settings, configuration
        self._stopping = threading.Event()
        self._health = Health(manager)
        self._grpc = GrpcPort(settings, manager, metrics, self._health)
        self.port = self._grpc.port
        try:
            rest = Rest(settings, manager, metrics) if settings.rest_api_port is not None else None
        except HubheadError:
            self._grpc.stop(0)
            raise
        self._rest = rest
        self.rest_port = rest.port if rest else None
        self._health.check()
        self._grpc.start()
        self._threads = [
            threading.Thread(target=self._poll, name="hubhead-poll", daemon=True),
            threading.Thread(target=self._watch, name="hubhead-health", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    @property
    def name(self) -> str:
        """The name of the only model, or of the first."""
        return self.manager.settings[0].name

    @property
    def version(self) -> int:
        """The version of that model that answers now."""
        version = self.manager.models[self.name].current
        assert version is not None  # a server starts with one, and never lets go of the last
        return version

    def stop(self) -> None:
        """Take no more requests, give those in flight 5 seconds, close the ports."""
        self._stopping.set()
        self._health.drain()
        ports = [threading.Thread(target=self._grpc.stop, args=(GRACE_SECONDS,))]
        if self._rest:
            ports.append(threading.Thread(target=self._rest.stop))
        for port in ports:
            port.start()
        for port in ports:
            port.join()
        for thread in self._threads:
            thread.join(GRACE_SECONDS)  # one may be in the middle of loading a version
        self.manager.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _poll(self) -> None:
        settings, read_at, text = self._settings, time.monotonic(), self._configuration
        while not self._stopping.wait(settings.file_system_poll_wait_seconds):
            self.manager.poll()
            every = settings.model_config_file_poll_wait_seconds
            if settings.model_config_file and every and time.monotonic() - read_at >= every:
                read_at = time.monotonic()
                found = _text(settings.model_config_file)
                if found is not None and found != text and self._read_again(settings.model_config_file):
                    text = found

    def _read_again(self, path: Path) -> bool:
        """Take over a changed configuration; False, and one line in the log, where it cannot be used yet."""
        try:
            self.manager.configure(files.read_models(path), self._stopping.is_set)
        except (HubheadError, Refusal) as error:
            _log.warning("%s is not taken over, and tried again: %s", path, error)
            return False
        _log.info("%s changed and is taken over", path)
        return True

    def _watch(self) -> None:
        while not self._stopping.wait(_HEALTH_SECONDS):
            self._health.check()


def start(
    settings: ServerSettings, *, loader: Loader = runtime.load, stop: threading.Event | None = None
) -> RunningServer:
    """Load a version of every model, open the ports, and go on in the background.

    While a base path holds no version, this waits for one, and says so once in the log.

    Args:
        settings: what to serve, and where.
        loader: makes a model from a version's directory.
        stop: gives up waiting for a first version when it is set.

    Raises:
        InputError: a configuration that cannot be used.
        BundleError: there is no such base path, or versions are there and none of them loads.
        OutputError: a port is taken.
        StoppedError: `stop` was set before there was a version.
    """
    stopped = (stop or threading.Event()).is_set
    metrics = Metrics()
    manager = Manager(
        _load(settings, loader, metrics),
        labels_of_unavailable=settings.allow_version_labels_for_unavailable_models,
    )
    # Before it is used: it may change while a first version is waited for.
    configuration = _text(settings.model_config_file)
    models = _models(settings)
    for model in models:
        _check_base(model)
    try:
        manager.configure(models, stopped)
    except Refusal as refusal:
        if stopped():
            raise StoppedError from refusal
        raise _as_error(refusal) from refusal
    return RunningServer(settings, manager, metrics, configuration)


class StoppedError(Exception):
    """The server was told to stop before it had a version to serve."""


def serve_until_signalled(
    settings: ServerSettings, on_ready: Callable[[RunningServer], None], *, loader: Loader = runtime.load
) -> None:
    """Serve until SIGTERM or SIGINT, for a command's main thread.

    Args:
        settings: what to serve, and where.
        on_ready: called once, when the ports are open.
        loader: makes a model from a version's directory.

    Raises:
        HubheadError: as `start`.
    """
    with _set_by_signals() as stop:
        try:
            server = start(settings, loader=loader, stop=stop)
        except StoppedError:
            return
        with server:
            on_ready(server)
            stop.wait()


def _models(settings: ServerSettings) -> tuple[ModelSettings, ...]:
    """What is configured, in one of the three ways.

    Raises:
        InputError: in none of them.
    """
    if settings.model_config_file:
        return files.read_models(settings.model_config_file)
    if settings.models:
        return settings.models
    if settings.model_base_path is None:
        raise InputError(
            "There is no model to serve.",
            remedy="Give --model_base_path the directory above the versions, or --model_config_file.",
        )
    base = settings.model_base_path.resolve()
    return (ModelSettings(settings.model_name or base.name, base),)


def _check_base(model: ModelSettings) -> None:
    base = model.base_path
    if not base.is_dir():
        raise BundleError(
            f"The model base path {base} {'is no directory' if base.exists() else 'does not exist'}.",
            remedy="Give --model_base_path the directory above the numbered versions, such as models/food.",
        )
    if not any(child.name.isdecimal() for child in base.iterdir()):
        _log.warning("%s holds no version yet; waiting for a directory such as %s", base, base / "1")


def _load(settings: ServerSettings, loader: Loader, metrics: Metrics) -> Load:
    """How a version is loaded and warmed."""

    def load(name: str, version: int, directory: Path) -> Servable:
        try:
            loaded = servable.load(name, version, directory, loader, settings, metrics)
        except Exception:  # whatever a model makes TensorFlow raise
            metrics.load(str(directory), loaded=False)
            raise
        metrics.load(str(directory), loaded=True)
        if settings.enable_model_warmup:
            start, status = time.perf_counter(), "OK"
            try:
                warm_up(loaded, directory, settings.num_request_iterations_for_warmup)
            except BundleError:
                status = "INTERNAL"
                raise
            finally:
                metrics.warmup(str(directory), status, time.perf_counter() - start)
        return loaded

    return load


def _as_error(refusal: Refusal) -> HubheadError:
    if refusal.code is grpc.StatusCode.FAILED_PRECONDITION:
        return InputError(
            f"{refusal.details}.",
            remedy="Labels at the start need --allow_version_labels_for_unavailable_models, "
            "as in TensorFlow Serving.",
        )
    return BundleError(refusal.details)


def _text(path: Path | None) -> str | None:
    try:
        return path.read_text("utf-8") if path else None
    except (OSError, UnicodeDecodeError):
        return None


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
