"""The server's figures for Prometheus, under the names of TensorFlow Serving.

Its "/" are ":" (util/prometheus_exporter.cc), its times microseconds, and the counters have no
`_total` behind them, so that dashboards and alerts written for it show this server too. Where its
batching session's figures are by thread pool, these are by model.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_TIMES = tuple(10 * 1.8**power for power in range(33))
"""Upper bounds in microseconds, as monitoring::Buckets::Exponential(10, 1.8, 33) has them."""

_ROWS = tuple(2.0**power for power in range(15))

_PREFIX = ":tensorflow:serving:"
_LOADER = ":tensorflow:cc:saved_model:"


class Metrics:
    """What one server counts; each has its own registry."""

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Histogram

        self._registry = CollectorRegistry(auto_describe=False)

        def histogram(name: str, text: str, labels: Sequence[str], bounds: Sequence[float] = _TIMES) -> Any:
            return Histogram(_PREFIX + name, text, labels, registry=self._registry, buckets=bounds)

        self._requests = _Counts(
            _PREFIX + "request_count", "Requests by model and outcome.", ("model_name", "status")
        )
        self._registry.register(self._requests)
        self._latency = histogram(
            "request_latency", "Microseconds of a whole request.", ("model_name", "API", "entrypoint")
        )
        self._runtime = histogram(
            "runtime_latency", "Microseconds in the model.", ("model_name", "API", "runtime")
        )
        self._warmup = histogram(
            "model_warmup_latency", "Microseconds that warming up took.", ("model_path", "status")
        )
        self._queuing = histogram(
            "batching_session:queuing_latency",
            "Microseconds that a request waited for its batch to begin.",
            ("model_name",),
        )
        self._padding = histogram(
            "batching_session:padding_size", "Rows added to a batch.", ("model_name",), (0.0, *_ROWS)
        )
        self._batch = histogram(
            "batching_session:processed_batch_size",
            "Rows of a batch, added ones included.",
            ("model_name",),
            _ROWS,
        )
        self._batches = _Counts(
            _PREFIX + "batching_session:wrapped_run_count", "Batches that ran.", ("model_name",)
        )
        self._registry.register(self._batches)
        self._loads = _Counts(
            _LOADER + "load_attempt_count",
            "Versions that were loaded, or were not.",
            ("model_path", "status"),
        )
        self._registry.register(self._loads)

    def request(self, model: str, api: str, entrypoint: str, status: str, seconds: float) -> None:
        """A request was answered.

        Args:
            model: the model's name, "" where the request named none that is there.
            api: "Predict", "Classify", "Regress", ...
            entrypoint: "GRPC" or "REST".
            status: "OK", or the name of the gRPC status code.
            seconds: from its arrival to the answer.
        """
        self._requests.add(model, status)
        self._latency.labels(model, api, entrypoint).observe(seconds * 1e6)

    def runtime(self, model: str, api: str, seconds: float) -> None:
        """The model ran for a request, its wait in the queue included."""
        self._runtime.labels(model, api, "TF2").observe(seconds * 1e6)

    def load(self, path: str, *, loaded: bool) -> None:
        """A version's directory was loaded, or does not load (cc/saved_model/loader.cc of TensorFlow)."""
        self._loads.add(path, "success" if loaded else "fail")

    def warmup(self, path: str, status: str, seconds: float) -> None:
        """A version was warmed, or was not."""
        self._warmup.labels(path, status).observe(seconds * 1e6)

    def batch(self, model: str, rows: int, padding: int, waits: Sequence[float]) -> None:
        """A batch ran: its rows with padding, the padding among them, seconds each request waited."""
        self._batches.add(model)
        self._batch.labels(model).observe(rows)
        self._padding.labels(model).observe(padding)
        for seconds in waits:
            self._queuing.labels(model).observe(seconds * 1e6)

    def text(self) -> bytes:
        """All of them in Prometheus' text format."""
        from prometheus_client import generate_latest

        return generate_latest(self._registry)


class _Counts:
    """A counter whose samples are named like it, without the `_total` of prometheus_client's own."""

    def __init__(self, name: str, text: str, labels: tuple[str, ...]) -> None:
        self._name, self._text, self._labels = name, text, labels
        self._counts: Counter[tuple[str, ...]] = Counter()
        self._lock = threading.Lock()

    def add(self, *labels: str) -> None:
        with self._lock:
            self._counts[labels] += 1

    def collect(self) -> Iterator[Metric]:
        from prometheus_client.metrics_core import Metric

        metric = Metric(self._name, self._text, "unknown")
        with self._lock:
            counts = dict(self._counts)
        for labels, count in counts.items():
            metric.add_sample(self._name, dict(zip(self._labels, labels, strict=True)), count)
        yield metric
