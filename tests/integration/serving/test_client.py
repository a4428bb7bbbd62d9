"""The client against a fake gRPC server: requests, decoding of responses, errors, the command `predict`."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from serving import contract, protos
from serving.client import Client, Retry, Signature, State, TensorInfo, VersionStatus, predictions
from serving.client.photos import Batcher
from serving.commands.predict import predict
from serving.contract import Prediction, Status
from serving.errors import (
    DeadlineExceeded,
    InputError,
    InvalidRequest,
    ModelNotFound,
    NotAllowed,
    Overloaded,
    ServerError,
    ServerUnavailable,
)
from serving.protos import tensors
from tests.support.fake_grpc_server import answer_for, fake_grpc_server, free_port

pytestmark = pytest.mark.server

TOP = (("apple", 0.75), ("pear", 0.25))


def test_predictions_are_in_order_each_with_its_own_status(tmp_path: Path) -> None:
    good = tmp_path / "good.jpg"
    good.write_bytes(b"good")
    seen: list[Any] = []

    def answer(request: Any, _: grpc.ServicerContext) -> Any:
        seen.append(request)
        return answer_for(list(request.inputs["image_bytes"].string_val))

    with (
        fake_grpc_server({protos.PREDICT: answer}) as address,
        Client(address, model="food", version=3) as client,
    ):
        result = client.classify([str(good), tmp_path / "missing.jpg", b"bad", b"odd", tmp_path, "a\0b"])
    assert [replace(prediction, detail=None) for prediction in result] == [
        Prediction(Status.OK, "apple", TOP),
        Prediction(Status.UNREADABLE, None, ()),
        Prediction(Status.CORRUPT, None, ()),
        Prediction(Status.OK, None, TOP),
        Prediction(Status.UNREADABLE, None, ()),
        Prediction(Status.UNREADABLE, None, ()),
    ]
    assert result[1].detail == "No such file or directory"
    assert result[2].detail is None, "the server gives no reason for a rejected photo"
    assert all(result[place].detail for place in (4, 5))
    assert len(seen) == 1
    assert seen[0].model_spec.name == "food"
    assert seen[0].model_spec.version.value == 3
    assert seen[0].model_spec.signature_name == contract.SERVING_DEFAULT
    assert list(seen[0].inputs["image_bytes"].string_val) == [b"good", b"bad", b"odd"]


def test_photos_are_batched_into_requests_of_at_most_32_and_top_k_truncates_labels() -> None:
    sizes: list[int] = []

    def answer(request: Any, _: grpc.ServicerContext) -> Any:
        images = list(request.inputs["image_bytes"].string_val)
        sizes.append(len(images))
        return answer_for(images)

    with (
        fake_grpc_server({protos.PREDICT: answer}) as address,
        Client(address, model="food", label="canary") as client,
    ):
        result = client.classify((b"photo" for _ in range(70)), top_k=1)
    assert sorted(sizes) == [6, 32, 32]
    assert result == [Prediction(Status.OK, "apple", TOP[:1])] * 70


def test_no_request_is_sent_without_readable_photos() -> None:
    with Client(f"localhost:{free_port()}", model="food") as client:
        assert client.classify([]) == []
        [missing] = client.classify(["/no/such/file"])
    assert missing.status is Status.UNREADABLE


def test_messages_above_grpcs_default_limit_of_4_mib_pass() -> None:
    def answer(request: Any, _: grpc.ServicerContext) -> Any:
        response = answer_for(list(request.inputs["image_bytes"].string_val))
        response.outputs["padding"].string_val.append(b"x" * 5_000_000)
        response.outputs["padding"].dtype = tensors.DT_STRING
        return response

    with fake_grpc_server({protos.PREDICT: answer}) as address, Client(address, model="food") as client:
        assert client.classify([b"x" * 6_000_000])[0].label == "apple"


@pytest.fixture(scope="module")
def heic() -> bytes:
    """Return a HEIC photo, 48 pixels wide and 32 high."""
    import pillow_heif

    file = io.BytesIO()
    pillow_heif.from_pillow(Image.new("RGB", (48, 32), (200, 100, 50))).save(file)
    return file.getvalue()


def test_heic_is_converted_to_png_and_other_formats_are_sent_unchanged(heic: bytes) -> None:
    seen: list[bytes] = []

    def answer(request: Any, _: grpc.ServicerContext) -> Any:
        seen.extend(request.inputs["image_bytes"].string_val)
        return answer_for(list(request.inputs["image_bytes"].string_val))

    broken = heic[: len(heic) // 2]
    photos = [b"good", heic, broken, b"8BPS", b"odd"]
    with fake_grpc_server({protos.PREDICT: answer}) as address:
        with Client(address, model="food") as client:
            result = client.classify(photos)
        good, png, odd = seen
        with Client(address, model="food", convert=False) as client:
            unconverted = client.classify(photos)
    assert (good, odd) == (b"good", b"odd")
    with Image.open(io.BytesIO(png)) as image:
        assert (image.format, image.size) == ("PNG", (48, 32))
    assert [prediction.status for prediction in result] == ["ok", "ok", "corrupt", "unsupported_format", "ok"]
    assert [prediction.label for prediction in result] == ["apple", "apple", None, None, None]
    assert "HEIC that cannot be decoded" in (result[2].detail or "")
    assert result[3].detail == "Photoshop, which is not converted"
    assert seen[3:] == photos, "with convert=False all photos are sent unchanged"
    assert all(prediction.detail is None for prediction in unconverted)


def test_no_converter_process_is_started_for_jpegs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", None)
    with fake_grpc_server(ECHO) as address, Client(address, model="food") as client:
        assert client.classify([b"good", b"\xff\xd8\xff"])[0].label == "apple"


@given(st.lists(st.binary(max_size=30), max_size=40), st.integers(1, 8), st.integers(1, 60))
def test_batches_keep_order_within_max_photos_and_max_bytes(
    photos: list[bytes], max_photos: int, max_bytes: int
) -> None:
    batches = list(Batcher(max_photos, max_bytes).split((photo, photo) for photo in photos))
    groups = [[item for _, item in batch] for batch in batches]
    assert [image for group in groups for image in group] == photos
    for group in groups:
        assert 1 <= len(group) <= max_photos
        assert len(group) == 1 or sum(len(image) for image in group if isinstance(image, bytes)) <= max_bytes


@pytest.mark.parametrize(
    ("code", "details", "kind", "remedy"),
    [
        (grpc.StatusCode.UNAVAILABLE, "gone", ServerUnavailable, "hubhead serve"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "queue", Overloaded, "Try again"),
        (
            grpc.StatusCode.UNAVAILABLE,
            "The batch scheduling queue to which this task was submitted is full",
            Overloaded,
            "Try again",
        ),
        (grpc.StatusCode.UNAUTHENTICATED, "who?", NotAllowed, "--header"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "late", DeadlineExceeded, "--timeout"),
        (grpc.StatusCode.NOT_FOUND, "Servable not found", ModelNotFound, "--model_name"),
        (grpc.StatusCode.INVALID_ARGUMENT, "input size", InvalidRequest, "hubhead"),
        (grpc.StatusCode.FAILED_PRECONDITION, "Serving signature", InvalidRequest, "hubhead"),
        (
            grpc.StatusCode.INVALID_ARGUMENT,
            "Unrecognized servable version label: x",
            ModelNotFound,
            "label",
        ),
        (grpc.StatusCode.INTERNAL, "oops", ServerError, "log"),
    ],
)
def test_each_grpc_status_code_maps_to_one_error_class(
    code: grpc.StatusCode, details: str, kind: type[ServerError], remedy: str
) -> None:
    def answer(_: Any, context: grpc.ServicerContext) -> Any:
        context.abort(code, details)

    with fake_grpc_server({protos.PREDICT: answer}) as address:
        with (
            Client(address, model="food", retry=Retry(attempts=1)) as client,
            pytest.raises(ServerError) as caught,
        ):
            client.classify([b"photo"])
        message = str(caught.value)
        assert type(caught.value) is kind
        assert caught.value.code == code.name
        assert isinstance(caught.value.__cause__, grpc.RpcError)
        assert address in message
        assert "'food'" in message
        assert remedy in caught.value.remedy


def test_unavailable_server_error_has_the_address_and_the_remedy() -> None:
    address = f"localhost:{free_port()}"
    with (
        Client(address, model="food", timeout=5) as client,
        pytest.raises(ServerUnavailable, match=rf"{address}.*hubhead serve"),
    ):
        client.classify([b"photo"])


def test_server_without_the_method_is_reported_as_unimplemented() -> None:
    with (
        fake_grpc_server({protos.PREDICT: lambda request, context: request}) as address,
        Client(address, model="food") as client,
        pytest.raises(ServerError, match="gRPC port") as caught,
    ):
        client.status()
    assert caught.value.code == "UNIMPLEMENTED"


def test_timeout_is_the_deadline_of_a_call() -> None:
    def answer(request: Any, _: grpc.ServicerContext) -> Any:
        time.sleep(1)
        return answer_for([b"photo"])

    with (
        fake_grpc_server({protos.PREDICT: answer}) as address,
        Client(address, model="food", timeout=0.2) as client,
        pytest.raises(DeadlineExceeded),
    ):
        client.classify([b"photo"])


def test_version_and_label_exclude_each_other() -> None:
    with pytest.raises(InputError, match="one of the two"):
        Client("localhost:1", model="food", version=1, label="stable")


def test_given_channel_is_used_and_not_closed() -> None:
    answers = {protos.PREDICT: lambda request, context: answer_for([b"photo"])}
    with fake_grpc_server(answers) as address, grpc.insecure_channel(address) as channel:
        for _ in range(2):
            with Client("by hand", model="food", channel=channel) as client:
                assert client.classify([b"photo"])[0].label == "apple"


def make_outputs(**changes: Any) -> dict[str, Any]:
    response = answer_for([b"a", b"b"])
    outputs = {name: tensors.decode(proto, name) for name, proto in response.outputs.items()}
    return {name: value for name, value in (outputs | changes).items() if value is not None}


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"status": None}, "'status'.*none"),
        ({"scores": np.zeros((1, 2), np.float32)}, r"'scores'.*\[1, 2\]"),
        ({"label": np.zeros(2, np.float32)}, "'label': strings.*float32"),
        ({"status": np.array([b"ok", b"brand_new"], dtype=object)}, "brand_new.*Update hubhead"),
        ({"label": np.array([b"a", b"\xff"], dtype=object)}, r"label b'\\xff'.* not UTF-8"),
        ({"classes": np.array([[b"a", b"\xff"]] * 2, dtype=object)}, r"label b'\\xff'.* not UTF-8"),
        ({"classes": np.array([[b"a"]] * 2, dtype=object)}, "1 labels and 2 scores"),
    ],
)
def test_outputs_that_break_the_contract_are_an_error(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ServerError, match=text):
        predictions(make_outputs(**changes), 2)


def test_malformed_tensor_in_a_response_is_an_error() -> None:
    def answer(request: Any, _: grpc.ServicerContext) -> Any:
        response = answer_for([b"photo"])
        response.outputs["scores"].float_val.extend([1.0] * 9)
        return response

    with (
        fake_grpc_server({protos.PREDICT: answer}) as address,
        Client(address, model="food") as client,
        pytest.raises(ServerError, match=r"broken answer.*'scores'"),
    ):
        client.classify([b"photo"])


def make_status(*rows: tuple[int, str, str]) -> protos.Message:
    response = protos.GetModelStatusResponse()
    for version, state, message in rows:
        entry = response.model_version_status.add(version=version, state=state)
        entry.status.error_message = message
    return response


def test_status_lists_versions_newest_first_with_their_errors() -> None:
    response = make_status((1, "AVAILABLE", ""), (2, "END", "does not load"))
    with (
        fake_grpc_server({protos.GET_MODEL_STATUS: lambda request, context: response}) as address,
        Client(address, model="food") as client,
    ):
        assert client.status() == [
            VersionStatus(2, State.END, "does not load"),
            VersionStatus(1, State.AVAILABLE, ""),
        ]


def test_state_that_the_protocol_does_not_have_is_unknown() -> None:
    response = make_status((1, "AVAILABLE", ""))
    response.model_version_status[0].state = 71
    with (
        fake_grpc_server({protos.GET_MODEL_STATUS: lambda *_: response}) as address,
        Client(address, model="food") as client,
    ):
        assert client.status() == [VersionStatus(1, State.UNKNOWN, "")]


def test_metadata_that_cannot_be_parsed_is_an_error() -> None:
    response = protos.GetModelMetadataResponse()
    response.metadata["signature_def"].Pack(protos.SignatureDefMap())
    response.metadata["signature_def"].value = b"\xff"
    with (
        fake_grpc_server({protos.GET_MODEL_METADATA: lambda *_: response}) as address,
        Client(address, model="food") as client,
        pytest.raises(ServerError, match="without signatures"),
    ):
        client.metadata()


def test_pixels_are_encoded_for_a_model_whose_classify_pixels_has_other_inputs() -> None:
    declared = protos.SignatureDefMap()
    declared.signature_def[contract.CLASSIFY_PIXELS].inputs["other"].dtype = 1
    metadata = protos.GetModelMetadataResponse()
    metadata.metadata["signature_def"].Pack(declared)
    answers = {
        protos.GET_MODEL_METADATA: lambda *_: metadata,
        protos.PREDICT: lambda request, _: answer_for(list(request.inputs["image_bytes"].string_val)),
    }
    with fake_grpc_server(answers) as address, Client(address, model="food") as client:
        assert client.classify([np.zeros((4, 4, 3), np.uint8)])[0].label == "apple"


def test_wait_until_ready_returns_when_the_model_is_available() -> None:
    states = iter(["START", "LOADING", "AVAILABLE"])
    answers = {protos.GET_MODEL_STATUS: lambda request, context: make_status((1, next(states), ""))}
    with fake_grpc_server(answers) as address, Client(address, model="food") as client:
        client.wait_until_ready(20)
    assert next(states, None) is None


def test_wait_until_ready_reports_the_last_state_at_the_timeout() -> None:
    answers = {protos.GET_MODEL_STATUS: lambda request, context: make_status((7, "LOADING", ""))}
    with (
        fake_grpc_server(answers) as address,
        Client(address, model="food") as client,
        pytest.raises(DeadlineExceeded, match="version 7 is LOADING"),
    ):
        client.wait_until_ready(0.5)


def test_wait_until_ready_without_a_server_ends_at_the_timeout() -> None:
    begin = time.monotonic()
    with (
        Client(f"localhost:{free_port()}", model="food") as client,
        pytest.raises(DeadlineExceeded, match="no server answered"),
    ):
        client.wait_until_ready(0.5)
    assert time.monotonic() - begin < 10


def test_metadata_omits_internal_signatures_of_tensorflow() -> None:
    declared = protos.SignatureDefMap()
    declared.signature_def["__saved_model_init_op"].SetInParent()
    info = declared.signature_def["serving_default"].inputs["image_bytes"]
    info.dtype = tensors.DT_STRING
    info.tensor_shape.dim.add(size=-1)
    declared.signature_def["serving_default"].outputs["any"].tensor_shape.unknown_rank = True

    def answer(request: Any, _: grpc.ServicerContext) -> Any:
        assert list(request.metadata_field) == ["signature_def"]
        response = protos.GetModelMetadataResponse()
        response.model_spec.name = "food"
        response.model_spec.version.value = 4
        response.metadata["signature_def"].Pack(declared)
        return response

    with (
        fake_grpc_server({protos.GET_MODEL_METADATA: answer}) as address,
        Client(address, model="food") as client,
    ):
        metadata = client.metadata()
    assert (metadata.name, metadata.version) == ("food", 4)
    assert metadata.signatures == {
        "serving_default": Signature(
            {"image_bytes": TensorInfo("string", (None,))}, {"any": TensorInfo("invalid", None)}
        )
    }


# --- The command `predict` ------------------------------------------------------------------------------

ECHO = {protos.PREDICT: lambda request, _: answer_for(list(request.inputs["image_bytes"].string_val))}


@pytest.fixture
def photos(tmp_path: Path) -> list[str]:
    """Write photos that are classified, rejected and abstained on; the fourth path does not exist."""
    for name in ("good", "bad", "odd"):
        (tmp_path / f"{name}[red].jpg").write_bytes(name.encode())
    return [str(tmp_path / f"{name}[red].jpg") for name in ("good", "bad", "odd", "missing")]


def test_predict_prints_a_row_per_photo_and_exits_with_0(photos: list[str]) -> None:
    with fake_grpc_server(ECHO) as address:
        result = CliRunner(env={"COLUMNS": "250"}).invoke(
            predict, [*photos, "--server", address, "--model_name", "food"]
        )
    assert result.exit_code == 0, result.output
    good, bad, odd, missing = (line for line in result.stdout.splitlines() if "[red].jpg" in line)
    assert "apple" in good
    assert "0.75 ████████" in good
    assert "pear 0.25" in good
    assert "corrupt: looks like an image but cannot be decoded" in bad
    assert "apple" not in bad
    assert "none of these" in odd
    assert "apple 0.75, pear 0.25" in odd
    assert "unreadable: the file could not be read from storage (No such file or directory)" in missing


def test_predict_reports_why_a_photo_was_not_sent(tmp_path: Path) -> None:
    (tmp_path / "layers.psd").write_bytes(b"8BPS")
    given = [str(tmp_path / "layers.psd"), "--model_name", "food"]
    with fake_grpc_server(ECHO) as address:
        table = CliRunner(env={"COLUMNS": "250"}).invoke(predict, [*given, "--server", address])
        record = CliRunner().invoke(predict, [*given, "--server", address, "--json"])
    assert "cannot be decoded here (Photoshop, which is not converted)" in table.stdout
    assert json.loads(record.stdout)["detail"] == "Photoshop, which is not converted"


def test_predict_json_prints_one_object_per_line(photos: list[str]) -> None:
    with fake_grpc_server(ECHO) as address:
        flags = ["--server", address, "--json", "--top_k", "1"]
        result = CliRunner(env={"HUBHEAD_MODEL": "food"}).invoke(predict, [*photos[:2], *flags])
    assert result.exit_code == 0, result.output
    assert [json.loads(line) for line in result.stdout.splitlines()] == [
        {
            "photo": photos[0],
            "status": "ok",
            "detail": None,
            "label": "apple",
            "score": 0.75,
            "top": [{"label": "apple", "score": 0.75}],
            "version": None,
            "engine": None,
            "cpu": None,
        },
        {
            "photo": photos[1],
            "status": "corrupt",
            "detail": None,
            "label": None,
            "score": None,
            "top": [],
            "version": None,
            "engine": None,
            "cpu": None,
        },
    ]


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ([], "exactly one of --server"),
        (["--server", "localhost:1", "--model", "m"], "exactly one of --server"),
        (["--server", "localhost:1"], "--model_name"),
        (["--model", "m", "--timeout", "3"], "--timeout requires --server"),
        (["--model", "m", "--model_name", "x"], "--model_name requires --server"),
        (["--server", "localhost:1", "--top_k", "0"], "--top_k"),
    ],
)
def test_conflicting_flags_are_a_usage_error(flags: list[str], text: str) -> None:
    result = CliRunner(env={"HUBHEAD_MODEL": None}).invoke(predict, ["a.jpg", *flags])
    assert result.exit_code == 2
    assert text in result.stderr


def test_predict_without_a_server_fails_with_a_one_line_error(photos: list[str]) -> None:
    address = f"localhost:{free_port()}"
    done = subprocess.run(
        [sys.executable, "-m", "serving", "predict", photos[0], "--server", address, "--model_name", "food"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert address in done.stderr
    assert "hubhead serve" in done.stderr


def test_predict_imports_heavy_packages_only_when_it_runs() -> None:
    code = "import sys, serving.commands.predict; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert loaded.isdisjoint({"grpc", "numpy", "google", "rich", "tensorflow"})
