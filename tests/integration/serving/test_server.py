"""The local server: responses as in TensorFlow Serving, loading and unloading of versions, start and stop."""

from __future__ import annotations

import json
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from click.testing import CliRunner

from serving import contract, protos
from serving.client import Client, State
from serving.commands.predict import predict
from serving.commands.serve import serve
from serving.errors import BundleError, HubheadError, ModelNotFound, OutputError
from serving.protos import tensors
from serving.runtime.errors import clean_error_message
from serving.server import ServerSettings, start
from tests.support.fake_model import (
    LIMIT,
    FakeModelLoader,
    call_double,
    eventually,
    get_current_version,
    write_fake_model,
)

pytestmark = pytest.mark.server


@pytest.fixture
def base(tmp_path: Path) -> Path:
    directory = tmp_path / "double"
    write_fake_model(directory / "1")
    return directory


def settings_of(base: Path, port: int = 0) -> ServerSettings:
    return ServerSettings(base, port=port, file_system_poll_wait_seconds=0.05)


def list_states(client: Client) -> dict[int, State]:
    return {status.version: status.state for status in client.status()}


@pytest.mark.protocol("versions.preserving")
def test_new_version_replaces_the_old_one_without_a_failed_request(base: Path) -> None:
    with start(settings_of(base), loader=FakeModelLoader()) as server:
        channel = grpc.insecure_channel(f"localhost:{server.port}")
        client = Client("", model="double", channel=channel)
        answered: list[int] = []
        done = threading.Event()

        def send_requests() -> None:
            while not done.is_set():
                response = call_double(channel, 1.0, 2.0)
                assert tensors.decode(response.outputs["y"], "y").tolist() == [2.0, 4.0]
                answered.append(response.model_spec.version.value)

        with ThreadPoolExecutor(3) as pool:
            senders = [pool.submit(send_requests) for _ in range(3)]
            try:
                for version in (2, 10):
                    eventually(lambda: len(answered) > 20)
                    write_fake_model(base / str(version))
                    eventually(lambda version=version: answered[-1] == version)
            finally:
                done.set()
            for future in senders:
                future.result(LIMIT)
        assert set(answered) == {1, 2, 10}
        eventually(lambda: list_states(client) == {10: State.AVAILABLE, 2: State.END, 1: State.END})
        channel.close()


@pytest.mark.protocol("versions.preserving")
def test_request_in_flight_finishes_on_the_version_it_started_on(base: Path) -> None:
    loader = FakeModelLoader(gated=True)
    with (
        start(settings_of(base), loader=loader) as server,
        grpc.insecure_channel(f"localhost:{server.port}") as channel,
        ThreadPoolExecutor(1) as pool,
    ):
        client = Client("", model="double", channel=channel)
        old = pool.submit(call_double, channel, 1.0)
        eventually(lambda: loader.models[1].running == 1)
        write_fake_model(base / "2")
        eventually(lambda: list_states(client) == {2: State.AVAILABLE, 1: State.UNLOADING})
        loader.models[2].gate.set()
        assert call_double(channel, 1.0).model_spec.version.value == 2
        loader.models[1].gate.set()
        assert old.result(LIMIT).model_spec.version.value == 1
        eventually(lambda: list_states(client)[1] is State.END)


@pytest.mark.protocol("versions.failed-load")
def test_version_that_fails_to_load_is_retried_when_its_files_change(base: Path) -> None:
    loader = FakeModelLoader()
    with start(settings_of(base), loader=loader) as server:
        client = Client(f"localhost:{server.port}", model="double")
        write_fake_model(base / ".two" / "2")
        (base / ".two" / "2" / "broken").touch()
        (base / ".two" / "2").rename(base / "2")
        eventually(lambda: list_states(client).get(2) is State.END)
        assert client.status()[0].error == "broken on purpose"
        assert list_states(client)[1] is State.AVAILABLE
        assert get_current_version(server) == 1
        attempts = loader.attempts
        time.sleep(0.3)
        assert loader.attempts == attempts
        (base / "2" / "broken").unlink()
        eventually(lambda: get_current_version(server) == 2)
        assert list_states(client)[2] is State.AVAILABLE
        client.close()


