"""Prometheus metrics of the server, under the names that TensorFlow Serving uses.

As there, "/" becomes ":" (util/prometheus_exporter.cc), times are in microseconds, and counters have no
`_total` suffix, so that existing dashboards and alerts work unchanged. One difference: the metrics of the
batching session have the label model_name in place of a thread pool's name.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from serving.process import get_cpu_model

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_TIMES = tuple(10 * 1.8**power for power in range(33))
"""Upper bounds of time buckets in microseconds: monitoring::Buckets::Exponential(10, 1.8, 33)."""

_ROWS = tuple(2.0**power for power in range(15))
"""Upper bounds of buckets that count rows."""

_PREFIX = ":tensorflow:serving:"
_LOADER = ":tensorflow:cc:saved_model:"


class Metrics:
    """Metrics of one server, in a registry of its own."""

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Gauge, Histogram

        self._registry = CollectorRegistry(auto_describe=False)

        def histogram(
            name: str, documentation: str, labels: Sequence[str], bounds: Sequence[float] = _TIMES
        ) -> Any:
            return Histogram(_PREFIX + name, documentation, labels, registry=self._registry, buckets=bounds)

        def counter(name: str, documentation: str, labels: Sequence[str]) -> _UnsuffixedCounter:
            created = _UnsuffixedCounter(name, documentation, labels)
            self._registry.register(created)
            return created

        self._models = Gauge(
            "hubhead_model_info",
            "1 while a version is loaded, with the engine that runs its backbone and the CPU.",
            ("model_name", "version", "engine", "cpu"),
            registry=self._registry,
        )
        path_labels = ("model_path", "status")
        self._requests = counter(
            _PREFIX + "request_count", "Requests by model and status.", ("model_name", "status")
        )
        self._latency = histogram(
            "request_latency",
            "Latency of a request in microseconds, from arrival to response.",
            ("model_name", "API", "entrypoint"),
        )
        self._runtime = histogram(
            "runtime_latency",
            "Time to run the model in microseconds, including the wait in the batching queue.",
            ("model_name", "API", "runtime"),
        )
        self._warmup = histogram(
            "model_warmup_latency", "Duration of the warm-up of a version in microseconds.", path_labels
        )
        self._loads = counter(
            _LOADER + "load_attempt_count", "Attempts to load a version, by outcome.", path_labels
        )
        session, labels = "batching_session:", ("model_name",)
        waits = "Time that a request waited for its batch to start, in microseconds."
        self._queuing = histogram(session + "queuing_latency", waits, labels)
        self._padding = histogram(session + "padding_size", "Padding rows of a batch.", labels, (0.0, *_ROWS))
        rows = "Rows of a batch, including padding."
        self._batch = histogram(session + "processed_batch_size", rows, labels, _ROWS)
        self._batches = counter(
            _PREFIX + session + "wrapped_run_count", "Number of batches that ran.", labels
        )

    def add_model(self, model: str, version: int, engine: str) -> None:
        """Record a version that is loaded, and its engine."""
        self._models.labels(model, version, engine, get_cpu_model()).inc()

    def remove_model(self, model: str, version: int, engine: str) -> None:
        """Record that a version is unloaded."""
        self._models.labels(model, version, engine, get_cpu_model()).dec()

    def count_request(self, model: str, api: str, entrypoint: str, status: str, seconds: float) -> None:
        """Count a request and record its latency.

        Args:
            model: model name; "" if the request named no configured model.
            api: "Predict", "Classify", "Regress", ...
            entrypoint: "GRPC" or "REST".
            status: "OK", or the name of the gRPC status code.
            seconds: time from arrival to response.
        """
        self._requests.add(model, status)
        self._latency.labels(model, api, entrypoint).observe(seconds * 1e6)

    def observe_runtime(self, model: str, api: str, seconds: float) -> None:
        """Record how long a request ran, including its wait in the queue."""
        self._runtime.labels(model, api, "TF2").observe(seconds * 1e6)

    def count_load(self, path: str, *, loaded: bool) -> None:
        """Count an attempt to load a version's directory (cc/saved_model/loader.cc of TensorFlow)."""
        self._loads.add(path, "success" if loaded else "fail")

    def observe_warmup(self, path: str, status: str, seconds: float) -> None:
        """Record the duration and status of a version's warm-up."""
        self._warmup.labels(path, status).observe(seconds * 1e6)

    def observe_batch(self, model: str, rows: int, padding: int, waits: Sequence[float]) -> None:
        """Record a batch that ran.

        Args:
            model: model name.
            rows: number of rows, including padding.
            padding: number of padding rows.
            waits: seconds that each request waited in the queue.
        """
        self._batches.add(model)
        self._batch.labels(model).observe(rows)
        self._padding.labels(model).observe(padding)
        for seconds in waits:
            self._queuing.labels(model).observe(seconds * 1e6)

    def render(self) -> bytes:
        """Return all metrics in the Prometheus text format."""
        from prometheus_client import generate_latest

        return generate_latest(self._registry)


class _UnsuffixedCounter:
    """A counter without the `_total` suffix that prometheus_client's own Counter adds."""

    def __init__(self, name: str, documentation: str, labels: Sequence[str]) -> None:
        self._name, self._documentation, self._labels = name, documentation, labels
        self._counts: Counter[tuple[str, ...]] = Counter()
        self._lock = threading.Lock()

    def add(self, *labels: str) -> None:
        with self._lock:
            self._counts[labels] += 1

    def collect(self) -> Iterator[Metric]:
        from prometheus_client.metrics_core import UnknownMetricFamily

        metric = UnknownMetricFamily(self._name, self._documentation, labels=self._labels)
        with self._lock:
            counts = dict(self._counts)
        for labels, count in counts.items():
            metric.add_metric(labels, count)
        yield metric
