"""A run's figures as Prometheus metrics: for the node exporter's textfile collector, or a Pushgateway.

All are gauges of the newest run, since a job that ends keeps no counters:

| metric | labels | what it is |
|---|---|---|
| hubhead_score_photos | | photos that have rows |
| hubhead_score_worked_photos | | of these, photos that this run worked on |
| hubhead_score_rejected_photos | reason | photos without an embedding, by status |
| hubhead_score_rows | model, version | rows of each model |
| hubhead_score_unlabelled_rows | model, version | of these, rows in which the model abstains |
| hubhead_score_photos_per_second | | photos of this run by the time of its shards; absent without any |
| hubhead_score_duration_seconds | | from the command to the last file |
| hubhead_score_change | model, version, of | stability index, of labels or scores, since the run before |
| hubhead_score_embedding_shift | | distance of the mean embeddings since the run before |
| hubhead_score_success_timestamp_seconds | | when the run ended well, in Unix time |

Every one has the labels `model` and `version`, too; several models are joined by commas.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from batch.output.run_diff import RunDiff, RunRecord, model_key
from serving.contract import Status
from serving.errors import InputError
from serving.storage import files

_log = logging.getLogger(__name__)

JOB = "hubhead_score"
PUSH_SECONDS = 10.0


def check_installed() -> None:
    """See that the extra is there, before any work is done.

    Raises:
        InputError: it is not.
    """
    try:
        import prometheus_client  # noqa: F401
    except ImportError as error:
        raise InputError(
            "Metrics need prometheus-client, which is not installed.", remedy="pip install 'hubhead[metrics]'"
        ) from error


def build_registry(run: RunRecord, changes: RunDiff | None = None) -> Any:
    """A registry of prometheus_client with the figures of a run.

    Args:
        run: what run.json says.
        changes: since another run.
    """
    from prometheus_client import CollectorRegistry, Gauge

    made = CollectorRegistry()
    names, versions = (",".join(str(model[key]) for model in run["models"]) for key in ("name", "version"))

    def gauge(name: str, about: str, *labels: str) -> Any:
        found = Gauge(f"{JOB}_{name}", about, ("model", "version", *labels), registry=made)
        return found if labels else found.labels(names, versions)

    gauge("photos", "Photos that have rows.").set(run["photos"])
    gauge("worked_photos", "Photos that the newest run worked on.").set(run["this_run"]["photos"])
    rejected = gauge("rejected_photos", "Photos without an embedding, by status.", "reason")
    for status in Status:
        if not status.usable:
            rejected.labels(names, versions, status.value).set(run["statuses"].get(status.value, 0))
    if (rate := run["this_run"]["photos_per_second"]) is not None:
        gauge("photos_per_second", "Photos of the newest run by the time of its shards.").set(rate)
    gauge("duration_seconds", "The newest run, from the command to the last file.").set(run["seconds"])
    _add_model_gauges(run, changes, made)
    if changes and changes.embeddings:
        shift = gauge("embedding_shift", "Distance of the mean embeddings since the run before.")
        shift.set(changes.embeddings.value)
    gauge("success_timestamp_seconds", "When the newest run ended well.").set(time.time())
    return made


def _add_model_gauges(run: RunRecord, changes: RunDiff | None, made: Any) -> None:
    from prometheus_client import Gauge

    labels = ("model", "version")
    rows = Gauge(f"{JOB}_rows", "Rows of each model, of usable photos.", labels, registry=made)
    none = Gauge(f"{JOB}_unlabelled_rows", "Rows in which the model abstains.", labels, registry=made)
    change = Gauge(
        f"{JOB}_change", "Population stability index since the run before.", (*labels, "of"), registry=made
    )
    for model in run["models"]:
        name, version = model["name"], str(model["version"])
        rows.labels(name, version).set(sum(model["labels"].values()) + model["abstained"])
        none.labels(name, version).set(model["abstained"])
        for what, found in (changes.models.get(model_key(model), {}) if changes else {}).items():
            change.labels(name, version, what).set(found.value)


def write_textfile(path: str, made: Any) -> None:
    """Write a registry for the node exporter, which reads `*.prom`; whole or not at all.

    Raises:
        OutputError: the place cannot be written.
    """
    from prometheus_client import generate_latest

    files.write(files.absolute(path), generate_latest(made))


def push(url: str, made: Any) -> None:
    """Push a registry to a Pushgateway, in place of what the job pushed before; a failure is a warning."""
    import http.client

    from prometheus_client import push_to_gateway

    try:
        push_to_gateway(url, job=JOB, registry=made, timeout=PUSH_SECONDS)
    except (OSError, ValueError, http.client.HTTPException) as error:  # urllib's, of codes beyond 2xx too
        _log.warning("The metrics did not reach %s: %s", url, error)
