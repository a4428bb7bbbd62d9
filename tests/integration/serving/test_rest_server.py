"""The REST port: paths, bodies, headers, limits and errors."""

from __future__ import annotations

import base64
import gzip
import http.client
import json
import logging
import socket
import threading
import urllib.parse
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving import protos
from serving.process import get_cpu_model
from serving.server import RunningServer, ServerSettings, start
from serving.server.config.settings import ModelSettings
from serving.server.metrics import Metrics
from serving.server.rest import admission, handler
from serving.text import redact_logs
from tests.support.fake_model import (
    LIMIT,
    FakeModelLoader,
    eventually,
    write_bundle_metadata,
    write_fake_model,
)

pytestmark = pytest.mark.server

JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models") / "double"
    write_fake_model(directory / "1")
    return directory


def settings_of(base: Path, **more: Any) -> ServerSettings:
    models = (ModelSettings("double", base, labels={"stable": 1}), ModelSettings("a/b c", base))
    return replace(
        ServerSettings(models=models, port=0, rest_api_port=0, metrics_path="/metrics"),
        allow_version_labels_for_unavailable_models=True,
        **more,
    )


@pytest.fixture(scope="module")
def server(base: Path) -> Iterator[RunningServer]:
    with start(settings_of(base), loader=FakeModelLoader()) as server:
        yield server


class HttpResponse:
    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status, self.headers, self.body = response.status, response.headers, response.read()

    @property
    def json(self) -> Any:
        assert self.headers["Content-Type"] == "application/json"
        return json.loads(self.body)


@pytest.fixture(params=["logs as they are", "redacted logs"])
def logs(request: pytest.FixtureRequest) -> Iterator[None]:
    """Logging as in a program that starts the server, and as in hubhead's commands."""
    before = logging.getLogRecordFactory()
    logging.setLogRecordFactory(logging.LogRecord)
    if request.param == "redacted logs":
        redact_logs()
    yield
    logging.setLogRecordFactory(before)


@pytest.mark.usefixtures("logs")
@pytest.mark.parametrize(
    "content", [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0", b"\x16\x03\x01", b"GET / HTTP/9\r\n\r\n"]
)
def test_bytes_that_are_not_http_are_answered_without_a_traceback_in_the_log(
    server: RunningServer, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_connection(("localhost", server.rest_port), LIMIT) as connection:
        connection.sendall(content + b"\r\n\r\n")
        assert b" 400 " in connection.recv(1000)
    assert not caplog.records


def send(
    server: RunningServer,
    method: str,
    path: str,
    body: Any = None,
    headers: Mapping[str, str] = JSON,
) -> HttpResponse:
    connection = http.client.HTTPConnection("localhost", server.rest_port, timeout=LIMIT)
    try:
        content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        connection.request(method, path, content, dict(headers))
        return HttpResponse(connection.getresponse())
    finally:
        connection.close()


def predict(server: RunningServer, body: Any = None, path: str = "/v1/models/double:predict") -> HttpResponse:
    return send(server, "POST", path, {"instances": [1, 2.5]} if body is None else body)


def test_predict_in_rows_and_columns_with_the_version_header(server: RunningServer) -> None:
    rows = predict(server)
    assert (rows.status, rows.json) == (200, {"predictions": [2.0, 5.0]})
    assert rows.headers["X-Model-Version"] == "1"
    assert b"2.0" in rows.body
    assert predict(server, {"inputs": {"x": [1]}}).json == {"outputs": [2.0]}


@pytest.mark.parametrize(
    "path",
    [
        "/v1/models/double/versions/1:predict",
        "/v1/models/double/versions/01:predict",
        "/v1/models/double/labels/stable:predict",
        "/V1/MODELS/double/Versions/1:PREDICT",
        "/v1/models/d%6Fuble:predict",
        "/v1/models/double:predict?key=1",
        "/v1/models/a%2Fb%20c:predict",
    ],
)
def test_paths_are_case_insensitive_and_unescaped(server: RunningServer, path: str) -> None:
    assert predict(server, path=path).json == {"predictions": [2.0, 5.0]}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/models/double:guess"),
        ("POST", "/v1/models/double"),
        ("POST", "/v1/models/double/labels/a/b:predict"),
        ("POST", "/v1/models/double/versions/x:predict"),
        ("POST", "/v1/models/double/metadata"),
        ("GET", "/v1/models/double:predict"),
        ("GET", "/v1/nothing"),
        ("PUT", "/v1/models/double"),
        ("OPTIONS", "/v1/models/double:predict"),
        ("GET", "/v1/models/%0A/x/y"),
    ],
)
def test_unknown_path_below_v1_is_malformed(server: RunningServer, method: str, path: str) -> None:
    answer = send(server, method, path, {})
    assert (answer.status, answer.json) == (400, {"error": f"Malformed request: {method} {path}"})


