"""Prometheus metrics of a run, for the node exporter's textfile collector or a Pushgateway.

All are gauges of the newest run, since a batch job ends and keeps no counters:

| metric | labels | meaning |
|---|---|---|
| hubhead_score_photos | | photos that have rows |
| hubhead_score_worked_photos | | photos that this run processed |
| hubhead_score_rejected_photos | reason | photos without an embedding, by status |
| hubhead_score_rows | model, version | rows with an embedding, by model |
| hubhead_score_unlabelled_rows | model, version | rows in which the model abstains |
| hubhead_score_photos_per_second | | photos of this run per second; absent without photos |
| hubhead_score_duration_seconds | | wall time from the start of the command to the last file |
| hubhead_score_change | model, version, of | population stability index since the previous run |
| hubhead_score_embedding_shift | | distance of the mean embeddings since the previous run |
| hubhead_score_success_timestamp_seconds | | Unix time at which the run succeeded |

Every metric also has the labels `model` and `version`; several models are joined with commas.
"""

from __future__ import annotations

import base64
import logging
import time
import urllib.request
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeAlias
from urllib.parse import unquote, urlsplit, urlunsplit

from batch.output.run_diff import RunDiff, model_key
from batch.output.run_record import RunRecord
from serving.contract import Status
from serving.errors import InputError
from serving.storage import files
from serving.text import redact

_log = logging.getLogger(__name__)

Headers: TypeAlias = list[tuple[str, str]]
Handler: TypeAlias = Callable[[str, str, float, Headers, bytes], Callable[[], None]]

JOB = "hubhead_score"
PUSH_SECONDS = 10.0


def check_installed() -> None:
    """Check that prometheus-client is installed; called before any work is done.

    Raises:
        InputError: it is not installed.
    """
    try:
        import prometheus_client  # noqa: F401
    except ImportError as error:
        raise InputError(
            "Metrics need prometheus-client, which is not installed.",
            remedy="Install it: pip install 'hubhead[metrics]'.",
        ) from error


def build_registry(run: RunRecord, changes: RunDiff | None = None) -> Any:
    """Return a prometheus_client registry with the metrics of a run.

    Args:
        run: content of run.json.
        changes: difference from the previous run; None if there is none.
    """
    from prometheus_client import CollectorRegistry, Gauge

    registry = CollectorRegistry()

    def add(name: str, text: str, values: Mapping[Any, float], *labels: str) -> None:
        """Add a gauge with its values by labels: model, version, and those given."""
        gauge = Gauge(f"{JOB}_{name}", text, ("model", "version", *labels), registry=registry)
        for key, value in values.items():
            gauge.labels(*key).set(value)

    models = {(model["name"], str(model["version"])): model for model in run["models"]}
    whole = (",".join(name for name, _ in models), ",".join(version for _, version in models))
    add("photos", "Photos that have rows.", {whole: run["photos"]})
    add("worked_photos", "Photos that the newest run processed.", {whole: run["this_run"]["photos"]})
    reasons = [status.value for status in Status if not status.usable]
    rejected = {(*whole, reason): run["statuses"].get(reason, 0) for reason in reasons}
    add("rejected_photos", "Photos without an embedding, by status.", rejected, "reason")
    if (rate := run["this_run"]["photos_per_second"]) is not None:
        add("photos_per_second", "Photos of the newest run per second.", {whole: rate})
    add("duration_seconds", "Wall time of the newest run.", {whole: run["seconds"]})
    rows = {key: sum(model["labels"].values()) + model["abstained"] for key, model in models.items()}
    add("rows", "Rows with an embedding, by model.", rows)
    unlabelled = {key: model["abstained"] for key, model in models.items()}
    add("unlabelled_rows", "Rows in which the model abstains.", unlabelled)
    by_model = changes.models if changes else {}
    psi = {
        (*key, of): change.value
        for key, model in models.items()
        for of, change in by_model.get(model_key(model), {}).items()
    }
    add("change", "Population stability index since the previous run.", psi, "of")
    if changes and changes.embeddings:
        shift = {whole: changes.embeddings.value}
        add("embedding_shift", "Distance of the mean embeddings since the previous run.", shift)
    add("success_timestamp_seconds", "Unix time at which the newest run succeeded.", {whole: time.time()})
    return registry


def write_textfile(path: str, registry: Any) -> None:
    """Write a registry atomically for the node exporter's textfile collector.

    Args:
        path: file to write; the collector reads `*.prom`.
        registry: registry of prometheus_client.

    Raises:
        OutputError: the file cannot be written.
    """
    from prometheus_client import generate_latest

    files.write(files.absolute(path), generate_latest(registry))


def push(url: str, registry: Any) -> None:
    """Push a registry to a Pushgateway in place of the previous push. A failure is logged as a warning.

    User and password in the URL are sent as basic authentication, and appear in no message. A gateway on this
    machine is reached without a proxy.
    """
    import http.client

    from prometheus_client import push_to_gateway
    from prometheus_client.exposition import default_handler

    from serving.client.grpc_errors import is_local

    shown = redact(url)
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        user, _, host = parts.netloc.rpartition("@")
        send = _send_directly if is_local(parts.hostname or "") else default_handler
        name, _, password = user.partition(":")
        handler = partial(_send_as, f"{unquote(name)}:{unquote(password)}", send) if user else send
        gateway = urlunsplit(parts._replace(netloc=host))
        push_to_gateway(gateway, JOB, registry, timeout=PUSH_SECONDS, handler=handler)
    except (OSError, ValueError, http.client.HTTPException) as error:  # HTTPError is an OSError
        _log.warning("Cannot push the metrics to %s: %s", shown, redact(str(error)))


def _send_as(
    user: str, send: Handler, url: str, method: str, timeout: float, headers: Headers, data: bytes
) -> Callable[[], None]:
    """Handler of prometheus_client that sends `name:password` as basic authentication."""
    token = base64.b64encode(user.encode()).decode("ascii")
    return send(url, method, timeout, [*headers, ("Authorization", f"Basic {token}")], data)


def _send_directly(
    url: str, method: str, timeout: float, headers: Headers, data: bytes
) -> Callable[[], None]:
    """Handler of prometheus_client that uses no proxy."""
    request = urllib.request.Request(url, data, dict(headers), method=method)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    return lambda: opener.open(request, timeout=timeout).close()
