"""Models of TensorFlow 1, as TensorFlow Serving's own tests use them, and scalars, on the local server."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from serving import protos, runtime
from serving.client import Client
from serving.errors import BundleError, InvalidRequest
from serving.server import RunningServer, ServerSettings, start
from serving.server.config.settings import ModelSettings
from tests.support import tf1_models
from tests.support.fake_model import LIMIT

pytestmark = [pytest.mark.tf, pytest.mark.server]

MODELS = {
    "half_plus_two": tf1_models.half_plus_two,
    "half_plus_three": tf1_models.half_plus_three,
    "scalars": tf1_models.scalars,
    "unnamed_arguments": tf1_models.unnamed_arguments,
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("models")
    for name, build in MODELS.items():
        tf1_models.save_model(base / name / "123", build, as_scalars=name == "half_plus_three")
    return base


@pytest.fixture(scope="module")
def server(models: Path) -> Iterator[RunningServer]:
    configured = tuple(ModelSettings(name, models / name) for name in MODELS)
    with start(ServerSettings(models=configured, port=0, rest_api_port=0)) as server:
        yield server


def open_client(server: RunningServer, model: str) -> Client:
    return Client(f"localhost:{server.port}", model=model, timeout=LIMIT, convert=False)


def post(server: RunningServer, model: str, verb: str = "predict", **body: Any) -> Any:
    """POST a body to the REST API; return the response, or the error."""
    address = f"http://localhost:{server.rest_port}/v1/models/{model}:{verb}"
    try:
        with urllib.request.urlopen(address, json.dumps(body).encode(), timeout=LIMIT) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_model_that_tensorflow_2_cannot_load_runs_in_a_session(models: Path, server: RunningServer) -> None:
    import tensorflow as tf

    with pytest.raises(ValueError, match="Shapes must be equal rank, but are 2 and 0"):
        tf.saved_model.load(str(models / "half_plus_three" / "123"))
    with open_client(server, "half_plus_three") as client:
        for x in (2.0, [2.0], [[2.0], [4.0]]):  # the graph decides, not the declared shape
            found = client.run("serving_default", {"x": np.array(x, np.float32)})["y"]
            assert found.tolist() == (np.array(x) / 2 + 3).tolist()
    assert post(server, "half_plus_three", inputs=2.0) == {"outputs": 4.0}
    examples = {"signature_name": "regress", "examples": [{"x": 2.0}, {"x": 4.0}]}
    assert post(server, "half_plus_three", "regress", **examples) == {"results": [4.0, 5.0]}


def test_error_of_an_op_in_a_session_has_no_traceback(server: RunningServer) -> None:
    code, body = post(server, "half_plus_three", "regress", signature_name="regress", examples=[{"z": 1.0}])
    assert code == 400
    assert "Feature: x (data type: float) is required but could not be found" in body["error"]
    assert "File " not in body["error"]


def test_saved_model_in_text_format_and_one_with_a_second_graph_are_served(tmp_path: Path) -> None:
    settings = {"text": {"as_text": True}, "two": {"more_tags": ("serve", "gpu")}}
    for name, more in settings.items():
        tf1_models.save_model(tmp_path / name / "1", tf1_models.half_plus_two, **more)  # type: ignore[arg-type]
    configured = tuple(ModelSettings(name, tmp_path / name) for name in settings)
    with start(ServerSettings(models=configured, port=0)) as server:
        for name in settings:
            with open_client(server, name) as client:
                assert client.run("serving_default", {"x": np.float32([[2.0]])})["y"].tolist() == [[3.0]]
                assert client.metadata().signatures.keys() == {
                    *("serving_default", "regress_x_to_y", "classify_x_to_y"),
                    *("regress_x2_to_y3", "classify_x2_to_y3"),
                }
                reload = protos.ModelServerConfig()
                for each in settings:
                    reload.model_config_list.config.add(
                        name=each, base_path=str(tmp_path / each), model_platform="tensorflow"
                    )
                client.reload(reload)


def test_directory_that_neither_way_loads_is_a_bundle_error(tmp_path: Path) -> None:
    (tmp_path / "saved_model.pb").write_bytes(b"\x0a\xff")
    with pytest.raises(BundleError, match="cannot be loaded as a SavedModel"):
        runtime.load(tmp_path, 1)


def test_inputs_that_python_cannot_pass_by_name(server: RunningServer) -> None:
    one = np.ones(2, np.float32)
    with open_client(server, "unnamed_arguments") as client:
        assert client.run("serving_default", {"self": 3 * one, "name": one})["z"].tolist() == [2, 2]


def test_scalars_over_grpc(server: RunningServer) -> None:
    with open_client(server, "scalars") as client:
        for signature, inputs, expected in (
            ("serving_default", {"x": np.float32(3)}, np.array(6, np.float32)),
            ("text", {"x": np.array(b"a\0", object)}, np.array(b"a\0!", object)),
            ("scale", {"x": np.arange(100, dtype=np.float32), "by": np.float32(2)}, np.arange(100.0) * 2),
        ):
            found = client.run(signature, inputs)["y"]
            assert (found.shape, found.dtype.kind) == (expected.shape, expected.dtype.kind)
            assert np.array_equal(found, expected)
        found = client.run("sum", {"x": np.arange(100, dtype=np.float32)})
        assert (found["sum"].shape, found["sum"].item(), found["x"].shape) == ((), 4950.0, (100,))
        with pytest.raises(InvalidRequest):  # the graph adds a scalar, not rows of strings
            client.run("text", {"x": np.float32(3)})
        metadata = client.metadata()
    assert metadata.signatures["serving_default"].inputs["x"].shape == ()


def test_scalars_over_rest(server: RunningServer) -> None:
    assert post(server, "scalars", inputs=3.0) == {"outputs": 6.0}
    assert post(server, "scalars", inputs={"x": 3}) == {"outputs": 6.0}
    assert post(server, "scalars", inputs="a", signature_name="text") == {"outputs": "a!"}
    rows = post(server, "scalars", inputs=[1.0, 2.0], signature_name="sum")
    assert rows == {"outputs": {"sum": 3.0, "x": [1.0, 2.0]}}
    scaled = {"inputs": {"x": [1.0, 2.0], "by": 3.0}, "signature_name": "scale"}
    assert post(server, "scalars", **scaled) == {"outputs": [3.0, 6.0]}
    code, body = post(server, "scalars", instances=[1.0, 2.0], signature_name="sum")
    assert (code, body) == (400, {"error": "Tensor name: sum has no shape information "})


def test_signature_without_inputs(server: RunningServer) -> None:
    request = protos.PredictRequest(model_spec={"name": "scalars", "signature_name": "pi"})
    with grpc.insecure_channel(f"localhost:{server.port}") as channel:
        call = channel.unary_unary(
            protos.PREDICT, protos.PredictRequest.SerializeToString, protos.PredictResponse.FromString
        )
        found = call(request, timeout=LIMIT).outputs["y"]
    assert (list(found.tensor_shape.dim), list(found.float_val)) == ([], [3.25])


@pytest.mark.protocol("multi.inputs")
def test_multi_inference_takes_signatures_with_different_inputs(server: RunningServer) -> None:
    request = protos.MultiInferenceRequest()
    for signature, method in (
        ("regress_x_to_y", tf1_models.REGRESS),
        ("classify_x2_to_y3", tf1_models.CLASSIFY),
        ("classify_x_to_y", tf1_models.CLASSIFY),
    ):
        request.tasks.add(
            model_spec={"name": "half_plus_two", "signature_name": signature}, method_name=method
        )
    for x, x2 in ((2.0, 4.0), (4.0, 8.0)):
        features = request.input.example_list.examples.add().features.feature
        features["x"].float_list.value.append(x)
        features["x2"].float_list.value.append(x2)
    with grpc.insecure_channel(f"localhost:{server.port}") as channel:
        call = channel.unary_unary(
            protos.MULTI_INFERENCE,
            protos.MultiInferenceRequest.SerializeToString,
            protos.MultiInferenceResponse.FromString,
        )
        one, two, three = call(request, timeout=LIMIT).results
    assert [found.value for found in one.regression_result.regressions] == [3.0, 4.0]
    scores = [
        [row.classes[0].score for row in result.classification_result.classifications]
        for result in (two, three)
    ]
    assert scores == [[5.0, 7.0], [3.0, 4.0]]