@pytest.mark.parametrize(
    "path", ["/v2/models/double", "/nothing", "/v1", "/index.html", "//v1/models/double"]
)
def test_other_paths_are_404_without_a_body(server: RunningServer, path: str) -> None:
    answer = send(server, "GET", path)
    assert (answer.status, answer.body) == (404, b"")


@pytest.mark.parametrize(
    ("path", "status", "text"),
    [
        ("/v1/models/none:predict", 404, "Servable not found for request: Latest(none)"),
        ("/v1/models/double/versions/7:predict", 404, "Servable not found for request: Specific(double, 7)"),
        (
            "/v1/models/double/versions/99999999999999999999:predict",
            400,
            "Failed to convert version: 99999999999999999999 to numeric.",
        ),
        ("/v1/models/double/labels/new:predict", 400, "Unrecognized servable version label: new"),
    ],
)
def test_unknown_models_versions_and_labels(server: RunningServer, path: str, status: int, text: str) -> None:
    answer = predict(server, path=path)
    assert (answer.status, answer.json) == (status, {"error": text})


def test_unknown_signature_has_the_error_text_of_rest(server: RunningServer) -> None:
    answer = predict(server, {"signature_name": "S", "instances": [1]})
    assert (answer.status, answer.json) == (
        400,
        {"error": 'Serving signature name: "S" not found in signature def'},
    )
    answer = predict(server, {"signature_name": 3, "instances": [1]})
    assert "'signature_name' key must be a string value." in answer.json["error"]


@pytest.mark.protocol("error.cut")
def test_rest_error_text_is_not_truncated(server: RunningServer) -> None:
    answer = predict(server, {"instances": [-1]})
    assert answer.status == 400
    assert answer.json == {"error": "x is negative" + "!" * 2000}


