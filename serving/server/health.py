"""grpc.health.v1 for the server, by what its models really answer.

TensorFlow Serving says SERVING once and for ever. Here it is SERVING while every model has a version
that serves and whose last answer was one: where no request came for a while, the first warm-up
request is asked again, and a model that fails at it or does not come back is NOT_SERVING until it
does. While the server drains it is NOT_SERVING too, so that callers go elsewhere.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from serving import protos
from serving.server.manager import Manager

SERVICES = ("", "ModelService", "PredictionService", protos.MODEL_SERVICE, protos.PREDICTION_SERVICE)
"""TensorFlow Serving's, without their package, and the names that gRPC's own clients use."""

QUIET_SECONDS = 10.0
"""After so long without an answer a model is asked."""


class Health:
    """The health service of one server; `check` is called again and again by its poller."""

    def __init__(self, manager: Manager) -> None:
        self._manager = manager
        self._quiet = QUIET_SECONDS
        self._servicer = health.HealthServicer()
        self._asking: dict[str, threading.Thread] = {}
        self._draining = False
        self._set(serving=False)

    def add_to(self, server: grpc.Server) -> None:
        """Register the service."""
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)

    def check(self) -> None:
        """Look at every model, and say what came out."""
        models = self._manager.models
        answers = [self._answers(name) for name in models]  # every one of them is asked
        serving = bool(answers) and all(answers)
        self._set(serving=serving and not self._draining)

    def drain(self) -> None:
        """Say NOT_SERVING from now on."""
        self._draining = True
        self._set(serving=False)

    def _answers(self, name: str) -> bool:
        """Whether a model answered lately, or would."""
        asking = self._asking.get(name)
        if asking is not None and asking.is_alive():  # since the last look, so it hangs
            return False
        try:
            with self._manager.use(protos.ModelSpec(name=name)) as servable:
                pulse = servable.pulse
        except Exception:
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
        states: Sequence[Any] = health_pb2.HealthCheckResponse.ServingStatus.items()
        state = dict(states)["SERVING" if serving else "NOT_SERVING"]
        for service in SERVICES:
            self._servicer.set(service, state)