@pytest.mark.protocol("versions.emptied")
def test_removing_the_newest_version_rolls_back_and_an_empty_base_path_keeps_the_last(base: Path) -> None:
    write_fake_model(base / "2")
    with start(settings_of(base), loader=FakeModelLoader()) as server:
        assert get_current_version(server) == 2
        shutil.rmtree(base / "2")
        eventually(lambda: get_current_version(server) == 1)
        shutil.rmtree(base)
        time.sleep(0.2)
        with grpc.insecure_channel(f"localhost:{server.port}") as channel:
            assert call_double(channel, 3.0).model_spec.version.value == 1


def test_model_calls_are_limited_to_its_threads_and_expired_requests_never_run(base: Path) -> None:
    loader = FakeModelLoader(gated=True)
    with (
        start(settings_of(base), loader=loader) as server,
        grpc.insecure_channel(f"localhost:{server.port}") as channel,
        ThreadPoolExecutor(8) as pool,
    ):
        waiting = [pool.submit(call_double, channel, 1.0) for _ in range(6)]
        eventually(lambda: loader.models[1].running == 2)
        with pytest.raises(grpc.RpcError) as caught:
            call_double(channel, 1.0, timeout=0.3)
        # Whichever deadline fires first: the client's or the server's.
        assert caught.value.code().name in ("DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED")
        time.sleep(0.3)  # the server's deadline passes slightly after the client's
        loader.models[1].gate.set()
        for future in waiting:
            future.result(LIMIT)
        assert loader.models[1].max_running == 2
        assert loader.models[1].rows == 6


def test_stop_finishes_requests_in_flight_and_rejects_new_ones(base: Path) -> None:
    loader = FakeModelLoader(gated=True)
    server = start(settings_of(base), loader=loader)
    with grpc.insecure_channel(f"localhost:{server.port}") as channel, ThreadPoolExecutor(2) as pool:
        in_flight = pool.submit(call_double, channel, 4.0)
        eventually(lambda: loader.models[1].running == 1)
        stopping = pool.submit(server.stop)
        with grpc.insecure_channel(f"localhost:{server.port}") as late:

            def call_expecting_error() -> bool:
                try:
                    call_double(late, 1.0, timeout=0.05)
                except grpc.RpcError as error:
                    return error.code() is grpc.StatusCode.UNAVAILABLE
                return False

            eventually(call_expecting_error)
        loader.models[1].gate.set()
        assert tensors.decode(in_flight.result(LIMIT).outputs["y"], "y").tolist() == [8.0]
        stopping.result(LIMIT)


@pytest.mark.protocol("error.cut")
def test_model_error_keeps_its_status_code_and_its_text_is_truncated(base: Path) -> None:
    with (
        start(settings_of(base), loader=FakeModelLoader()) as server,
        grpc.insecure_channel(f"localhost:{server.port}") as channel,
        pytest.raises(grpc.RpcError) as caught,
    ):
        call_double(channel, -1.0)
    assert caught.value.code() is grpc.StatusCode.OUT_OF_RANGE
    assert caught.value.details().startswith("x is negative!!!")
    assert caught.value.details().endswith("...TRUNCATED")
    assert len(caught.value.details()) == 1024 + len("...TRUNCATED")


def test_grpc_port_in_use_is_an_error_with_a_remedy(base: Path) -> None:
    with (
        start(settings_of(base), loader=FakeModelLoader()) as server,
        pytest.raises(OutputError, match=rf"Port {server.port} .*--port"),
    ):
        start(settings_of(base, port=server.port), loader=FakeModelLoader())


def test_missing_base_path_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"does not exist.*--model_base_path"):
        start(settings_of(tmp_path / "none"), loader=FakeModelLoader())
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(BundleError, match="is not a directory"):
        start(settings_of(file), loader=FakeModelLoader())


@pytest.mark.protocol("versions.ports")
def test_start_fails_with_the_reasons_if_no_version_loads(base: Path) -> None:
    (base / "1" / "broken").touch()
    (base / "2").mkdir()
    with pytest.raises(BundleError, match=r"Version 2: .*saved_model.pb.*Version 1: broken on purpose"):
        start(settings_of(base), loader=FakeModelLoader())


