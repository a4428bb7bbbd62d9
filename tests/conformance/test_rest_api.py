"""What protocol.toml says of REST and of the metrics."""

from __future__ import annotations

import base64
import gzip
import json
from pathlib import Path
from typing import Any

import grpc
import pytest

from serving.server.rest.handler import http_status
from tests.conformance.conformance_server import World, world
from tests.conformance.requests import (
    CLASSIFY_METHOD,
    classify,
    example,
    metadata,
    multi,
    predict,
    status,
    toy,
)

HTTP = {
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
def test_every_code_of_grpc_has_its_http_status() -> None:
    assert set(HTTP) == {code.name for code in grpc.StatusCode} - {"OK"}
    assert {name: http_status(grpc.StatusCode[name]) for name in HTTP} == HTTP


@pytest.mark.protocol("error.http-codes")
@pytest.mark.parametrize("code", sorted(HTTP))
def test_a_model_that_fails_with_a_code_is_answered_with_its_status(plain: World, code: str) -> None:
    answer = plain.post(signature_name="fails", instances=[code])
    assert (answer.status, answer.json) == (HTTP[code], {"error": "as asked"})


@pytest.mark.protocol("rest.paths")
@pytest.mark.parametrize("which", ["", "/versions/3", "/labels/stable", "/VERSIONS/003", "/Labels/st%61ble"])
def test_paths_for_versions_and_labels(plain: World, which: str) -> None:
    assert plain.post("predict", which, instances=[1.0]).json == {"predictions": [2.0]}
    assert plain.post("PREDICT", which, instances=[1.0]).status == 200
    body = {"examples": [{"x": 2.0}]}
    assert plain.post("classify", which, signature_name="classify", **body).status == 200
    assert plain.post("regress", which, signature_name="regress", **body).json == {"results": [2.0]}
    about = plain.http("GET", f"/V1/models/t%6fy{which}")
    assert about.json["model_version_status"][0]["state"] == "AVAILABLE"
    spec = plain.http("GET", f"/v1/models/toy{which}/METADATA").json["model_spec"]
    assert spec == {"name": "toy", "version": "3", "signature_name": ""}


@pytest.mark.protocol("rest.outside")
def test_what_is_outside_and_what_is_malformed(plain: World) -> None:
    for path in ("/nothing", "/v2/models/toy", "/v1", "/monitoring/prometheus/metrics"):
        answer = plain.http("GET", path)
        assert (answer.status, answer.body) == (404, b"")
    for method, path in (("POST", "/v1/models/toy:guess"), ("GET", "/v1/toy"), ("DELETE", "/v1/models/toy")):
        answer = plain.http(method, path)
        assert (answer.status, answer.json) == (400, {"error": f"Malformed request: {method} {path}"})
    assert b"<!doctype html>" in plain.http("GET", "/").body


@pytest.mark.protocol("rest.no-multi-no-filter")
def test_there_is_no_multi_inference_and_no_output_filter(plain: World) -> None:
    assert plain.post("multiinference", examples=[{}]).status == 400
    answer = plain.post(signature_name="both", instances=[1.0], output_filter=["z"])
    assert answer.json == {"predictions": [{"y": 1.0, "z": 2.0}]}


@pytest.mark.protocol("rest.rows-columns")
def test_instances_give_predictions_and_inputs_outputs(plain: World) -> None:
    assert plain.post(instances=[1.0, 2.0]).json == {"predictions": [2.0, 4.0]}
    assert plain.post(inputs=[1.0, 2.0]).json == {"outputs": [2.0, 4.0]}
    for body in ({}, {"instances": [1.0], "inputs": [1.0]}):
        assert plain.post(**body).status == 400
    # A scalar is a column, and no row.
    assert plain.post(signature_name="total", inputs=[1.0, 2.0]).json == {"outputs": 3.0}
    assert plain.post(signature_name="total", instances=[1.0, 2.0]).status == 400


@pytest.mark.protocol("rest.one-or-several")
def test_one_output_is_bare_and_several_are_named(plain: World) -> None:
    assert plain.post(signature_name="both", instances=[1.0]).json == {"predictions": [{"y": 1.0, "z": 2.0}]}
    assert plain.post(signature_name="both", inputs=[1.0]).json == {"outputs": {"y": [1.0], "z": [2.0]}}
    assert plain.post(instances=[{"x": 1.0}]).json == {"predictions": [2.0]}
    assert plain.post(inputs={"x": [1.0]}).json == {"outputs": [2.0]}
    for body in ({"instances": [1.0]}, {"inputs": [1.0]}):
        assert plain.post(signature_name="ab", **body).status == 400


@pytest.mark.protocol("rest.first-decides")
def test_the_first_instance_decides_for_all(plain: World) -> None:
    named = plain.post(instances=[{"x": 1.0}, 2.0])
    assert (named.status, named.json["error"]) == (
        400,
        "Expecting object but got list at item 1 of input list",
    )
    bare = plain.post(instances=[1.0, {"x": 2.0}])
    assert bare.json["error"] == "Expecting value/list but got object at item 1 of input list"


def b64(content: bytes) -> dict[str, str]:
    return {"b64": base64.b64encode(content).decode()}


@pytest.mark.protocol("rest.b64-in", "rest.b64-out")
def test_bytes_go_and_come_as_base64(plain: World) -> None:
    for words in ([b64(b"ab"), "cd"], [{"words": b64(b"ab")}, {"words": "cd"}]):
        answer = plain.post(signature_name="text", instances=words)
        assert answer.json == {
            "predictions": [
                {"shouted": "AB", "shouted_bytes": b64(b"AB")},
                {"shouted": "CD", "shouted_bytes": b64(b"CD")},
            ]
        }
    assert plain.post(instances=[b64(b"ab")]).status == 400
    assert plain.post(signature_name="text", inputs=[{"b64": "YQ==", "more": 1}]).status == 400
    assert plain.post(signature_name="text", inputs=[{"b64": "?"}]).json == {
        "error": "Unable to base64 decode"
    }


@pytest.mark.protocol("rest.numbers-in")
def test_whole_numbers_pass_for_floats_and_never_the_other_way(plain: World) -> None:
    assert plain.post(instances=[1]).body == b'{"predictions": [2.0]}'
    assert plain.post(signature_name="whole", instances=[1]).body == b'{"predictions": [1]}'
    refused = plain.post(signature_name="whole", instances=[1.0])
    assert (refused.status, refused.json["error"].rpartition("Error: ")[2]) == (
        400,
        "INVALID_ARGUMENT: JSON Value: 1.0 Type: Number is not of expected type: int32",
    )
    half = plain.post(signature_name="half", inputs=[1.0])
    assert (half.status, half.json["error"]) == (501, "Conversion of JSON Value: 1.0 to type: half")
    assert plain.post(signature_name="make_half", instances=[1.0]).json == {
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
def test_floats_are_written_as_short_as_they_come_back(plain: World, sent: str, text: str) -> None:
    answer = plain.http("POST", "/v1/models/toy:predict", f'{{"instances": [{sent}]}}'.encode())
    assert answer.body.decode() == f'{{"predictions": [{text}]}}'


@pytest.mark.protocol("rest.results")
def test_classify_and_regress_answer_with_results(plain: World) -> None:
    rows = [{"x": 2.0}, {"x": [4.0]}]
    assert plain.post("classify", signature_name="classify", examples=rows).json == {
        "results": [
            [["a", 2.0], ["b", -2.0], ["c", 1.0]],
            [["a", 4.0], ["b", -4.0], ["c", 2.0]],
        ]
    }
    context = {"context": {"x": 3.0}, "examples": [{}, {"x": 5.0}]}
    for signature in ("regress", "regress_column"):
        answer = plain.post("regress", signature_name=signature, **context)
        assert answer.json == {"results": [3.0, 5.0]}


@pytest.mark.protocol("rest.gzip")
def test_a_body_may_be_gzip(plain: World) -> None:
    body = gzip.compress(json.dumps({"instances": [1.0]}).encode())
    headers = {"Content-Encoding": "gzip"}
    assert plain.http("POST", "/v1/models/toy:predict", body, headers).json == {"predictions": [2.0]}


@pytest.mark.protocol("rest.cors")
@pytest.mark.parametrize("enabled", [False, True])
def test_other_origins_may_ask_with_the_flag_alone(toy_base: Path, enabled: bool) -> None:
    with world(("toy", toy_base), rest_api_enable_cors_support=enabled) as served:
        for answer in (served.post(instances=[1.0]), served.post(instances=[])):
            assert answer.headers.get("Access-Control-Allow-Origin") == ("*" if enabled else None)


# --- Metrics --------------------------------------------------------------------------------------------

METRICS = "/monitoring/prometheus/metrics"


@pytest.mark.protocol("metrics.path", "metrics.names", "metrics.not-counted")
def test_metrics_are_there_where_they_are_asked_for(plain: World, toy_base: Path) -> None:
    assert plain.http("GET", METRICS).status == 404
    with world(("toy", toy_base), metrics_path=METRICS) as served:
        uncounted: list[Any] = [
            metadata(toy(), "signature_def"),
            status(toy()),
            multi(("toy", "classify", CLASSIFY_METHOD)),
        ]
        for call in uncounted:
            served.rpc(call)
        assert "request_count{" not in served.http("GET", METRICS).body.decode()
        served.rpc(predict(toy(), x=[1.0]))
        served.rpc(classify(toy("classify"), example(x=1.0)))
        served.post(instances=[1.0])
        served.refused(predict(toy("S"), x=[1.0]))
        text = served.http("GET", METRICS).body.decode()
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
    loads = (
        f':tensorflow:cc:saved_model:load_attempt_count{{model_path="{toy_base / "3"}",status="success"}} 1.0'
    )
    assert loads in text
