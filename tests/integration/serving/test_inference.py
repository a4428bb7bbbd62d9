"""Classify, Regress, MultiInference and Predict on models of any kind, with TensorFlow Serving's errors."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from serving import contract, protos, runtime
from serving.protos import tensors
from serving.server import ServerSettings, start
from serving.server.models import inference
from serving.server.models.servable import Servable, read_signatures
from serving.server.models.warmup import warm_up
from serving.server.status_error import StatusError
from tests.support.fake_model import LIMIT

pytestmark = pytest.mark.server

FLOAT, INT, STRING = 1, 9, 7
CLASSIFY, REGRESS = inference.CLASSIFY_METHOD, inference.REGRESS_METHOD


class FixedOutputModel:
    """A model that returns the same outputs for every call, and records its inputs."""

    threads = 1
    engine = "tensorflow"

    def __init__(self, **outputs: Any) -> None:
        self.outputs = outputs
        self.received: list[Mapping[str, Any]] = []

    def prepare(self, signature: str) -> None:
        """Do nothing, as all is loaded."""

    def run(self, signature: str, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        self.received.append(inputs)
        return self.outputs


def make_signature(inputs: dict[str, int], outputs: dict[str, int], feed: str = "in") -> Any:
    signature = protos.SignatureDef()
    for infos, kinds in ((signature.inputs, inputs), (signature.outputs, outputs)):
        for alias, dtype in kinds.items():
            infos[alias].name, infos[alias].dtype = f"{feed}_{alias}:0", dtype
    return signature


CLASSIFIER = make_signature({"inputs": STRING}, {"classes": STRING, "scores": FLOAT})
REGRESSOR = make_signature({"inputs": STRING}, {"outputs": FLOAT})
OTHER = make_signature({"x": FLOAT}, {"y": FLOAT})


def make_servable(model: Any, **signatures: Any) -> Servable:
    return Servable("m", 3, model, signatures)


def make_example(**features: float) -> Any:
    found = protos.Example()
    for name, value in features.items():
        found.features.feature[name].float_list.value.append(value)
    return found


def make_two_examples() -> Any:
    return protos.Input(example_list={"examples": [make_example(x=1), make_example(x=2)]})


def make_class_column(*rows: list[bytes]) -> Any:
    found = np.empty((len(rows), len(rows[0])), dtype=object)
    for index, row in enumerate(rows):
        found[index] = row
    return found


def error_of(call: Any, *arguments: Any) -> tuple[str, str]:
    with pytest.raises(StatusError) as caught:
        call(*arguments)
    return caught.value.code.name, caught.value.details


def classification(response: Any) -> list[list[tuple[str, float]]]:
    return [[(one.label, one.score) for one in row.classes] for row in response.result.classifications]


def test_classify_returns_labels_and_scores_in_the_models_order() -> None:
    model = FixedOutputModel(
        classes=make_class_column([b"b", b"a"], [b"c", b"\xff"]),
        scores=np.array([[0.25, 0.75], [0.5, 0.5]], np.float32),
    )
    response = make_servable(model, c=CLASSIFIER).classify(
        protos.ClassificationRequest(
            model_spec={"name": "m", "signature_name": "c"}, input=make_two_examples()
        )
    )
    assert classification(response) == [[("b", 0.25), ("a", 0.75)], [("c", 0.5), ("\ufffd", 0.5)]]
    assert response.model_spec.version.value == 3
    assert response.model_spec.signature_name == "c"
    assert [protos.Example.FromString(row) for row in model.received[0]["inputs"]] == [
        make_example(x=1),
        make_example(x=2),
    ]


def test_classify_accepts_signatures_with_only_labels_or_only_scores() -> None:
    request = protos.ClassificationRequest(model_spec={"name": "m"}, input=make_two_examples())
    only_labels = make_servable(
        FixedOutputModel(classes=make_class_column([b"a"], [b"b"])),
        serving_default=make_signature({"inputs": STRING}, {"classes": STRING}),
    )
    assert classification(only_labels.classify(request)) == [[("a", 0)], [("b", 0)]]
    only_scores = make_servable(
        FixedOutputModel(scores=np.array([[1.0], [2.0]], np.float32)),
        serving_default=make_signature({"inputs": STRING}, {"scores": FLOAT}),
    )
    assert classification(only_scores.classify(request)) == [[("", 1)], [("", 2)]]


@pytest.mark.parametrize("shape", [(2,), (2, 1)])
def test_regress_accepts_a_vector_or_a_column(shape: tuple[int, ...]) -> None:
    model = FixedOutputModel(outputs=np.array([1.5, -2], np.float32).reshape(shape))
    response = make_servable(model, r=REGRESSOR).regress(
        protos.RegressionRequest(model_spec={"name": "m", "signature_name": "r"}, input=make_two_examples())
    )
    assert [one.value for one in response.result.regressions] == [1.5, -2]


def test_context_is_merged_into_every_example_and_its_own_features_override_it() -> None:
    feed = inference.serialize_examples(
        protos.Input(
            example_list_with_context={
                "examples": [make_example(x=1), make_example(x=2, c=8)],
                "context": make_example(c=9, d=7),
            }
        )
    )
    assert [protos.Example.FromString(row) for row in feed["inputs"]] == [
        make_example(x=1, c=9, d=7),
        make_example(x=2, c=8, d=7),
    ]


@pytest.mark.parametrize(
    "empty",
    [
        protos.Input(),
        protos.Input(example_list={}),
        protos.Input(example_list_with_context={"context": make_example(c=1)}),
    ],
)
def test_request_without_examples_is_rejected(empty: Any) -> None:
    request = protos.ClassificationRequest(model_spec={"name": "m", "signature_name": "c"}, input=empty)
    assert error_of(make_servable(FixedOutputModel(), c=CLASSIFIER).classify, request) == (
        "INVALID_ARGUMENT",
        "Input is empty.",
    )


@pytest.mark.parametrize(
    ("api", "signature", "outputs", "expected"),
    [
        ("classify", None, {}, ("INVALID_ARGUMENT", "No signature was found with the name: s")),
        ("regress", None, {}, ("INVALID_ARGUMENT", "No signature was found with the name: s")),
        (
            "classify",
            make_signature({"a": FLOAT, "b": FLOAT}, {"scores": FLOAT}),
            {},
            ("INVALID_ARGUMENT", "Expected one input Tensor."),
        ),
        (
            "classify",
            make_signature({"inputs": STRING}, {"a": FLOAT, "b": FLOAT, "scores": FLOAT}),
            {},
            ("INVALID_ARGUMENT", "Expected one or two output Tensors, found 3"),
        ),
        ("classify", OTHER, {}, ("FAILED_PRECONDITION", "No classification inputs found in SignatureDef: ")),
        (
            "classify",
            REGRESSOR,
            {},
            (
                "FAILED_PRECONDITION",
                'Expected classification signature outputs to contain at least one of "classes" or "scores".',
            ),
        ),
        ("regress", CLASSIFIER, {}, ("INVALID_ARGUMENT", "Expected one output Tensor.")),
        ("regress", OTHER, {}, ("FAILED_PRECONDITION", "No regression inputs found in SignatureDef: ")),
        (
            "regress",
            make_signature({"inputs": STRING}, {"scores": FLOAT}),
            {},
            ("FAILED_PRECONDITION", "No regression outputs found in SignatureDef: "),
        ),
        (
            "classify",
            CLASSIFIER,
            {"scores": np.ones(2, np.float32)},
            ("INVALID_ARGUMENT", "Expected Tensor shape: [batch_size num_classes] but got [2]"),
        ),
        (
            "classify",
            CLASSIFIER,
            {"classes": np.ones((2, 1), np.int64)},
            ("INVALID_ARGUMENT", "Expected classes Tensor of DT_STRING. Got: DT_INT64"),
        ),
        (
            "classify",
            CLASSIFIER,
            {"scores": np.ones((3, 1), np.float32)},
            ("INVALID_ARGUMENT", "Expected scores output batch size of 2. Got: 3"),
        ),
        (
            "classify",
            CLASSIFIER,
            {"classes": make_class_column([b"a"], [b"b"]), "scores": np.ones((2, 4), np.float32)},
            ("INVALID_ARGUMENT", "Tensors class and score should match in dim_size(1). Got 1 vs. 4"),
        ),
        (
            "regress",
            REGRESSOR,
            {"outputs": np.ones((2, 2), np.float32)},
            (
                "INVALID_ARGUMENT",
                "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got [2,2]",
            ),
        ),
        (
            "regress",
            REGRESSOR,
            {"outputs": np.ones(3, np.float32)},
            ("INVALID_ARGUMENT", "Input batch size did not match output batch size: 2 vs. 3"),
        ),
        (
            "regress",
            REGRESSOR,
            {"outputs": np.ones(2, np.int64)},
            ("INVALID_ARGUMENT", "Expected output Tensor of DT_FLOAT.  Got: DT_INT64"),
        ),
    ],
)
def test_unsuitable_signature_or_output_has_tensorflow_servings_error(
    api: str, signature: Any, outputs: dict[str, Any], expected: tuple[str, str]
) -> None:
    one = make_signature({"inputs": STRING}, dict.fromkeys(outputs, FLOAT)) if outputs else signature
    request = {
        "classify": protos.ClassificationRequest,
        "regress": protos.RegressionRequest,
    }[api](model_spec={"name": "m", "signature_name": "s"}, input=make_two_examples())
    found = make_servable(FixedOutputModel(**outputs), **({"s": one} if one is not None else {}))
    code, text = error_of(getattr(found, api), request)
    assert (code, text[: len(expected[1])]) == expected


def make_tasks(*wanted: tuple[str, str, str]) -> Any:
    request = protos.MultiInferenceRequest(input=make_two_examples())
    for model, signature, method in wanted:
        request.tasks.add(model_spec={"name": model, "signature_name": signature}, method_name=method)
    return request


def test_multi_inference_results_are_in_task_order() -> None:
    model = FixedOutputModel(
        outputs=np.ones(2, np.float32),
        scores=np.ones((2, 1), np.float32),
        classes=make_class_column([b"a"], [b"b"]),
    )
    found = make_servable(model, r=REGRESSOR, c=CLASSIFIER)
    response = found.multi_inference(make_tasks(("m", "r", REGRESS), ("m", "c", CLASSIFY)))
    assert [result.WhichOneof("result") for result in response.results] == [
        "regression_result",
        "classification_result",
    ]
    assert [result.model_spec.signature_name for result in response.results] == ["r", "c"]
    assert response.results[1].classification_result.classifications[1].classes[0].label == "b"


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (
            [("m", "r", REGRESS), ("n", "c", CLASSIFY)],
            (
                "INVALID_ARGUMENT",
                "All ModelSpecs in a MultiInferenceRequest must access the same model name.",
            ),
        ),
        (
            [("m", "r", REGRESS), ("", "c", CLASSIFY)],
            ("INVALID_ARGUMENT", "Found ModelSpec with an empty model name."),
        ),
        (
            [("m", "r", REGRESS), ("m", "r", CLASSIFY)],
            ("INVALID_ARGUMENT", "Duplicate evaluation of signature: r"),
        ),
        ([("m", "q", REGRESS)], ("INVALID_ARGUMENT", "Requested signature not found in model graph: q")),
        (
            [("m", "r", "tensorflow/serving/predict")],
            ("UNIMPLEMENTED", "Unsupported signature method_name: tensorflow/serving/predict"),
        ),
    ],
)
def test_incompatible_multi_inference_tasks_are_rejected(wanted: Any, expected: tuple[str, str]) -> None:
    found = make_servable(FixedOutputModel(), r=REGRESSOR, c=CLASSIFIER)
    assert error_of(found.multi_inference, make_tasks(*wanted)) == expected


def test_missing_input_takes_the_default_of_the_signature() -> None:
    signature = make_signature({"x": FLOAT, "scale": FLOAT}, {"y": FLOAT})
    signature.defaults["scale"].CopyFrom(tensors.encode(np.array([3], np.float32)))
    model = FixedOutputModel(y=np.ones(1, np.float32))
    found = make_servable(model, serving_default=signature)
    request = protos.PredictRequest(model_spec={"name": "m"})
    request.inputs["x"].CopyFrom(tensors.encode(np.array([1], np.float32)))
    found.predict(request)
    assert {name: values.tolist() for name, values in model.received[0].items()} == {
        "scale": [3.0],
        "x": [1.0],
    }
    request.inputs["scale"].CopyFrom(tensors.encode(np.array([5], np.float32)))
    found.predict(request)
    assert model.received[1]["scale"].tolist() == [5.0]
    del request.inputs["x"]
    code, text = error_of(found.predict, request)
    assert (code, text) == (
        "INVALID_ARGUMENT",
        "Signature input alias: x(feed name: in_x:0) not found in request and no default value provided. "
        "Inputs expected to be in the request {scale}, or default input alias set: scale",
    )


def test_outputs_are_typed_values_or_tensor_content() -> None:
    request = protos.PredictRequest(
        model_spec={"name": "m"}, inputs={"x": tensors.encode(np.ones(1, np.float32))}
    )
    for tensor_content in (False, True):
        model = FixedOutputModel(y=np.array([1, 2], np.float32))
        found = Servable("m", 1, model, {"serving_default": OTHER}, tensor_content=tensor_content)
        answer = found.predict(request).outputs["y"]
        assert (len(answer.float_val), len(answer.tensor_content)) == ((0, 8) if tensor_content else (2, 0))
        assert tensors.decode(answer, "y").tolist() == [1, 2]


def test_a_signature_that_is_being_loaded_does_not_hold_up_the_others() -> None:
    loaded, loading = threading.Event(), threading.Barrier(3)

    class LazyModel(FixedOutputModel):
        def prepare(self, signature: str) -> None:
            if signature == "lazy":
                loading.wait(LIMIT)
                assert loaded.wait(LIMIT)

    servable = make_servable(LazyModel(y=np.ones(1, np.float32)), serving_default=OTHER, lazy=OTHER)
    request = protos.PredictRequest(
        model_spec={"name": "m"}, inputs={"x": tensors.encode(np.ones(1, np.float32))}
    )
    lazy = protos.PredictRequest(model_spec={"signature_name": "lazy"}, inputs=request.inputs)
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(servable.predict, lazy, seconds) for seconds in (LIMIT, 0.01)]
        loading.wait(LIMIT)
        time.sleep(0.02)
        assert servable.predict(request, LIMIT).outputs["y"].float_val == [1]
        loaded.set()
        assert waiting[0].result().outputs["y"].float_val == [1]
        with pytest.raises(StatusError) as caught:
            waiting[1].result()
        assert "timeout exceeded" in caught.value.details, "loading takes time of the deadline"


# --- A real model whose Classify and Regress share their input, as TensorFlow 1 wrote them ---------------


def export(directory: Path) -> None:
    import tensorflow as tf

    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        serialized = v1.placeholder(tf.string, [None], name="tf_example")
        x = v1.parse_example(serialized, {"x": v1.FixedLenFeature([1], tf.float32)}, name="ParseExample")["x"]
        scores = tf.concat([x, 1 - x], axis=1)
        classes = tf.tile([["yes", "no"]], [tf.size(serialized), 1])
        half = tf.cast(x, tf.bfloat16)

        def info(tensor: Any) -> Any:
            return v1.saved_model.build_tensor_info(tensor)

        examples = {"inputs": info(serialized)}
        build = v1.saved_model.build_signature_def
        builder = v1.saved_model.Builder(str(directory))
        builder.add_meta_graph_and_variables(
            session,
            ["serve"],
            {
                "classify": build(examples, {"classes": info(classes), "scores": info(scores)}, CLASSIFY),
                "regress": build(examples, {"outputs": info(x * 10)}, REGRESS),
                "serving_default": build({"x": info(x)}, {"half": info(half)}, "tensorflow/serving/predict"),
            },
        )
        builder.save()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models") / "old"
    export(directory / "1")
    return directory


@pytest.fixture(scope="module")
def loaded(model: Path) -> Servable:
    return Servable("old", 1, runtime.load(model / "1"), read_signatures(model / "1"))


@pytest.fixture(scope="module")
def channel(model: Path) -> Iterator[grpc.Channel]:
    with (
        start(ServerSettings(model, port=0)) as server,
        grpc.insecure_channel(f"localhost:{server.port}") as channel,
    ):
        yield channel


@pytest.mark.tf
def test_classify_regress_and_multi_inference_through_the_official_client(channel: grpc.Channel) -> None:
    from tensorflow_serving.apis import (
        classification_pb2,
        inference_pb2,
        prediction_service_pb2_grpc,
        regression_pb2,
    )

    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    classify = classification_pb2.ClassificationRequest()
    classify.model_spec.name, classify.model_spec.signature_name = "old", "classify"
    for value in (0.25, 1.0):
        one = classify.input.example_list.examples.add()
        one.features.feature["x"].float_list.value.append(value)
    answer = stub.Classify(classify, timeout=LIMIT)
    assert [[(one.label, one.score) for one in row.classes] for row in answer.result.classifications] == [
        [("yes", 0.25), ("no", 0.75)],
        [("yes", 1.0), ("no", 0.0)],
    ]
    regress = regression_pb2.RegressionRequest(input=classify.input)
    regress.model_spec.name, regress.model_spec.signature_name = "old", "regress"
    assert [one.value for one in stub.Regress(regress, timeout=LIMIT).result.regressions] == [2.5, 10.0]
    both = inference_pb2.MultiInferenceRequest(input=classify.input)
    both.tasks.add(model_spec=regress.model_spec, method_name=REGRESS)
    both.tasks.add(model_spec=classify.model_spec, method_name=CLASSIFY)
    first, second = stub.MultiInference(both, timeout=LIMIT).results
    assert first.regression_result.regressions[1].value == 10.0
    assert second.classification_result.classifications[0].classes[1].score == 0.75


@pytest.mark.tf
@pytest.mark.parametrize(
    ("sent", "text"),
    [
        (
            protos.Example(),
            "Name: <unknown>, Feature: x (data type: float) is required but could not be found.",
        ),
        (
            protos.Example(features={"feature": {"x": {"bytes_list": {"value": [b"a"]}}}}),
            "Name: <unknown>, Key: x, Index: 0.  Data types don't match. "
            "Data type: string but expected type: float",
        ),
    ],
)
def test_example_with_a_wrong_feature_is_rejected_by_the_graph(
    loaded: Servable, sent: Any, text: str
) -> None:
    request = protos.RegressionRequest(model_spec={"name": "old", "signature_name": "regress"})
    request.input.example_list.examples.append(sent)
    code, found = error_of(loaded.regress, request)
    assert code == "INVALID_ARGUMENT"
    assert found.startswith(text)


@pytest.mark.tf
def test_bytes_that_are_not_an_example_are_rejected_by_the_graph(loaded: Servable) -> None:
    request = protos.PredictRequest(model_spec={"name": "old", "signature_name": "regress"})
    request.inputs["inputs"].CopyFrom(tensors.encode([b"\xff\xff"]))
    code, text = error_of(loaded.predict, request)
    assert code == "INVALID_ARGUMENT"
    assert text.startswith("Could not parse example input, value: '")
    assert "[[{{node ParseExample/ParseExample}}]]" in text


@pytest.mark.tf
def test_bfloat16_output_keeps_its_dtype(loaded: Servable) -> None:
    request = protos.PredictRequest(model_spec={"name": "old"})
    request.inputs["x"].CopyFrom(tensors.encode(np.array([[1.5], [-2]], np.float32)))
    half = loaded.predict(request).outputs["half"]
    assert half.dtype == tensors.DT_BFLOAT16
    assert tensors.decode(half, "half").tolist() == [[1.5], [-2]]


@pytest.mark.tf
@pytest.mark.protocol("warmup.records")
def test_warmup_records_of_every_rpc_run(loaded: Servable, tmp_path: Path) -> None:
    import tensorflow as tf

    spec = {"name": "other", "signature_name": "regress"}
    right, wrong = make_example(x=1), make_example(y=1)
    path = tmp_path / contract.WARMUP_FILE
    path.parent.mkdir()

    def make_logs(one: Any) -> Any:
        data = {"example_list": {"examples": [one]}}
        task = {"model_spec": spec, "method_name": REGRESS}
        return [
            protos.PredictionLog(regress_log={"request": {"model_spec": spec, "input": data}}),
            protos.PredictionLog(
                classify_log={"request": {"model_spec": spec | {"signature_name": "classify"}, "input": data}}
            ),
            protos.PredictionLog(multi_inference_log={"request": {"tasks": [task], "input": data}}),
        ]

    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in make_logs(right):
            writer.write(record.SerializeToString())
    warm_up(loaded, tmp_path)
    for record in make_logs(wrong):
        with tf.io.TFRecordWriter(str(path)) as writer:
            writer.write(record.SerializeToString())
        with pytest.raises(Exception, match="Feature: x"):
            warm_up(loaded, tmp_path)