def test_newest_version_that_loads_is_served_if_a_newer_one_is_broken(base: Path) -> None:
    (base / "3").mkdir()
    (base / "3" / contract.SAVED_MODEL_FILE).write_bytes(b"\xff\xff no message")
    (base / "00000099999999999999999999").mkdir()
    with start(settings_of(base), loader=FakeModelLoader()) as server:
        assert get_current_version(server) == 1
        with Client(f"localhost:{server.port}", model="double") as client:
            assert list_states(client) == {3: State.END, 1: State.AVAILABLE}
            assert "cannot be read" in client.status()[0].error


def test_polling_continues_after_the_base_path_was_unreadable(
    base: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with start(settings_of(base), loader=FakeModelLoader()) as server:
        with monkeypatch.context() as patch:
            patch.setattr("serving.bundle.versions", lambda path: list((path / "none").iterdir()))
            eventually(lambda: "cannot be read" in caplog.text)
        write_fake_model(base / "2")
        eventually(lambda: get_current_version(server) == 2)


@pytest.mark.protocol("versions.ports")
def test_start_waits_at_an_empty_base_path_and_warns_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = tmp_path / "double"
    base.mkdir()
    with ThreadPoolExecutor(1) as pool:
        starting = pool.submit(start, settings_of(base), loader=FakeModelLoader())
        eventually(lambda: "waiting" in caplog.text)
        time.sleep(0.2)
        assert not starting.done()
        write_fake_model(base / "1")
        with starting.result(LIMIT) as server:
            assert get_current_version(server) == 1
    assert caplog.text.count("has no version yet") == 1


def test_model_name_defaults_to_the_name_of_the_base_path(base: Path) -> None:
    for settings, name in (
        (ServerSettings(base, port=0), "double"),
        (ServerSettings(base / "1" / "..", port=0), "double"),
        (ServerSettings(base, "other", port=0), "other"),
    ):
        with start(settings, loader=FakeModelLoader()) as server:
            assert server.manager.settings[0].name == name


# --- A real SavedModel and TensorFlow's own client ------------------------------------------------------


def export(directory: Path) -> None:
    """Write a SavedModel with signatures for numbers, strings and two inputs."""
    import tensorflow as tf

    module = tf.Module()
    module.w = tf.Variable(np.arange(12, dtype=np.float32).reshape(3, 4))
    numbers = tf.TensorSpec([None, None], tf.float32)
    strings = tf.TensorSpec([None], tf.string)

    @tf.function(input_signature=[numbers])
    def linear(x: Any) -> Any:
        return {"y": tf.matmul(x, module.w), "sums": tf.reduce_sum(x, axis=1)}

    @tf.function(input_signature=[strings])
    def upper(text: Any) -> Any:
        return {"shouted": tf.strings.upper(text)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32), tf.TensorSpec([None], tf.float32)])
    def add(a: Any, b: Any) -> Any:
        return {"sum": a + b}

    tf.saved_model.save(
        module, str(directory), signatures={"serving_default": linear, "upper": upper, "add": add}
    )


def write_warmup(directory: Path, records: list[bytes]) -> None:
    import tensorflow as tf

    path = directory / contract.WARMUP_FILE
    path.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            writer.write(record)


def warmup_record(signature: str, alias: str, values: Any) -> bytes:
    log = protos.PredictionLog()
    log.predict_log.request.model_spec.signature_name = signature
    log.predict_log.request.inputs[alias].CopyFrom(tensors.encode(values))
    return bytes(log.SerializeToString())


