"""Prometheus metrics and OpenTelemetry spans of the client, and that they cost nothing unless enabled."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import Any

import grpc
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from prometheus_client import CollectorRegistry

from serving import protos
from serving.client import AsyncClient, Client, Metrics, Prediction, Retry
from serving.errors import ModelNotFound
from tests.support.fake_grpc_server import answer_for, fake_grpc_server

pytestmark = pytest.mark.server

FAST = Retry(attempts=3, first=0.001, most=0.01)


def classify(asynchronous: bool, address: str, photos: list[bytes], **settings: Any) -> list[Prediction]:
    if not asynchronous:
        with Client(address, model="food", retry=FAST, **settings) as client:
            return client.classify(photos)

    async def ask() -> list[Prediction]:
        async with AsyncClient(address, model="food", retry=FAST, **settings) as client:
            return await client.classify(photos)

    return asyncio.run(ask())


class UnavailableOnce:
    """Answers UNAVAILABLE to the first call; records the headers of every call."""

    def __init__(self) -> None:
        self.headers: list[dict[str, Any]] = []

    def __call__(self, request: Any, context: grpc.ServicerContext) -> Any:
        self.headers.append(dict(context.invocation_metadata()))
        if len(self.headers) == 1:
            context.abort(grpc.StatusCode.UNAVAILABLE, "busy")
        return answer_for(list(request.inputs["image_bytes"].string_val))


@pytest.mark.parametrize("asynchronous", [False, True])
def test_metrics_count_calls_retries_and_photos(asynchronous: bool) -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    with fake_grpc_server({protos.PREDICT: UnavailableOnce()}) as address:
        classify(asynchronous, address, [b"a", b"bad", b"b", b"/no/file"], metrics=metrics)

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"hubhead_client_{name}", {"model": "food", **labels})

    assert value("requests_total", method="Predict", code="UNAVAILABLE") == 1
    assert value("requests_total", method="Predict", code="OK") == 1
    assert value("retries_total", method="Predict") == 1
    assert value("request_seconds_count", method="Predict") == 2
    assert value("photos_total", status="ok") == 3
    assert value("photos_total", status="corrupt") == 1
    assert value("under_way") == 0


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("count", [2, 70])
def test_each_attempt_is_a_child_span_of_the_caller_and_is_propagated_to_the_server(
    count: int, asynchronous: bool
) -> None:
    spans = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    tracer = provider.get_tracer("test")
    server = UnavailableOnce()
    with (
        fake_grpc_server({protos.PREDICT: server}) as address,
        tracer.start_as_current_span("caller") as caller,
    ):
        classify(asynchronous, address, [b"a"] * count, tracer=tracer)
    found = [span for span in spans.get_finished_spans() if span.name != "caller"]
    assert len(found) == len(server.headers) == (2 if count == 2 else 4)
    assert {span.name for span in found} == {"tensorflow.serving.PredictionService/Predict"}
    assert {span.kind for span in found} == {SpanKind.CLIENT}
    assert {span.parent.span_id for span in found if span.parent} == {caller.get_span_context().span_id}
    [failed] = [span for span in found if span.status.status_code is StatusCode.ERROR]
    assert failed.attributes is not None
    assert failed.attributes["rpc.grpc.status_code"] == 14
    assert sorted(int(str((span.attributes or {})["hubhead.attempt"])) for span in found)[-1] == 2
    carried = {header["traceparent"].split("-")[2] for header in server.headers}
    assert carried == {f"{span.context.span_id:016x}" for span in found}


def test_metrics_count_a_failure_under_its_grpc_code() -> None:
    def answer(request: Any, context: grpc.ServicerContext) -> Any:
        context.abort(grpc.StatusCode.NOT_FOUND, "no such model")

    registry = CollectorRegistry()
    with fake_grpc_server({protos.PREDICT: answer}) as address, pytest.raises(ModelNotFound):
        classify(False, address, [b"a"], metrics=Metrics(registry))
    labels = {"model": "food", "method": "Predict", "code": "NOT_FOUND"}
    assert registry.get_sample_value("hubhead_client_requests_total", labels) == 1


def test_client_without_telemetry_imports_neither_prometheus_nor_opentelemetry() -> None:
    code = (
        "import sys; from serving.client import Client; Client('localhost:1', model='m'); print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert loaded.isdisjoint({"prometheus_client", "opentelemetry", "tensorflow"})