def test_status_and_metadata_of_a_model(server: RunningServer) -> None:
    available = {"version": "1", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
    for path in ("", "/versions/1", "/labels/whatever"):
        answer = send(server, "GET", f"/v1/models/double{path}")
        assert answer.json == {"model_version_status": [available]}
    assert send(server, "GET", "/v1/models/double/versions/7").json == {
        "error": "Could not find version 7 of model double"
    }
    missing = send(server, "GET", "/v1/models/none")
    assert (missing.status, missing.json) == (404, {"error": "Could not find any versions of model none"})
    assert send(server, "GET", "/v1/models").json == {"error": "Missing model name in request."}
    metadata = send(server, "GET", "/v1/models/double/metadata").json
    assert metadata["model_spec"] == {"name": "double", "signature_name": "", "version": "1"}
    signature = metadata["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert signature["inputs"]["x"]["dtype"] == "DT_FLOAT"
    assert signature["inputs"]["x"]["tensor_shape"] == {
        "dim": [{"size": "-1", "name": ""}],
        "unknown_rank": False,
    }
    assert send(server, "GET", "/v1/models/double/versions/7/metadata").status == 404


def test_gzip_and_chunked_bodies(server: RunningServer) -> None:
    packed = gzip.compress(json.dumps({"instances": [3]}).encode())
    answer = send(server, "POST", "/v1/models/double:predict", packed, {"Content-Encoding": "gzip"})
    assert answer.json == {"predictions": [6.0]}
    torn = send(server, "POST", "/v1/models/double:predict", packed[:-12], {"Content-Encoding": "gzip"})
    assert torn.status == 400
    connection = http.client.HTTPConnection("localhost", server.rest_port, timeout=LIMIT)
    connection.request("POST", "/v1/models/double:predict", iter([b'{"instan', b'ces": [4]}']))
    assert HttpResponse(connection.getresponse()).json == {"predictions": [8.0]}
    connection.close()


def test_photo_of_64_mib_is_accepted_and_a_larger_body_is_413(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo = base64.b64encode(bytes(64 << 20)).decode()
    answer = predict(server, {"instances": [{"b64": photo}]})
    assert answer.status == 400  # the body was read; the value is not a float
    assert "is not of expected type: float" in answer.json["error"]
    monkeypatch.setattr(admission, "MAX_BODY_BYTES", 1000)
    large = predict(server, {"instances": [1] * 1000})
    assert (large.status, large.json) == (413, {"error": "The body is larger than 1000 bytes."})
    bomb = gzip.compress(b" " * 10**7)
    answer = send(server, "POST", "/v1/models/double:predict", bomb, {"Content-Encoding": "gzip"})
    assert answer.status == 413
    assert predict(server).status == 200


def test_cors_headers_require_the_flag(server: RunningServer, base: Path) -> None:
    assert "Access-Control-Allow-Origin" not in predict(server).headers
    with start(settings_of(base, rest_api_enable_cors_support=True), loader=FakeModelLoader()) as cors_server:
        assert predict(cors_server).headers["Access-Control-Allow-Origin"] == "*"
        assert predict(cors_server, b"").headers["Access-Control-Allow-Origin"] == "*"
        preflight = send(cors_server, "OPTIONS", "/v1/models/double:predict")
        assert preflight.status == 200
        assert preflight.headers["Access-Control-Allow-Methods"] == "POST, GET"
        assert preflight.headers["Access-Control-Allow-Headers"] == "Content-Type"


@pytest.mark.protocol("rest.timeout")
def test_rest_timeout_is_504(base: Path) -> None:
    loader = FakeModelLoader(gated=True)
    with start(settings_of(base, rest_api_timeout_in_ms=200), loader=loader) as server:
        assert predict(server).status == 504
        # The same for a body that never arrives.
        with socket.create_connection(("localhost", server.rest_port), LIMIT) as slow:
            slow.sendall(b"POST /v1/models/double:predict HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{")
            received = b""
            while b"exceeded the time limit" not in received:
                received += slow.recv(1000)
            assert received.startswith(b"HTTP/1.1 504 ")
            assert b"--rest_api_timeout_in_ms" in received
        for model in loader.models.values():
            model.gate.set()
        eventually(lambda: predict(server).status == 200)


def test_too_many_rest_requests_in_flight_are_503(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "MAX_REQUESTS", 3)
    loader = FakeModelLoader(gated=True)
    with start(settings_of(base), loader=loader) as server, ThreadPoolExecutor(3) as pool:

        def predict_with_retries() -> HttpResponse:
            while (answer := predict(server)).status == 503:
                pass  # the probing request below took its place
            return answer

        waiting = [pool.submit(predict_with_retries) for _ in range(3)]
        eventually(lambda: predict(server, b"{").status == 503)
        refused = predict(server)
        assert "overloaded" in refused.json["error"]
        for model in loader.models.values():
            model.gate.set()
        assert [future.result(LIMIT).status for future in waiting] == [200] * 3
        assert predict(server).status == 200


HALF_SENT = b"POST /v1/models/double:predict HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"


def test_half_sent_bodies_do_not_keep_others_from_being_answered(server: RunningServer) -> None:
    with ExitStack() as stack:
        for number in range(2 * admission.MAX_REQUESTS):
            one = stack.enter_context(socket.create_connection(("localhost", server.rest_port), LIMIT))
            one.sendall(HALF_SENT if number % 2 else HALF_SENT[:40])  # half of them are within the headers
        assert predict(server).status == 200
    assert predict(server).status == 200


def test_body_that_arrives_too_slowly_is_given_up(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handler, "BODY_GRACE_SECONDS", 0.2)
    with (
        start(settings_of(base), loader=FakeModelLoader()) as server,
        socket.create_connection(("localhost", server.rest_port), LIMIT) as slow,
    ):
        slow.sendall(HALF_SENT)
        received = b""
        while b"bytes per second" not in received:
            received += slow.recv(1000)
        assert received.startswith(b"HTTP/1.1 504 ")
        assert predict(server).status == 200


def test_caller_that_fills_the_bytes_does_not_keep_others_out(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "MAX_TOTAL_BODY_BYTES", 10_000)
    with start(settings_of(base), loader=FakeModelLoader()) as server:
        head = HALF_SENT.replace(b": 100", b": 20000")
        with socket.create_connection(("localhost", server.rest_port), LIMIT) as greedy:
            greedy.sendall(head + b" " * 9_900)
            assert predict(server).status == 200
            greedy.sendall(b" " * 9_000)
            assert greedy.recv(100).startswith(b"HTTP/1.1 503 ")
        assert predict(server).status == 200


@pytest.mark.parametrize(
    "body",
    [
        b'{"instances": [' + b"[]," * 5_000_000 + b"[]]}",
        b'{"instances": [' + b"{}," * 2_000_000 + b"{}]}",
        b'{"instances": [' + b"1," * 9_000_000 + b"1]}",
    ],
    ids=["lists", "objects", "numbers"],
)
def test_body_with_very_many_values_is_413(server: RunningServer, body: bytes) -> None:
    answer = predict(server, body)
    assert (answer.status, answer.json) == (413, {"error": "The body has more than 8388608 values."})


def test_body_with_very_many_rows_is_400(server: RunningServer) -> None:
    for verb, key in (("predict", "instances"), ("classify", "examples")):
        body = b'{"%s": [' % key.encode() + b"[]," * 300_000 + b"[]]}"
        answer = predict(server, body, path=f"/v1/models/double:{verb}")
        assert (answer.status, answer.json) == (400, {"error": "The body has 300001 rows, more than 262144."})


def test_work_of_a_rest_caller_that_disconnects_stops(base: Path, tmp_path: Path) -> None:
    write_bundle_metadata(write_fake_model(tmp_path / "bundle" / "1"))  # rows are independent, as in a bundle
    loader = FakeModelLoader(gated=True)
    settings = replace(settings_of(base), models=(ModelSettings("double", tmp_path / "bundle"),))
    with (
        start(settings, loader=loader) as server,
        server.manager.use(protos.ModelSpec(name="double")) as servable,
    ):
        load = servable._batcher._load
        body = json.dumps({"instances": [1.0] * 5000}).encode()
        head = b"POST /v1/models/double:predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
        with socket.create_connection(("localhost", server.rest_port), LIMIT) as one:
            one.sendall(head + body)
            eventually(lambda: load.queued_rows > 4000)
        eventually(lambda: load.queued_rows == 0)
        loader.models[1].gate.set()
        assert predict(server).status == 200


def test_model_does_not_run_on_the_event_loop(base: Path) -> None:
    loader = FakeModelLoader(gated=True)
    with start(settings_of(base), loader=loader) as server, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(predict, server)
        eventually(lambda: any(model.running for model in loader.models.values()))
        assert send(server, "GET", "/v1/models/double").status == 200
        for model in loader.models.values():
            model.gate.set()
        assert waiting.result(LIMIT).status == 200


@pytest.mark.parametrize("digits", ["9" * 19, "1" * 5000, "0" * 5000 + "9" * 19])
def test_version_with_thousands_of_digits_is_400(server: RunningServer, digits: str) -> None:
    for method, path in (("POST", f"versions/{digits}:predict"), ("GET", f"versions/{digits}")):
        answer = send(server, method, f"/v1/models/double/{path}", {"instances": [1]})
        text = f"Failed to convert version: {digits} to numeric."
        assert (answer.status, answer.json) == (400, {"error": text})
    assert send(server, "GET", f"/v1/models/double/versions/{'0' * 5000}1").status == 200


@pytest.mark.parametrize("verb", ["predict", "classify", "regress"])
@pytest.mark.parametrize(
    "body",
    [
        rb'{"\ud800": 1}',
        rb'{"instances": [{"\ud800": 1}]}',
        rb'{"instances": [{"x": 1, "\udfff": 1}]}',
        rb'{"instances": ["\ud800"]}',
        rb'{"instances": [{"b64": "\ud800"}]}',
        rb'{"inputs": {"\ud800": [1]}}',
        rb'{"inputs": {"x": {"\ud800": 1}}}',
        rb'{"signature_name": "\ud800", "instances": [1]}',
        rb'{"signature_name": {"\ud800": 1}}',
        rb'{"examples": [{"\ud800": 1}]}',
        rb'{"examples": [{"x": "\ud800"}]}',
        rb'{"examples": ["\ud800"], "context": {"\ud800": "\ud800"}}',
    ],
)
def test_lone_surrogates_anywhere_in_a_body_are_400(server: RunningServer, verb: str, body: bytes) -> None:
    answer = predict(server, body, path=f"/v1/models/double:{verb}")
    assert answer.status == 400
    assert answer.json["error"]


def test_metrics_count_requests_by_status_and_unknown_models_without_a_name(base: Path) -> None:
    with start(settings_of(base), loader=FakeModelLoader()) as server:
        predict(server)
        predict(server, b"{")
        predict(server, path="/v1/models/other:predict")
        send(server, "GET", "/v1/models/double")
        text = send(server, "GET", "/metrics").body.decode()
    assert ':tensorflow:serving:request_count{model_name="double",status="OK"} 1.0' in text
    assert ':tensorflow:serving:request_count{model_name="double",status="INVALID_ARGUMENT"} 1.0' in text
    assert ':tensorflow:serving:request_count{model_name="",status="NOT_FOUND"} 1.0' in text
    assert 'API="Predict",entrypoint="REST"' in text
    assert "other" not in text


def test_metrics_name_the_engine_and_the_cpu_of_loaded_versions(base: Path) -> None:
    with start(settings_of(base), loader=FakeModelLoader()) as server:
        text = send(server, "GET", "/metrics").body.decode()
    labels = f'cpu="{get_cpu_model()}",engine="tensorflow",model_name="double",version="1"'
    assert f"hubhead_model_info{{{labels}}} 1.0" in text


def test_metrics_forget_the_engine_of_an_unloaded_version() -> None:
    metrics = Metrics()
    metrics.add_model("double", 1, "onnx")
    metrics.add_model("double", 1, "onnx")  # loaded again before the old one is unloaded
    metrics.remove_model("double", 1, "onnx")
    assert b'engine="onnx",model_name="double",version="1"} 1.0' in metrics.render()
    metrics.remove_model("double", 1, "onnx")
    assert b'engine="onnx",model_name="double",version="1"} 0.0' in metrics.render()


def test_internal_error_is_500_and_the_next_request_is_answered(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with start(settings_of(base), loader=FakeModelLoader()) as server:
        with monkeypatch.context() as patch:
            patch.setattr("serving.server.rest.messages.format_predictions", lambda *a, **b: 1 / 0)
            answer = predict(server)
        assert (answer.status, answer.json) == (500, {"error": "ZeroDivisionError: division by zero"})
        assert predict(server).status == 200


def test_disconnecting_and_malformed_callers_do_not_affect_others(server: RunningServer) -> None:
    beginnings = [
        b"",
        b"\x00\xff\xfe rubbish\r\n\r\n",
        b"POST /v1/models/double:predict HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{",
        b"POST /v1/models/double:predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST /v1/models/double:predict HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        b"GET /v1/models/double HTTP/1.1\r\n" + b"A: b\r\n" * 10_000,
    ]
    for sent in beginnings:
        with socket.create_connection(("localhost", server.rest_port), LIMIT) as connection:
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
    assert predict(server).status == 200


def test_concurrent_callers_get_their_own_responses(server: RunningServer) -> None:
    def one(number: int) -> bool:
        return predict(server, {"instances": [number]}).json == {"predictions": [2.0 * number]}

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(one, range(200)))


def test_stop_finishes_requests_in_flight(base: Path) -> None:
    loader = FakeModelLoader(gated=True)
    server = start(settings_of(base), loader=loader)
    with ThreadPoolExecutor(2) as pool:
        in_flight = pool.submit(predict, server)
        eventually(lambda: any(model.running for model in loader.models.values()))
        stopping = pool.submit(server.stop)
        threading.Timer(0.2, lambda: [model.gate.set() for model in loader.models.values()]).start()
        assert in_flight.result(LIMIT).status == 200
        stopping.result(LIMIT)


def test_model_name_in_a_path_is_url_decoded(server: RunningServer) -> None:
    name = urllib.parse.quote("a/b c", safe="")
    assert send(server, "GET", f"/v1/models/{name}/metadata").json["model_spec"]["name"] == "a/b c"


def test_half_precision_output_has_no_json_form(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.support.fake_model.FakeModel.run", lambda *_: {"y": np.ones(1, np.float16)})
    answer = predict(server)
    assert (answer.status, answer.json) == (
        400,
        {"error": "Failed to write JSON value for tensor type: half"},
    )
