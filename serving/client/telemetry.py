"""Prometheus metrics and OpenTelemetry spans of the client's calls. Both are off by default.

    metrics = Metrics()  # in prometheus_client's default registry
    Client(..., metrics=metrics, tracer=opentelemetry.trace.get_tracer("shop"))

The extra `metrics` installs both libraries; they are imported only if they are used.
"""

from __future__ import annotations

import collections
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import grpc

from serving.client.sans_io import Call
from serving.errors import InputError

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer
    from prometheus_client import CollectorRegistry

    from serving.contract import Status

Headers = tuple[tuple[str, str], ...]

_LATENCY_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Seconds."""


class Metrics:
    """Prometheus metrics, shared by all clients that they are given to.

    - `hubhead_client_requests_total` by model, method and code: calls by gRPC code; each attempt counts.
    - `hubhead_client_request_seconds` by model and method: latency of a call.
    - `hubhead_client_retries_total` by model and method: attempts after the first.
    - `hubhead_client_under_way` by model: calls in flight.
    - `hubhead_client_photos_total` by model and status: photos by status.

    Args:
        registry: registry to register the metrics in; None for prometheus_client's default.

    Raises:
        InputError: prometheus_client is not installed.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        try:
            from prometheus_client import REGISTRY, Counter, Gauge, Histogram
        except ImportError as error:
            raise InputError(
                "Client metrics need prometheus_client, which is not installed.",
                remedy="Install it with: pip install 'hubhead[metrics]'",
            ) from error
        common: dict[str, Any] = {"registry": registry or REGISTRY, "namespace": "hubhead_client"}
        self.requests = Counter(
            "requests", "Calls by gRPC code; each attempt counts.", ["model", "method", "code"], **common
        )
        self.seconds = Histogram(
            "request_seconds",
            "Latency of a call in seconds.",
            ["model", "method"],
            buckets=_LATENCY_BUCKETS,
            **common,
        )
        self.retries = Counter("retries", "Attempts after the first.", ["model", "method"], **common)
        self.under_way = Gauge("under_way", "Calls in flight.", ["model"], **common)
        self.photos = Counter("photos", "Photos by status.", ["model", "status"], **common)


class Telemetry:
    """Metrics and spans of one client; both may be off.

    Args:
        target: gRPC target of the server.
        model: name of the model.
        metrics: metrics to update; None for none.
        tracer: tracer to make spans with; None for none.
    """

    def __init__(self, target: str, model: str, metrics: Metrics | None, tracer: Tracer | None) -> None:
        self._target = target
        self._model = model
        self._metrics = metrics
        self._tracer = tracer

    @contextmanager
    def observe_call(self, step: Call) -> Iterator[Headers]:
        """Measure the call made in the block; yield the headers that propagate its span to the server."""
        with self._measure(step), self._trace(step) as headers:
            yield headers

    def count_photos(self, statuses: Iterable[Status]) -> None:
        """Count photos by status."""
        if self._metrics is not None:
            for status, count in collections.Counter(statuses).items():
                self._metrics.photos.labels(self._model, status.value).inc(count)

    @contextmanager
    def _measure(self, step: Call) -> Iterator[None]:
        metrics = self._metrics
        if metrics is None:
            yield
            return
        method = step.method.rpartition("/")[2]
        if step.attempt > 1:
            metrics.retries.labels(self._model, method).inc()
        code = "CANCELLED"  # if the block ends without a response and without a gRPC error
        begin = time.perf_counter()
        with metrics.under_way.labels(self._model).track_inprogress():
            try:
                yield
                code = "OK"
            except grpc.RpcError as error:
                code = error.code().name
                raise
            finally:
                metrics.seconds.labels(self._model, method).observe(time.perf_counter() - begin)
                metrics.requests.labels(self._model, method, code).inc()

    @contextmanager
    def _trace(self, step: Call) -> Iterator[Headers]:
        """Trace one attempt as a span, by OpenTelemetry's semantic conventions for RPC clients."""
        if self._tracer is None:
            yield ()
            return
        from opentelemetry import propagate
        from opentelemetry.trace import SpanKind, Status, StatusCode

        service, method = step.method.lstrip("/").split("/")
        attributes: dict[str, Any] = {
            "rpc.system": "grpc",
            "rpc.service": service,
            "rpc.method": method,
            "server.address": self._target,
            "hubhead.model": self._model,
            "hubhead.rows": step.rows,
            "hubhead.attempt": step.attempt,
        }
        with self._tracer.start_as_current_span(
            f"{service}/{method}",
            kind=SpanKind.CLIENT,
            attributes=attributes,
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            carrier: dict[str, str] = {}
            propagate.inject(carrier)
            try:
                yield tuple(carrier.items())
            except grpc.RpcError as error:
                span.set_attribute("rpc.grpc.status_code", error.code().value[0])
                span.set_status(Status(StatusCode.ERROR, error.details() or error.code().name))
                raise
            span.set_attribute("rpc.grpc.status_code", 0)
