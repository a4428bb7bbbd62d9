"""grpc.health.v1 for the server, by what its models really answer.

TensorFlow Serving says SERVING once and for ever. Here it is SERVING while every model has a version
that serves and whose last answer was one: where no request came for a while, the first warm-up
request is asked again, and a model that fails at it or does not come back is NOT_SERVING until it
does. While the server drains it is NOT_SERVING too, so that callers go elsewhere.
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
from serving.server.status_error import Refusal

SERVICES = ("", "ModelService", "PredictionService", protos.MODEL_SERVICE, protos.PREDICTION_SERVICE)
"""TensorFlow Serving's, without their package, and the names that gRPC's own clients use."""

QUIET_SECONDS = 10.0
"""After so long without an answer a model is asked."""


class Health:
    """The health service of one server; `check` is called again and again by its poller."""

    def __init__(self, manager: Manager) -> None:
        self._manager = manager
        self._quiet = QUIET_SECONDS
        self._servicer = _Servicer()
        self._asking: dict[str, threading.Thread] = {}
        self._draining = False
        self._set(serving=False)

    def add_to(self, server: Any) -> None:
        """Register the service with a server of grpc.aio, on its event loop."""
        self._servicer.loop = asyncio.get_running_loop()
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)

    def check(self) -> None:
        """Look at every model, and say what came out."""
        models = self._manager.models
        answers = [self._answers(name) for name in models]  # every one of them is asked
        serving = bool(answers) and all(answers)
        self._set(serving=serving and not self._draining)

    def drain(self) -> None:
        """Say NOT_SERVING from now on, and end the streams of those who watch."""
        self._draining = True
        self._servicer.ends = True
        self._set(serving=False)

    def _answers(self, name: str) -> bool:
        """Whether a model answered lately, or would."""
        asking = self._asking.get(name)
        if asking is not None and asking.is_alive():  # since the last look, so it hangs
            return False
        try:
            with self._manager.use(protos.ModelSpec(name=name)) as servable:
                pulse = servable.pulse
        except Refusal:  # no version of it serves
            return False
        if pulse.quiet_seconds() > self._quiet:
            thread = threading.Thread(target=self._ask, args=(name,), name="hubhead-pulse", daemon=True)
            self._asking[name] = thread
            thread.start()
            thread.join(self._quiet)
            if thread.is_alive():
                return False
        return pulse.answering

    def _ask(self, name: str) -> None:
        with self._manager.use(protos.ModelSpec(name=name)) as servable:
            servable.ask_itself(self._quiet)

    def _set(self, *, serving: bool) -> None:
        self._servicer.set(_Status.Value("SERVING" if serving else "NOT_SERVING"))


_Status: Any = health_pb2.HealthCheckResponse.ServingStatus


class _Servicer(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """Health.Check and Health.Watch for grpc.aio.

    That of grpc_health forgets a service's other watchers once one of them leaves.

    Attributes:
        loop: where it is asked; None before that.
        ends: whether watchers are let go after the next word.
    """

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        self.ends = False
        self._status = _Status.Value("NOT_SERVING")
        self._changed = asyncio.Event()

    def set(self, status: int) -> None:
        """The status of all services from now on; from any thread."""
        if status == self._status and not self.ends:
            return
        self._status = status
        if self.loop is not None:
            with suppress(RuntimeError):  # the loop is closed
                self.loop.call_soon_threadsafe(self._tell)

    def _tell(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802 - the method's name in gRPC
        """The status now."""
        if request.service not in SERVICES:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"There is no service {request.service!r}.")
        return health_pb2.HealthCheckResponse(status=self._status)

    async def Watch(self, request: Any, context: Any) -> None:  # noqa: N802
        """The status now, and whenever it changes."""
        said = None
        while True:
            changed, known = self._changed, request.service in SERVICES
            status = self._status if known else _Status.Value("SERVICE_UNKNOWN")
            if status != said:
                await context.write(health_pb2.HealthCheckResponse(status=status))
                said = status
            if self.ends:
                return
            await changed.wait()
