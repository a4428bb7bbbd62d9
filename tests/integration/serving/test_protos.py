"""The protocol buffer messages match TensorFlow Serving's and do not import TensorFlow."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from serving import protos

IMPORT_COST = """
import json, sys, time
begin = time.perf_counter()
import serving.client
from serving import protos
from serving.protos import tensors
request = protos.PredictRequest()
request.model_spec.name = "food"
request.inputs["image_bytes"].CopyFrom(tensors.encode([b"photo"]))
seconds = time.perf_counter() - begin
status = open("/proc/self/status").read() if sys.platform == "linux" else ""
megabytes = [int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM")]
loaded = {name.partition(".")[0] for name in sys.modules}
heavy = sorted(loaded & {"tensorflow", "apache_beam", "keras", "scipy"})
print(json.dumps({"seconds": seconds, "megabytes": megabytes, "heavy": heavy, "bytes": request.ByteSize()}))
"""

CONCURRENT_FIRST_ACCESS = """
import threading
from concurrent.futures import ThreadPoolExecutor
from serving import protos
barrier = threading.Barrier(8)
def first_use(_):
    barrier.wait(timeout=30)
    return protos.PredictRequest
with ThreadPoolExecutor(8) as pool:
    print(len(set(pool.map(first_use, range(8)))))
"""


def run_python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout


def test_the_client_and_a_request_do_not_import_tensorflow() -> None:
    seen = json.loads(run_python(IMPORT_COST))
    print(f"client and first request: {seen['seconds']:.2f} s, {seen['megabytes']} MB")
    assert seen["heavy"] == []
    assert seen["bytes"] > 0
    assert all(megabytes < 150 for megabytes in seen["megabytes"])  # TensorFlow alone takes 550


def test_concurrent_first_access_creates_one_message_class() -> None:
    assert run_python(CONCURRENT_FIRST_ACCESS).strip() == "1"


def test_an_unknown_message_raises_attribute_error() -> None:
    with pytest.raises(AttributeError, match="NoSuchMessage"):
        protos.NoSuchMessage  # noqa: B018


def test_messages_and_enums_of_both_packages_are_found() -> None:
    assert protos.PredictRequest.DESCRIPTOR.full_name == "tensorflow.serving.PredictRequest"
    assert protos.TensorProto.DESCRIPTOR.full_name == "tensorflow.TensorProto"
    assert protos.DataType.Value("DT_STRING") == 7
    assert protos.ModelVersionStatus.AVAILABLE == 30


@pytest.mark.tf
def test_the_committed_descriptors_match_the_installed_packages() -> None:
    from serving.protos import generate

    fresh = generate.descriptor_set().SerializeToString(deterministic=True)
    assert fresh == protos.DESCRIPTORS.read_bytes(), "run: python -m serving.protos.generate"


@pytest.mark.tf
def test_the_official_message_classes_parse_our_messages_in_the_same_process() -> None:
    from tensorflow_serving.apis import predict_pb2

    ours = protos.PredictRequest()
    ours.model_spec.name = "food"
    ours.model_spec.version.value = 3
    ours.inputs["x"].float_val.extend([1.0, 2.0])
    theirs = predict_pb2.PredictRequest.FromString(ours.SerializeToString())
    assert theirs.model_spec.version.value == 3
    assert list(theirs.inputs["x"].float_val) == [1.0, 2.0]
    assert predict_pb2.PredictRequest is not protos.PredictRequest


@pytest.mark.tf
def test_the_method_paths_exist_in_the_official_services() -> None:
    from tensorflow_serving.apis import model_service_pb2, prediction_service_pb2

    declared = {
        f"/{service.full_name}/{method.name}"
        for module in (prediction_service_pb2, model_service_pb2)
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }
    assert {protos.PREDICT, protos.GET_MODEL_METADATA, protos.GET_MODEL_STATUS} <= declared
