"""Tables of the Prometheus metrics, from registries in which every metric has been used once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tests.support.reference.tables import code, format_table

_CREATED = "_created"


def describe_server_metrics() -> str:
    """Return a table of the metrics of the local model server."""
    from serving.server.metrics import Metrics

    metrics = Metrics()
    metrics.add_model("food", 1, "onnx")
    metrics.count_request("food", "Predict", "GRPC", "OK", 0.1)
    metrics.observe_runtime("food", "Predict", 0.1)
    metrics.count_load("/models/food/1", loaded=True)
    metrics.observe_warmup("/models/food/1", "OK", 0.1)
    metrics.observe_batch("food", rows=4, padding=1, waits=[0.1])
    return _describe(metrics.render().decode())


def describe_client_metrics() -> str:
    """Return a table of the metrics of the client."""
    from prometheus_client import CollectorRegistry, generate_latest

    from serving.client.telemetry import Metrics

    registry = CollectorRegistry()
    metrics = Metrics(registry)
    metrics.requests.labels("food", "Predict", "OK").inc()
    metrics.seconds.labels("food", "Predict").observe(0.1)
    metrics.retries.labels("food", "Predict").inc()
    metrics.under_way.labels("food").inc()
    metrics.photos.labels("food", "ok").inc()
    return _describe(generate_latest(registry).decode())


def describe_job_metrics() -> str:
    """Return a table of the metrics of a scoring job."""
    from prometheus_client import generate_latest

    from batch.jobs.metrics import build_registry
    from batch.monitoring.drift import Change
    from batch.output.run_diff import RunDiff

    change = Change(0.1, 0.01, 0.1, 0.25)
    run: Any = {
        "models": [{"name": "food", "version": 1, "labels": {"apple": 1}, "abstained": 1}],
        "photos": 2,
        "statuses": {"ok": 2},
        "seconds": 1.0,
        "this_run": {"photos": 2, "photos_per_second": 2.0},
    }
    changes = RunDiff("before", change, {"food/1": {"labels": change, "scores": change}})
    return _describe(generate_latest(build_registry(run, changes)).decode())


def _describe(exposition: str) -> str:
    """Return a table of the metric families in Prometheus' text format."""
    from prometheus_client.parser import text_string_to_metric_families

    families = [
        family for family in text_string_to_metric_families(exposition) if not family.name.endswith(_CREATED)
    ]
    rows = [
        (
            code(family.name + ("_total" if family.type == "counter" else "")),
            "counter" if family.type == "unknown" else family.type,
            _list_labels(family.samples),
            family.documentation,
        )
        for family in families
    ]
    return format_table(("metric", "type", "labels", "meaning"), rows)


def _list_labels(samples: Iterable[Any]) -> str:
    """Return the labels in the order of the first sample that has all of them."""
    names = max(([name for name in sample.labels if name != "le"] for sample in samples), key=len)
    return ", ".join(map(code, names))
