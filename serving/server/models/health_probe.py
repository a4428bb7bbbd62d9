"""Record of whether a model answers, and the request that tests it while there is no traffic."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import grpc

from serving import protos
from serving.server.status_error import StatusError

_TIMEOUTS = (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED)
"""Status codes of a request that the model did not finish in time."""


class HealthProbe:
    """Health of one version of a model, from its real traffic and from a probe request.

    Attributes:
        healthy: whether the model's last call succeeded.
        request: PredictRequest that the model must be able to answer; None: no probe request is known.
    """

    def __init__(self) -> None:
        self.record(healthy=True)
        self.request: protos.Message | None = None

    def record(self, *, healthy: bool) -> None:
        """Note the outcome of a call.

        Args:
            healthy: True if the model has answered, or an error was the request's fault; False if the model
                has failed, or did not answer in time.
        """
        self._recorded_at, self.healthy = time.monotonic(), healthy

    def idle_seconds(self) -> float:
        """Return the seconds since the model's last answer; infinity after a failure."""
        return time.monotonic() - self._recorded_at if self.healthy else math.inf

    def run(self, predict: Callable[[protos.Message, float], Any], seconds: float) -> None:
        """Send the probe request; without one, assume that the model is healthy.

        Args:
            predict: function that answers a PredictRequest within some seconds and records the outcome of
                the model's call here.
            seconds: time limit.
        """
        if self.request is None:
            self.record(healthy=True)
            return
        try:
            predict(self.request, seconds)
        except StatusError as error:
            # Where the model was called, `predict` has recorded its outcome; a timeout leaves none.
            if error.code in _TIMEOUTS:
                self.record(healthy=False)
