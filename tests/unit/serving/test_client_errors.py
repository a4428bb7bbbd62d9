"""Client logic without a server: backoff, deadlines, the adaptive concurrency limit, invalid settings."""

from __future__ import annotations

import io
import time
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import Image

from serving import protos
from serving.client import Client, ClientConfig, Retry, sans_io
from serving.client.concurrency import ALPHA, BETA, AdaptiveLimit
from serving.client.operations import Core
from serving.client.photos import encode_png
from serving.client.retry import with_retries
from serving.errors import (
    DeadlineExceeded,
    InputError,
    InvalidRequest,
    Overloaded,
    ServerError,
    ServerUnavailable,
    TooLarge,
)
from serving.protos import tensors


def test_backoff_is_drawn_from_a_range_that_doubles_up_to_the_maximum() -> None:
    retry = Retry(first=0.1, most=0.35)
    for failures, longest in ((1, 0.1), (2, 0.2), (3, 0.35), (500, 0.35)):
        waits = [retry.backoff_seconds(failures) for _ in range(2000)]
        assert 0 <= min(waits) < 0.05 * longest
        assert 0.95 * longest < max(waits) <= longest


@pytest.mark.parametrize("shape", [(1, 1, 3), (7, 5, 3), (64, 48, 3)])
def test_png_encoding_is_lossless(shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(3).integers(0, 256, shape, np.uint8)
    with Image.open(io.BytesIO(encode_png(pixels))) as image:
        assert image.format == "PNG"
        assert np.array_equal(np.asarray(image), pixels)


@pytest.mark.parametrize("headers", [{"grpc-timeout": "1"}, {"a b": "c"}, {"a": "ü"}, {"x-bin": "c"}])
def test_invalid_headers_are_an_input_error(headers: dict[str, str]) -> None:
    with pytest.raises(InputError, match="header"):
        Client("localhost:1", model="food", headers=headers)


# --- Adaptive concurrency limit ---------------------------------------------------------------------------


def simulate_server(limit: AdaptiveLimit, capacity: float, answers: int, others: float = 0.0) -> list[float]:
    """Return the limit after each response of a server that runs `capacity` requests at a time.

    It queues the rest, among them `others` requests of other clients.
    """
    values = []
    for _ in range(answers):
        under_way = int(limit.value)
        limit.record_response(32, max(1.0, (under_way + others) / capacity), under_way)
        values.append(limit.value)
    return values


@pytest.mark.parametrize("capacity", [1.0, 4.0, 10.0])
def test_adaptive_limit_settles_slightly_above_the_servers_capacity(capacity: float) -> None:
    values = simulate_server(AdaptiveLimit(64), capacity, 900)[-300:]
    assert capacity <= min(values)
    assert max(values) <= capacity + BETA + 2


def test_adaptive_limit_decreases_while_other_clients_fill_the_queue() -> None:
    limit = AdaptiveLimit(64)
    alone = simulate_server(limit, 4.0, 400)[-1]
    crowded = simulate_server(limit, 4.0, 400, others=12.0)[-1]
    assert crowded <= alone - 1


def test_adaptive_limit_is_halved_once_per_burst_of_overload_errors_and_stays_in_bounds() -> None:
    limit = AdaptiveLimit(16)
    simulate_server(limit, 100.0, 100)
    assert limit.value == 16
    for _ in range(5):
        limit.record_overload(now=10.0, seconds=0.5)
    assert limit.value == 8
    for now in range(11, 40):
        limit.record_overload(now=float(now), seconds=0.5)
    assert limit.value == 1
    assert ALPHA < BETA


@pytest.mark.parametrize(
    "settings", [{"max_photos": 0}, {"timeout": 0}, {"max_bytes": 0}, {"max_concurrency": 0}]
)
def test_invalid_client_settings_are_an_input_error(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        Client("localhost:1", model="food", **settings)


def test_error_hierarchy_too_large_is_invalid_request_and_overloaded_is_unavailable() -> None:
    assert issubclass(TooLarge, InvalidRequest)
    assert issubclass(Overloaded, ServerUnavailable)


class FakeRpcError(grpc.RpcError):  # type: ignore[misc]
    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__()
        self._told = code, details

    def code(self) -> grpc.StatusCode:
        return self._told[0]

    def details(self) -> str:
        return self._told[1]


@pytest.mark.parametrize(
    ("unavailable_seconds", "expected"),
    [(8.0, ServerUnavailable), (1.0, DeadlineExceeded)],
    ids=["most", "little"],
)
def test_retry_with_little_time_left_does_not_hide_the_previous_error(
    monkeypatch: pytest.MonkeyPatch, unavailable_seconds: float, expected: type[ServerError]
) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def perform(step: sans_io.Step) -> None:
        if isinstance(step, sans_io.Pause):
            return
        if now[0] < unavailable_seconds:
            now[0] += 1
            raise FakeRpcError(grpc.StatusCode.UNAVAILABLE, "failed to connect to all addresses")
        now[0] += step.timeout  # type: ignore[union-attr, operator]
        raise FakeRpcError(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")

    request = protos.PredictRequest()
    call = sans_io.Call(protos.PREDICT, request, protos.PredictResponse, 10.0)
    with pytest.raises(ServerError) as raised:
        sans_io.run_operation(with_retries(call, Retry(100, 0.0), "there:1", "food"), perform)
    assert type(raised.value) is expected


@pytest.mark.parametrize(("elapsed", "expected"), [(9.99, DeadlineExceeded), (1.0, ServerUnavailable)])
def test_cancellation_by_the_server_at_the_deadline_is_deadline_exceeded(
    monkeypatch: pytest.MonkeyPatch, elapsed: float, expected: type[ServerError]
) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def perform(step: sans_io.Step) -> None:
        if isinstance(step, sans_io.Call):
            now[0] += elapsed
            raise FakeRpcError(grpc.StatusCode.CANCELLED, "CANCELLED")

    call = sans_io.Call(protos.PREDICT, protos.PredictRequest(), protos.PredictResponse, 10.0)
    with pytest.raises(ServerError) as raised:
        sans_io.run_operation(with_retries(call, Retry(), "there:1", "food"), perform)
    assert type(raised.value) is expected


def test_no_rows_are_lost_when_the_server_states_its_maximum_batch_size_between_two_requests() -> None:
    def perform(step: sans_io.Step) -> Any:
        assert isinstance(step, sans_io.Call)
        values = tensors.decode(step.request.inputs["x"], "x")
        if len(values) > 3:
            details = f"Task size {len(values)} is larger than maximum input batch size 3"
            raise FakeRpcError(grpc.StatusCode.INVALID_ARGUMENT, details)
        response = protos.PredictResponse()
        response.outputs["y"].CopyFrom(tensors.encode(values))
        return response

    core = Core(ClientConfig("there:1", model="double", max_photos=8, convert=False), lambda statuses: None)
    values = np.arange(15, dtype=np.float32)
    outputs = sans_io.run_operation(core.run("serving_default", {"x": values}), perform)
    assert outputs["y"].tolist() == values.tolist()
