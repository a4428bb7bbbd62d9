"""Facts of protocol.toml about the REST API and the metrics."""

from __future__ import annotations

import base64
import gzip
import json
from pathlib import Path
from typing import Any

import grpc
import pytest

from serving.server.rest.handler import http_status
from tests.conformance.conformance_server import ConformanceServer, start_conformance_server
from tests.conformance.requests import (
    CLASSIFY_METHOD,
    classify,
    example,
    metadata,
    multi,
    predict,
    status,
    toy_spec,
)

pytestmark = pytest.mark.server

HTTP_STATUSES = {
    "INVALID_ARGUMENT": 400,
    "FAILED_PRECONDITION": 400,
    "OUT_OF_RANGE": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "ABORTED": 409,
    "ALREADY_EXISTS": 409,
    "RESOURCE_EXHAUSTED": 429,
    "CANCELLED": 499,
    "UNIMPLEMENTED": 501,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
    "INTERNAL": 500,
    "UNKNOWN": 500,
    "DATA_LOSS": 500,
}


@pytest.mark.protocol("error.http-codes")
def test_every_grpc_status_code_maps_to_an_http_status() -> None:
    assert set(HTTP_STATUSES) == {code.name for code in grpc.StatusCode} - {"OK"}
    assert {name: http_status(grpc.StatusCode[name]) for name in HTTP_STATUSES} == HTTP_STATUSES


@pytest.mark.protocol("error.http-codes")
@pytest.mark.parametrize("code", sorted(HTTP_STATUSES))
def test_model_error_code_determines_the_http_status(plain_server: ConformanceServer, code: str) -> None:
    answer = plain_server.post(signature_name="fails", instances=[code])
    assert (answer.status, answer.json) == (HTTP_STATUSES[code], {"error": "as asked"})


@pytest.mark.protocol("rest.paths")
@pytest.mark.parametrize("which", ["", "/versions/3", "/labels/stable", "/VERSIONS/003", "/Labels/st%61ble"])
def test_paths_with_versions_and_version_labels(plain_server: ConformanceServer, which: str) -> None:
    assert plain_server.post("predict", which, instances=[1.0]).json == {"predictions": [2.0]}
    assert plain_server.post("PREDICT", which, instances=[1.0]).status == 200
    body = {"examples": [{"x": 2.0}]}
    assert plain_server.post("classify", which, signature_name="classify", **body).status == 200
    assert plain_server.post("regress", which, signature_name="regress", **body).json == {"results": [2.0]}
    about = plain_server.request("GET", f"/V1/models/t%6fy{which}")
    assert about.json["model_version_status"][0]["state"] == "AVAILABLE"
    spec = plain_server.request("GET", f"/v1/models/toy{which}/METADATA").json["model_spec"]
    assert spec == {"name": "toy", "version": "3", "signature_name": ""}


@pytest.mark.protocol("rest.outside")
def test_unknown_paths_are_404_and_malformed_api_paths_are_400(plain_server: ConformanceServer) -> None:
    for path in ("/nothing", "/v2/models/toy", "/v1", "/monitoring/prometheus/metrics"):
        answer = plain_server.request("GET", path)
        assert (answer.status, answer.body) == (404, b"")
    for method, path in (("POST", "/v1/models/toy:guess"), ("GET", "/v1/toy"), ("DELETE", "/v1/models/toy")):
        answer = plain_server.request(method, path)
        assert (answer.status, answer.json) == (400, {"error": f"Malformed request: {method} {path}"})
    assert b"<!doctype html>" in plain_server.request("GET", "/").body


@pytest.mark.protocol("rest.no-multi-no-filter")
def test_rest_has_no_multi_inference_and_no_output_filter(plain_server: ConformanceServer) -> None:
    assert plain_server.post("multiinference", examples=[{}]).status == 400
    answer = plain_server.post(signature_name="both", instances=[1.0], output_filter=["z"])
    assert answer.json == {"predictions": [{"y": 1.0, "z": 2.0}]}


