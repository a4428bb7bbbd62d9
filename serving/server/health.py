"""The health service grpc.health.v1, which reflects what the models really answer.

TensorFlow Serving always reports SERVING. Here the status is SERVING while every model has a version that is
served and whose last call succeeded. A model that has had no traffic for a while gets its health probe, the
first warm-up request; if the probe fails or hangs, the status is NOT_SERVING until the model answers again.
While the server drains, the status is NOT_SERVING too, so that clients and load balancers go elsewhere.
"""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from serving import protos
from serving.server.models.manager import Manager
from serving.server.status_error import StatusError

SERVICES = ("", "ModelService", "PredictionService", protos.MODEL_SERVICE, protos.PREDICTION_SERVICE)
"""Service names: TensorFlow Serving's, which have no package, and the full ones that gRPC clients use."""

PROBE_AFTER_SECONDS = 10.0
"""Time without an answer after which a model is probed; also the time limit of a probe."""


class HealthService:
    """The health service of one server. A poller has to call `check` regularly."""

    def __init__(self, manager: Manager) -> None:
        self._manager = manager
        self._probe_after = PROBE_AFTER_SECONDS
        self._servicer = _Servicer()
        self._probes: dict[str, threading.Thread] = {}  # the latest probe of each model
        self._set(serving=False)

    def add_to(self, server: Any) -> None:
        """Register the service with a grpc.aio server; call it on the server's event loop."""
        self._servicer.loop = asyncio.get_running_loop()
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)

    def check(self) -> None:
        """Check every model, probe the idle ones, and publish the status."""
        models = self._manager.models
        healthy = [self._is_healthy(name) for name in models]  # a list: every model has to be probed
        serving = bool(healthy) and all(healthy)
        self._set(serving=serving and not self._servicer.closing)

    def drain(self) -> None:
        """Report NOT_SERVING from now on, and end the streams of Watch."""
        self._servicer.closing = True
        self._set(serving=False)

    def _is_healthy(self, name: str) -> bool:
        """Return whether a model has answered lately, or answers its probe now."""
        running = self._probes.get(name)
        if running is not None and running.is_alive():  # the previous probe hangs
            return False
        try:
            with self._manager.use(protos.ModelSpec(name=name)) as servable:
                probe = servable.health_probe
        except StatusError:  # no version of the model is served
            return False
        if probe.idle_seconds() > self._probe_after:
            # In a thread of its own: a hanging model must not block the checks of the others.
            thread = threading.Thread(
                target=self._run_probe, args=(name,), name="hubhead-health-probe", daemon=True
            )
            self._probes[name] = thread
            thread.start()
            thread.join(self._probe_after)
            if thread.is_alive():
                return False
        return probe.healthy

    def _run_probe(self, name: str) -> None:
        with self._manager.use(protos.ModelSpec(name=name)) as servable:
            servable.health_probe.run(servable.predict, self._probe_after)

    def _set(self, *, serving: bool) -> None:
        self._servicer.set_status(_Status.Value("SERVING" if serving else "NOT_SERVING"))


_Status: Any = health_pb2.HealthCheckResponse.ServingStatus


class _Servicer(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """Implementation of Health.Check and Health.Watch for grpc.aio.

    The one in grpc_health is not used: when one watcher of a service leaves, it forgets the others.

    Attributes:
        loop: event loop of the gRPC server; None until the service is registered.
        closing: whether the streams of Watch end after the next status.
    """

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        self.closing = False
        self._status = _Status.Value("NOT_SERVING")
        self._changed = asyncio.Event()

    def set_status(self, status: int) -> None:
        """Set the status of all services and notify watchers; safe to call from any thread."""
        if status == self._status and not self.closing:
            return
        self._status = status
        if self.loop is not None:
            with suppress(RuntimeError):  # the loop is closed
                self.loop.call_soon_threadsafe(self._notify)

    def _notify(self) -> None:
        # Each change has an event of its own, so that a slow watcher cannot miss one.
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802 - name of the RPC
        """Return the current status."""
        if request.service not in SERVICES:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"Unknown service {request.service!r}.")
        return health_pb2.HealthCheckResponse(status=self._status)

    async def Watch(self, request: Any, context: Any) -> None:  # noqa: N802
        """Send the current status, and every later one."""
        sent = None
        while True:
            changed, known = self._changed, request.service in SERVICES
            status = self._status if known else _Status.Value("SERVICE_UNKNOWN")
            if status != sent:
                await context.write(health_pb2.HealthCheckResponse(status=status))
                sent = status
            if self.closing:
                return
            await changed.wait()
