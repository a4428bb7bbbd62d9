"""Requests and results of `run`, and causes of connection errors."""

from __future__ import annotations

import asyncio
import http.server
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from serving import protos
from serving.client import AsyncClient, Client, Retry, Tls
from serving.contract import PROBABILITIES
from serving.errors import HubheadError, InvalidRequest, ServerUnavailable, TooLarge
from serving.protos import tensors
from tests.support.fake_grpc_server import Answer, answer_for, fake_grpc_server, free_port

pytestmark = pytest.mark.server

ONCE = Retry(attempts=1)


def respond(outputs: dict[str, Any]) -> Any:
    """Return a PredictResponse."""
    response = protos.PredictResponse()
    for name, value in outputs.items():
        response.outputs[name].CopyFrom(tensors.encode(np.asarray(value)))
    return response


def answer_with(outputs: Any, seen: list[int]) -> dict[str, Answer]:
    """Return the answers of a server whose model is a function of x; `seen` gets the rows of each request."""

    def answer(request: Any, _: grpc.ServicerContext) -> Any:
        x = tensors.decode(request.inputs["x"], "x")
        seen.append(len(x) if x.ndim else 0)
        return respond(outputs(x))

    return {protos.PREDICT: answer}


# --- Rows of run -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [
        # Ragged rows [[0], [0, 1], [0, 1, 2], ...]: flat values and the row that each begins at.
        (
            lambda x: {"values": np.repeat(x, x.astype(int) % 3), "splits": np.append(0, np.cumsum(x % 3))},
            {"values": 99, "splits": 101},
        ),
        # One value a row: each output has as many rows as the request, and still cannot be joined.
        (lambda x: {"values": x, "value_rowids": np.arange(len(x))}, {"values": 100, "value_rowids": 100}),
        (lambda x: {"fraction": x / x.sum()}, {"fraction": 100}),
        (lambda x: {"mean": x.mean()}, {"mean": None}),
    ],
    ids=["ragged", "row ids", "sum over the rows", "scalar"],
)
def test_run_sends_rows_of_an_unknown_model_in_one_request(outputs: Any, expected: Any) -> None:
    seen: list[int] = []
    x = np.arange(100, dtype=np.float32)
    with fake_grpc_server(answer_with(outputs, seen)) as address, Client(address, model="m") as client:
        found = client.run("serving_default", {"x": x})
    assert seen == [100]
    assert {name: len(value) if value.ndim else None for name, value in found.items()} == expected
    for name, value in outputs(x).items():
        assert np.array_equal(found[name], value)


def test_run_divides_rows_of_a_bundles_signature_among_requests() -> None:
    sizes: list[int] = []

    def answer(request: Any, _: grpc.ServicerContext) -> Any:
        rows = tensors.decode(request.inputs["embedding"], "embedding")
        sizes.append(len(rows))
        return respond({PROBABILITIES: rows * 2, "known": rows[:, 0] > 5})

    rows = np.arange(140, dtype=np.float32).reshape(70, 2)
    with fake_grpc_server({protos.PREDICT: answer}) as address, Client(address, model="m") as client:
        found = client.run("classify_embedding", {"embedding": rows})
    assert sizes == [32, 32, 6]
    assert np.array_equal(found[PROBABILITIES], rows * 2)
    assert found["known"].shape == (70,)


def test_run_sends_one_request_if_a_model_has_the_input_of_a_bundle_but_other_outputs() -> None:
    def answer(request: Any, _: grpc.ServicerContext) -> Any:
        images = list(request.inputs["image_bytes"].string_val)
        return respond({"boxes": np.arange(2 * len(images)), "starts": np.arange(len(images))})

    with fake_grpc_server({protos.PREDICT: answer}) as address, Client(address, model="m") as client:
        found = client.run("serving_default", {"image_bytes": [b"photo"] * 40})
    assert found["boxes"].tolist() == list(range(80))
    assert found["starts"].tolist() == list(range(40))


def limit_batches(outputs: Any, maximum: int) -> dict[str, Answer]:
    """Return the answers of a server that merges rows into batches, as with --enable_batching."""

    def answer(request: Any, context: grpc.ServicerContext) -> Any:
        x = tensors.decode(request.inputs["x"], "x")
        if len(x) > maximum:
            details = f"Task size {len(x)} is larger than maximum input batch size {maximum}"
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, details)
        return respond(outputs(x))

    return {protos.PREDICT: answer}


def test_run_divides_rows_for_a_server_that_states_its_maximum_batch_size() -> None:
    x = np.arange(250, dtype=np.float32)
    answers = limit_batches(lambda x: {"y": 2 * x}, 100)
    with fake_grpc_server(answers) as address, Client(address, model="m") as client:
        assert np.array_equal(client.run("double", {"x": x})["y"], 2 * x)


@pytest.mark.parametrize(
    "outputs",
    [lambda x: {"y": x[:-1]}, lambda x: {"y": x.sum()}, lambda x: {"y": np.zeros((len(x), int(x[0]) + 1))}],
    ids=["fewer rows", "scalar", "other widths"],
)
def test_run_reports_outputs_of_several_requests_that_cannot_be_joined(outputs: Any) -> None:
    with (
        fake_grpc_server(limit_batches(outputs, 10)) as address,
        Client(address, model="m") as client,
        pytest.raises(InvalidRequest, match="cannot be joined"),
    ):
        client.run("double", {"x": np.arange(25, dtype=np.float32)})