@pytest.mark.protocol("rest.rows-columns")
def test_instances_return_predictions_and_inputs_return_outputs(plain_server: ConformanceServer) -> None:
    assert plain_server.post(instances=[1.0, 2.0]).json == {"predictions": [2.0, 4.0]}
    assert plain_server.post(inputs=[1.0, 2.0]).json == {"outputs": [2.0, 4.0]}
    for body in ({}, {"instances": [1.0], "inputs": [1.0]}):
        assert plain_server.post(**body).status == 400
    # A scalar output has a column form, but no rows.
    assert plain_server.post(signature_name="total", inputs=[1.0, 2.0]).json == {"outputs": 3.0}
    assert plain_server.post(signature_name="total", instances=[1.0, 2.0]).status == 400


@pytest.mark.protocol("rest.one-or-several")
def test_single_output_is_a_bare_list_and_several_are_objects(plain_server: ConformanceServer) -> None:
    assert plain_server.post(signature_name="both", instances=[1.0]).json == {
        "predictions": [{"y": 1.0, "z": 2.0}]
    }
    assert plain_server.post(signature_name="both", inputs=[1.0]).json == {
        "outputs": {"y": [1.0], "z": [2.0]}
    }
    assert plain_server.post(instances=[{"x": 1.0}]).json == {"predictions": [2.0]}
    assert plain_server.post(inputs={"x": [1.0]}).json == {"outputs": [2.0]}
    for body in ({"instances": [1.0]}, {"inputs": [1.0]}):
        assert plain_server.post(signature_name="ab", **body).status == 400


@pytest.mark.protocol("rest.first-decides")
def test_first_instance_determines_whether_all_are_objects(plain_server: ConformanceServer) -> None:
    named = plain_server.post(instances=[{"x": 1.0}, 2.0])
    assert (named.status, named.json["error"]) == (
        400,
        "Expecting object but got list at item 1 of input list",
    )
    bare = plain_server.post(instances=[1.0, {"x": 2.0}])
    assert bare.json["error"] == "Expecting value/list but got object at item 1 of input list"


def b64(content: bytes) -> dict[str, str]:
    return {"b64": base64.b64encode(content).decode()}


@pytest.mark.protocol("rest.b64-in", "rest.b64-out")
def test_bytes_are_sent_and_returned_as_base64(plain_server: ConformanceServer) -> None:
    for words in ([b64(b"ab"), "cd"], [{"words": b64(b"ab")}, {"words": "cd"}]):
        answer = plain_server.post(signature_name="text", instances=words)
        assert answer.json == {
            "predictions": [
                {"shouted": "AB", "shouted_bytes": b64(b"AB")},
                {"shouted": "CD", "shouted_bytes": b64(b"CD")},
            ]
        }
    assert plain_server.post(instances=[b64(b"ab")]).status == 400
    assert plain_server.post(signature_name="text", inputs=[{"b64": "YQ==", "more": 1}]).status == 400
    assert plain_server.post(signature_name="text", inputs=[{"b64": "?"}]).json == {
        "error": "Unable to base64 decode"
    }


@pytest.mark.protocol("rest.numbers-in")
def test_integers_are_accepted_for_floats_but_not_the_reverse(plain_server: ConformanceServer) -> None:
    assert plain_server.post(instances=[1]).body == b'{"predictions": [2.0]}'
    assert plain_server.post(signature_name="whole", instances=[1]).body == b'{"predictions": [1]}'
    refused = plain_server.post(signature_name="whole", instances=[1.0])
    assert (refused.status, refused.json["error"].rpartition("Error: ")[2]) == (
        400,
        "INVALID_ARGUMENT: JSON Value: 1.0 Type: Number is not of expected type: int32",
    )
    half = plain_server.post(signature_name="half", inputs=[1.0])
    assert (half.status, half.json["error"]) == (501, "Conversion of JSON Value: 1.0 to type: half")
    assert plain_server.post(signature_name="make_half", instances=[1.0]).json == {
        "error": "Failed to write JSON value for tensor type: half"
    }


@pytest.mark.protocol("rest.numbers-out")
@pytest.mark.parametrize(
    ("sent", "text"),
    [
        ("0.1", "0.2"),
        ("5", "10.0"),
        ("4500000", "9e+06"),
        ("0.000015", "3e-05"),
        ("0.16666667", "0.333333343"),
        ("NaN", "NaN"),
        ("Infinity", "Infinity"),
        ("-Infinity", "-Infinity"),
    ],
)
def test_floats_are_formatted_with_the_fewest_digits_that_round_trip(
    plain_server: ConformanceServer, sent: str, text: str
) -> None:
    answer = plain_server.request("POST", "/v1/models/toy:predict", f'{{"instances": [{sent}]}}'.encode())
    assert answer.body.decode() == f'{{"predictions": [{text}]}}'