@pytest.fixture(scope="module")
def linear(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models") / "linear"
    export(directory / "5")
    write_warmup(
        directory / "5",
        [
            warmup_record("", "x", np.ones((2, 3), np.float32)),
            warmup_record("upper", "text", [b"a"]),
            bytes(protos.PredictionLog(session_run_log={}).SerializeToString()),
        ],
    )
    return directory


@pytest.fixture(scope="module")
def channel(linear: Path) -> Iterator[grpc.Channel]:
    with (
        start(ServerSettings(linear, port=0)) as server,
        grpc.insecure_channel(f"localhost:{server.port}") as channel,
    ):
        yield channel


ONE_BY_THREE = [[1.0, 2.0, 3.0]]


def official_request(**spec: Any) -> Any:
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2

    request = predict_pb2.PredictRequest()
    request.model_spec.name = spec.pop("name", "linear")
    if version := spec.pop("version", None):
        request.model_spec.version.value = version
    for name, value in spec.items():
        setattr(request.model_spec, name, value)
    request.inputs["x"].CopyFrom(tf.make_tensor_proto(ONE_BY_THREE, tf.float32))
    return request


@pytest.mark.tf
def test_predict_through_the_official_client(channel: grpc.Channel) -> None:
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    response = stub.Predict(official_request(), timeout=LIMIT)
    np.testing.assert_allclose(tf.make_ndarray(response.outputs["y"]), [[32, 38, 44, 50]])
    assert list(response.outputs["sums"].float_val) == [6.0]  # typed fields, as TensorFlow Serving returns
    assert response.model_spec.name == "linear"
    assert response.model_spec.signature_name == "serving_default"
    assert response.model_spec.version.value == 5

    filtered = official_request(version=5)
    filtered.output_filter.append("sums")
    assert set(stub.Predict(filtered, timeout=LIMIT).outputs) == {"sums"}

    request = predict_pb2.PredictRequest()
    request.model_spec.name = "linear"
    request.model_spec.signature_name = "upper"
    request.inputs["text"].CopyFrom(tf.make_tensor_proto([b"ab", b"", b"c\0d"]))
    shouted = stub.Predict(request, timeout=LIMIT).outputs["shouted"]
    assert tf.make_ndarray(shouted).tolist() == [b"AB", b"", b"C\0D"]


@pytest.mark.tf
def test_metadata_and_status_through_the_official_client(channel: grpc.Channel, linear: Path) -> None:
    from tensorflow.core.protobuf import saved_model_pb2
    from tensorflow_serving.apis import (
        get_model_metadata_pb2,
        get_model_status_pb2,
        model_service_pb2_grpc,
        prediction_service_pb2_grpc,
    )

    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = "linear"
    response = prediction_service_pb2_grpc.PredictionServiceStub(channel).GetModelMetadata(
        request, timeout=LIMIT
    )
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(signatures)
    saved = saved_model_pb2.SavedModel.FromString((linear / "5" / "saved_model.pb").read_bytes())
    assert dict(signatures.signature_def) == dict(saved.meta_graphs[0].signature_def)
    assert "__saved_model_init_op" in signatures.signature_def
    assert (response.model_spec.name, response.model_spec.version.value) == ("linear", 5)
    assert response.model_spec.signature_name == ""

    status = get_model_status_pb2.GetModelStatusRequest()
    status.model_spec.name = "linear"
    rows = model_service_pb2_grpc.ModelServiceStub(channel).GetModelStatus(status, timeout=LIMIT)
    assert [(row.version, row.state) for row in rows.model_version_status] == [
        (5, get_model_status_pb2.ModelVersionStatus.AVAILABLE)
    ]


@pytest.mark.tf
def test_metadata_of_a_real_model_through_hubheads_client(channel: grpc.Channel) -> None:
    metadata = Client("", model="linear", channel=channel).metadata()
    assert set(metadata.signatures) == {"serving_default", "upper", "add"}
    assert metadata.signatures["serving_default"].inputs["x"].dtype == "float"
    assert metadata.signatures["serving_default"].inputs["x"].shape == (None, None)
    with pytest.raises(ModelNotFound, match="Unrecognized servable version label: canary"):
        Client("", model="linear", label="canary", channel=channel).metadata()


INVALID, MISSING, PRECONDITION = (
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION,
)
X = {"x": tensors.encode(np.array(ONE_BY_THREE, np.float32))}
WRONG_SIZE = protos.TensorProto(dtype=1, float_val=[1, 2, 3])
AB = {"name": "linear", "signature_name": "add"}
VECTOR = tensors.encode(np.ones(2, np.float32))


@pytest.mark.tf
@pytest.mark.parametrize(
    ("spec", "inputs", "output_filter", "code", "text"),
    [
        (None, X, [], INVALID, "Missing ModelSpec"),
        ({}, X, [], INVALID, "ModelSpec has no name specified."),
        ({"name": "none"}, X, [], MISSING, "Servable not found for request: Latest(none)"),
        (
            {"name": "linear", "version": {"value": 7}},
            X,
            [],
            MISSING,
            "Servable not found for request: Specific(linear, 7)",
        ),
        (
            {"name": "linear", "version_label": "stable"},
            X,
            [],
            INVALID,
            "Unrecognized servable version label: stable",
        ),
        (
            {"name": "linear", "signature_name": "nope"},
            X,
            [],
            PRECONDITION,
            'Serving signature key "nope" not found.',
        ),
        (
            AB,
            {"a": VECTOR},
            [],
            INVALID,
            "input size does not match signature: 1!=2 len({a}) != len({a,b}). Sent extra: {}. "
            "Missing but required: {b}.",
        ),
        (
            {"name": "linear"},
            X | {"z": VECTOR},
            [],
            INVALID,
            "input size does not match signature: 2!=1 len({x,z}) != len({x}). Sent extra: {z}. "
            "Missing but required: {}.",
        ),
        (
            {"name": "linear"},
            {"z": VECTOR},
            [],
            INVALID,
            "Signature input alias: x(feed name: serving_default_x:0) not found in request and no default "
            "value provided. Inputs expected to be in the request {z}, or default input alias set: ",
        ),
        ({"name": "linear"}, {"x": WRONG_SIZE}, [], INVALID, "tensor parsing error: x"),
        (
            AB,
            {"a": VECTOR, "b": tensors.encode([b"1", b"2"])},
            [],
            INVALID,
            "Expects arg[1] to be float but string is provided",
        ),
        (
            {"name": "linear"},
            X,
            ["q"],
            INVALID,
            "output tensor alias not found in signature: q Outputs expected to be in the set {sums,y}.",
        ),
        ({"name": "linear"}, X, ["y", "y"], INVALID, "duplicate output tensor alias: y"),
    ],
)
def test_invalid_predict_request_has_tensorflow_servings_error(
    channel: grpc.Channel,
    spec: dict[str, Any] | None,
    inputs: dict[str, Any],
    output_filter: list[str],
    code: grpc.StatusCode,
    text: str,
) -> None:
    request = protos.PredictRequest(model_spec=spec, inputs=inputs, output_filter=output_filter)
    caught = call_expecting_error(channel, protos.PREDICT, request)
    assert (caught.code(), caught.details()) == (code, text)


def call_expecting_error(channel: grpc.Channel, path: str, request: protos.Message) -> Any:
    call = channel.unary_unary(path, type(request).SerializeToString)
    with pytest.raises(grpc.RpcError) as caught:
        call(request, timeout=LIMIT)
    return caught.value


@pytest.mark.tf
def test_wrong_shape_fails_in_the_graph_with_tensorflows_error(channel: grpc.Channel) -> None:
    request = protos.PredictRequest(model_spec={"name": "linear"})
    request.inputs["x"].CopyFrom(tensors.encode(np.ones((1, 5), np.float32)))
    caught = call_expecting_error(channel, protos.PREDICT, request)
    assert caught.code() is INVALID
    assert caught.details().startswith("Matrix size-incompatible: In[0]: [1,5], In[1]: [3,4]\n\t [[{{node ")
    assert caught.details().endswith("}}]]")


def test_graph_construction_stack_is_removed_from_errors() -> None:
    stack = 'Detected at node a/b defined at (most recent call last):\n  File "/x.py", line 1\n    y = 2\n\n'
    message = "Bad\n\t [[{{node a/b}}]]"
    assert (
        clean_error_message(f"Graph execution error:\n\n{stack}{stack}{message} [Op:__inference_1]")
        == message
    )
    missing = "Detected at node a/b defined at (most recent call last):\n<stack unavailable>\n"
    assert clean_error_message(f"Graph execution error:\n\n{missing}{message}") == message
    assert clean_error_message("plain") == "plain"
    inside = "{{function_node __inference_1}} Bad\n\t [[{{function_node __inference_2}}{{node a/b}}]]"
    assert clean_error_message(inside) == message


@pytest.mark.tf
@pytest.mark.parametrize(
    ("request_class", "path", "fields", "code", "text"),
    [
        (
            "GetModelMetadataRequest",
            protos.GET_MODEL_METADATA,
            {"metadata_field": ["signature_def"]},
            INVALID,
            "Missing ModelSpec",
        ),
        (
            "GetModelMetadataRequest",
            protos.GET_MODEL_METADATA,
            {"model_spec": {"name": "linear"}},
            INVALID,
            "GetModelMetadataRequest must specify at least one metadata_field",
        ),
        (
            "GetModelMetadataRequest",
            protos.GET_MODEL_METADATA,
            {"model_spec": {"name": "linear"}, "metadata_field": ["assets"]},
            INVALID,
            "Metadata field assets is not supported",
        ),
        ("GetModelStatusRequest", protos.GET_MODEL_STATUS, {}, INVALID, "Missing ModelSpec"),
        (
            "GetModelStatusRequest",
            protos.GET_MODEL_STATUS,
            {"model_spec": {"name": "none"}},
            MISSING,
            "Could not find any versions of model none",
        ),
        (
            "GetModelStatusRequest",
            protos.GET_MODEL_STATUS,
            {"model_spec": {"name": "linear", "version": {"value": 7}}},
            MISSING,
            "Could not find version 7 of model linear",
        ),
    ],
)
def test_invalid_metadata_and_status_requests_have_tensorflow_servings_errors(
    channel: grpc.Channel,
    request_class: str,
    path: str,
    fields: dict[str, Any],
    code: grpc.StatusCode,
    text: str,
) -> None:
    caught = call_expecting_error(channel, path, getattr(protos, request_class)(**fields))
    assert (caught.code(), caught.details()) == (code, text)


@pytest.mark.tf
@pytest.mark.parametrize(
    ("records", "text"),
    [
        ([warmup_record("nope", "x", [b"a"])], 'request 1 .*Serving signature key "nope" not found'),
        ([b"\xff\xff"], "request 1 .*failed"),
        ([b""] * 1001, "more than 1000"),
    ],
)
@pytest.mark.protocol("warmup.fails")
def test_version_whose_warmup_fails_does_not_load(
    linear: Path, tmp_path: Path, records: list[bytes], text: str
) -> None:
    shutil.copytree(linear / "5", tmp_path / "linear" / "6")
    write_warmup(tmp_path / "linear" / "6", records)
    with pytest.raises(BundleError, match=text):
        start(ServerSettings(tmp_path / "linear", port=0))


@pytest.mark.tf
def test_version_whose_warmup_file_is_not_a_tfrecord_does_not_load(linear: Path, tmp_path: Path) -> None:
    shutil.copytree(linear / "5", tmp_path / "linear" / "6")
    path = tmp_path / "linear" / "6" / contract.WARMUP_FILE
    path.write_bytes(struct.pack("<Q", 5) + b"no checksum here")
    with pytest.raises(BundleError, match="not a TFRecord file"):
        start(ServerSettings(tmp_path / "linear", port=0))


# --- The command `predict`, through a server and from a bundle ------------------------------------------


def export_classifier(directory: Path) -> None:
    """Write a model with hubhead's signature: it rejects empty photos, and abstains on a leading "?"."""
    import tensorflow as tf

    module = tf.Module()
    module.scores = tf.Variable([0.5, 0.3, 0.2])

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
    def serving_default(image_bytes: Any) -> Any:
        empty = tf.equal(image_bytes, "")
        abstains = tf.logical_or(empty, tf.strings.regex_full_match(image_bytes, r"\?.*"))
        shape = [tf.size(image_bytes), 3]
        return {
            "label": tf.where(abstains, "", "apple"),
            "classes": tf.broadcast_to(tf.constant(["apple", "bean", "corn"]), shape),
            "scores": tf.broadcast_to(module.scores, shape),
            "status": tf.where(empty, "empty", "ok"),
        }

    tf.saved_model.save(module, str(directory), signatures={"serving_default": serving_default})


@pytest.mark.tf
def test_predict_command_prints_the_same_from_a_server_and_from_a_bundle(tmp_path: Path) -> None:
    export_classifier(tmp_path / "fruit" / "1")
    photos = []
    for name, content in {"plain": b"photo", "odd": b"?", "empty": b""}.items():
        (tmp_path / name).write_bytes(content)
        photos.append(str(tmp_path / name))
    photos.append(str(tmp_path / "missing"))
    shared = [*photos, "--json", "--top_k", "2"]
    with start(ServerSettings(tmp_path / "fruit", port=0)) as server:
        asked = CliRunner().invoke(
            predict, [*shared, "--server", f"localhost:{server.port}", "--model_name", "fruit"]
        )
    local = CliRunner().invoke(predict, [*shared, "--model", str(tmp_path / "fruit")])
    assert (asked.exit_code, local.exit_code) == (0, 0), (asked.output, local.output)
    served, rows = ([json.loads(line) for line in found.stdout.splitlines()] for found in (asked, local))
    for row in (*served, *rows):
        for name in ("version", "engine", "cpu"):  # a bundle has no version here, a server names no engine
            row.pop(name)
    assert served == rows
    assert [(row["status"], row["label"], len(row["top"])) for row in rows] == [
        ("ok", "apple", 2),
        ("ok", None, 2),
        ("empty", None, 0),
        ("unreadable", None, 0),
    ]


def test_flags_of_serve_set_the_server_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[ServerSettings] = []
    monkeypatch.setattr(
        "serving.server.serve_until_signalled", lambda settings, ready, loader: seen.append(settings)
    )
    flags = [
        "--model_base_path",
        "m",
        "--model_name",
        "n",
        "--port",
        "9",
        "--file_system_poll_wait_seconds",
        "2",
    ]
    assert CliRunner().invoke(serve, flags).exit_code == 0
    assert seen == [
        ServerSettings(Path("m"), "n", port=9, file_system_poll_wait_seconds=2.0),
    ]


def test_serve_without_tensorflow_installed_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = CliRunner().invoke(serve, ["--model_base_path", "m"])
    assert isinstance(result.exception, HubheadError)
    assert "pip install 'hubhead[serve]'" in str(result.exception)


# --- The command, as a process --------------------------------------------------------------------------


@contextmanager
def serve_command(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-m", "serving", "serve", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.tf
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.protocol("process.sigterm")
def test_serve_prints_its_address_and_exits_0_on_sigterm_and_sigint(
    linear: Path, number: signal.Signals
) -> None:
    with serve_command("--model_base_path", str(linear), "--port", "0") as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("Serving model linear, version 5, at localhost:")
        address = line.rpartition(" at ")[2].split()[0]
        with Client(address, model="linear") as client:
            assert list_states(client) == {5: State.AVAILABLE}
        process.send_signal(number)
        out, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, err
    assert out == ""
    assert "Traceback" not in err


@pytest.mark.tf
def test_serve_waiting_at_an_empty_base_path_exits_0_on_sigterm(tmp_path: Path) -> None:
    with serve_command("--model_base_path", str(tmp_path), "--port", "0") as process:
        assert process.stderr is not None
        assert "has no version yet" in process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=LIMIT)
    assert (process.returncode, out, err) == (0, "", "")


@pytest.mark.tf
def test_serve_with_a_missing_base_path_fails_with_one_line(tmp_path: Path) -> None:
    with serve_command("--model_base_path", str(tmp_path / "none")) as process:
        out, err = process.communicate(timeout=LIMIT)
    assert (process.returncode, out) == (1, "")
    assert err.count("\n") == 1
    assert "does not exist" in err


@pytest.mark.tf
@pytest.mark.parametrize("above", [True, False])
def test_serve_names_the_right_directory_if_its_base_path_is_a_level_off(tmp_path: Path, above: bool) -> None:
    version = tmp_path / "models" / "food" / "3"
    version.mkdir(parents=True)
    (version / "saved_model.pb").write_bytes(b"")
    with serve_command("--model_base_path", str(tmp_path / "models" if above else version)) as process:
        out, err = process.communicate(timeout=LIMIT)
    assert (process.returncode, out) == (1, "")
    assert ("has no versions itself" if above else "is a version of a model") in err
    assert f"{tmp_path / 'models' / 'food'}" in err.partition("Give --model_base_path")[2]