def test_run_reports_a_message_that_is_too_large_instead_of_dividing_its_rows() -> None:
    options = [("grpc.max_receive_message_length", 100_000)]
    with (
        fake_grpc_server(answer_with(lambda x: {"y": x}, []), options=options) as address,
        Client(address, model="m") as client,
        pytest.raises(TooLarge, match="Give fewer rows"),
    ):
        client.run("double", {"x": np.zeros((20, 2000), np.float32)})


def test_run_sends_400_000_rows_within_seconds() -> None:
    seen: list[int] = []
    answers = answer_with(lambda x: {"y": x}, seen)
    with fake_grpc_server(answers) as address, Client(address, model="m", timeout=60) as client:
        begin = time.monotonic()
        client.run("double", {"x": np.zeros(400_000, np.float32)})
        assert time.monotonic() - begin < 10
    assert seen == [400_000]


@pytest.mark.parametrize("x", [np.array(3.0, np.float32), np.float32(3)], ids=["array", "number"])
def test_run_takes_and_returns_scalars(x: Any) -> None:
    def ask_async(address: str) -> Any:
        async def ask() -> Any:
            async with AsyncClient(address, model="m") as client:
                return await client.run("double", {"x": x})

        return asyncio.run(ask())

    with fake_grpc_server(answer_with(lambda x: {"y": 2 * x}, [])) as address:
        with Client(address, model="m") as client:
            found = client.run("double", {"x": x})
        for outputs in (found, ask_async(address)):
            assert (outputs["y"].shape, outputs["y"].dtype, outputs["y"].item()) == ((), np.float32, 6.0)


# --- Servers that go away --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "details"),
    [
        (grpc.StatusCode.CANCELLED, "CANCELLED"),
        (grpc.StatusCode.CANCELLED, "Received RST_STREAM with error code 8"),
        (grpc.StatusCode.UNAVAILABLE, "Server shutting down"),
        (grpc.StatusCode.INTERNAL, "Received RST_STREAM with error code 2"),
        (grpc.StatusCode.UNKNOWN, "Stream removed"),
    ],
)
@pytest.mark.parametrize("way", ["classify", "iclassify", "asyncio"])
def test_calls_that_a_stopping_server_ends_are_retried(code: grpc.StatusCode, details: str, way: str) -> None:
    seen: list[int] = []

    def answer(request: Any, context: grpc.ServicerContext) -> Any:
        seen.append(1)
        if len(seen) == 1:
            context.abort(code, details)
        return answer_for(list(request.inputs["image_bytes"].string_val))

    async def ask(address: str) -> Any:
        async with AsyncClient(address, model="food") as client:
            return await client.classify([b"photo"])

    with fake_grpc_server({protos.PREDICT: answer}) as address, Client(address, model="food") as client:
        if way == "asyncio":
            [prediction] = asyncio.run(ask(address))
        elif way == "classify":
            [prediction] = client.classify([b"photo"])
        else:
            [(_, prediction)] = client.iclassify([b"photo"])
    assert prediction.label == "apple"
    assert len(seen) == 2


# --- Connections -----------------------------------------------------------------------------------------


def test_local_server_is_asked_without_the_proxy_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, f"http://localhost:{free_port()}")
    answers: dict[str, Answer] = {protos.PREDICT: lambda *_: answer_for([b"photo"])}
    with fake_grpc_server(answers) as address, Client(address, model="food") as client:
        assert client.classify([b"photo"])[0].label == "apple"

        async def ask() -> Any:
            async with AsyncClient(address.replace("localhost", "127.0.0.1"), model="food") as other:
                return await other.classify([b"photo"])

        assert asyncio.run(ask())[0].label == "apple"


@pytest.fixture
def http_server() -> Iterator[str]:
    """Yield the address of a server that speaks HTTP/1.1 only.

    It is no host name: of localhost's two addresses gRPC reports the error of the one that it tried last.
    """
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join(20)
    server.server_close()


def explain(target: str, **settings: Any) -> str:
    """Return the error of a call to a server that cannot be reached."""
    with (
        Client(target, model="food", retry=ONCE, timeout=10, **settings) as client,
        pytest.raises(HubheadError) as caught,
    ):
        client.status()
    assert isinstance(caught.value, ServerUnavailable)
    return str(caught.value)


def test_connection_error_names_the_rest_port(http_server: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert "REST port" in explain(http_server)
    message = explain(http_server, tls=Tls())
    assert "does not speak TLS" in message or "closes every connection" in message


@pytest.mark.needs("openssl")
def test_connection_error_names_tls_and_the_certificate(tmp_path: Path) -> None:
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=food"
    command += f" -addext subjectAltName=DNS:food.example -keyout {key} -out {cert}"
    subprocess.run(command.split(), check=True, capture_output=True)
    credentials = grpc.ssl_server_credentials([(key.read_bytes(), cert.read_bytes())])
    with fake_grpc_server({}, credentials=credentials) as address:
        assert "requires TLS" in explain(address)
        assert "certificate cannot be verified" in explain(address, tls=Tls())
        assert "for another host name" in explain(address, tls=Tls(ca=cert))
    with fake_grpc_server({}) as address:
        assert "does not speak TLS" in explain(address, tls=Tls(ca=cert))


def test_connection_error_names_the_proxy(http_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://user:secret@{http_server}")
    message = explain("food.example:8500")
    assert "goes through the proxy of http_proxy" in message
    assert "secret" not in message


def test_connection_error_names_an_unknown_host() -> None:
    assert "host name cannot be resolved" in explain("food.invalid:8500")


# --- Clients that are used elsewhere ---------------------------------------------------------------------