@pytest.mark.protocol("rest.results")
def test_classify_and_regress_return_results(plain_server: ConformanceServer) -> None:
    rows = [{"x": 2.0}, {"x": [4.0]}]
    assert plain_server.post("classify", signature_name="classify", examples=rows).json == {
        "results": [
            [["a", 2.0], ["b", -2.0], ["c", 1.0]],
            [["a", 4.0], ["b", -4.0], ["c", 2.0]],
        ]
    }
    context = {"context": {"x": 3.0}, "examples": [{}, {"x": 5.0}]}
    for signature in ("regress", "regress_column"):
        answer = plain_server.post("regress", signature_name=signature, **context)
        assert answer.json == {"results": [3.0, 5.0]}


@pytest.mark.protocol("rest.gzip")
def test_gzip_request_body_is_accepted(plain_server: ConformanceServer) -> None:
    body = gzip.compress(json.dumps({"instances": [1.0]}).encode())
    headers = {"Content-Encoding": "gzip"}
    assert plain_server.request("POST", "/v1/models/toy:predict", body, headers).json == {
        "predictions": [2.0]
    }


@pytest.mark.protocol("rest.cors")
@pytest.mark.parametrize("enabled", [False, True])
def test_cors_headers_require_the_flag(conformance_base: Path, enabled: bool) -> None:
    with start_conformance_server(("toy", conformance_base), rest_api_enable_cors_support=enabled) as server:
        for answer in (server.post(instances=[1.0]), server.post(instances=[])):
            assert answer.headers.get("Access-Control-Allow-Origin") == ("*" if enabled else None)


# --- Metrics --------------------------------------------------------------------------------------------

METRICS = "/monitoring/prometheus/metrics"


@pytest.mark.protocol("metrics.path", "metrics.names", "metrics.not-counted")
def test_prometheus_metrics_require_the_flag_and_have_tensorflow_servings_names(
    plain_server: ConformanceServer, conformance_base: Path
) -> None:
    assert plain_server.request("GET", METRICS).status == 404
    with start_conformance_server(("toy", conformance_base), metrics_path=METRICS) as server:
        uncounted: list[Any] = [
            metadata(toy_spec(), "signature_def"),
            status(toy_spec()),
            multi(("toy", "classify", CLASSIFY_METHOD)),
        ]
        for call in uncounted:
            server.call(call)
        assert "request_count{" not in server.request("GET", METRICS).body.decode()
        server.call(predict(toy_spec(), x=[1.0]))
        server.call(classify(toy_spec("classify"), example(x=1.0)))
        server.post(instances=[1.0])
        server.call_expecting_error(predict(toy_spec("S"), x=[1.0]))
        text = server.request("GET", METRICS).body.decode()
    prefix = ":tensorflow:serving:"
    assert f'{prefix}request_count{{model_name="toy",status="OK"}} 3.0' in text
    assert f'{prefix}request_count{{model_name="toy",status="FAILED_PRECONDITION"}} 1.0' in text
    for api, entrypoint, count in (("Predict", "GRPC", 2), ("Classify", "GRPC", 1), ("Predict", "REST", 1)):
        row = f'API="{api}",entrypoint="{entrypoint}",model_name="toy"'
        assert f"{prefix}request_latency_count{{{row}}} {count}.0" in text
    for name in (
        "runtime_latency",
        "batching_session:queuing_latency",
        "batching_session:padding_size",
        "batching_session:processed_batch_size",
    ):
        assert f"{prefix}{name}_bucket{{" in text
    assert f"{prefix}batching_session:wrapped_run_count{{" in text
    assert f"{prefix}model_warmup_latency_count{{" in text
    labels = f'model_path="{conformance_base / "3"}",status="success"'
    assert f":tensorflow:cc:saved_model:load_attempt_count{{{labels}}} 1.0" in text
