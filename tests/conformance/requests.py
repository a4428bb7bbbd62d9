"""Requests that provoke the [[error]] rows of protocol.toml, by id, over gRPC and over REST."""

from __future__ import annotations

from typing import Any

import numpy as np

from serving import protos
from serving.protos import tensors
from tests.conformance.conformance_model import METHODS

CLASSIFY_METHOD, REGRESS_METHOD = METHODS["classify"], METHODS["regress"]

Rpc = tuple[str, Any]
"""Path and request."""

Http = tuple[str, str, Any]
"""Method, path, and the body as JSON."""


def example(**features: Any) -> Any:
    made = protos.Example()
    for name, value in features.items():
        kind = "bytes_list" if isinstance(value, bytes) else "float_list"
        getattr(made.features.feature[name], kind).value.append(value)
    return made


def examples(*rows: Any) -> Any:
    return protos.Input(example_list={"examples": rows})


def tensor(value: Any) -> Any:
    """Return floats as a TensorProto; a TensorProto is returned unchanged."""
    return value if hasattr(value, "DESCRIPTOR") else tensors.encode(np.asarray(value, np.float32))


def predict(spec: dict[str, Any] | None, output_filter: tuple[str, ...] = (), **inputs: Any) -> Rpc:
    sent = {alias: tensor(value) for alias, value in inputs.items()}
    return protos.PREDICT, protos.PredictRequest(model_spec=spec, inputs=sent, output_filter=output_filter)


def classify(spec: dict[str, Any] | None, *rows: Any) -> Rpc:
    return protos.CLASSIFY, protos.ClassificationRequest(model_spec=spec, input=examples(*rows))


def regress(spec: dict[str, Any] | None, *rows: Any) -> Rpc:
    return protos.REGRESS, protos.RegressionRequest(model_spec=spec, input=examples(*rows))


def multi(*tasks: tuple[str, str, str], rows: tuple[Any, ...] = (example(x=1.0),)) -> Rpc:
    """Return a MultiInference call; each task is model, signature and method."""
    request = protos.MultiInferenceRequest(input=examples(*rows))
    for name, signature, method in tasks:
        task = request.tasks.add(method_name=method)
        task.model_spec.name, task.model_spec.signature_name = name, signature
    return protos.MULTI_INFERENCE, request


def metadata(spec: dict[str, Any] | None, *fields: str) -> Rpc:
    return protos.GET_MODEL_METADATA, protos.GetModelMetadataRequest(model_spec=spec, metadata_field=fields)


def status(spec: dict[str, Any] | None) -> Rpc:
    return protos.GET_MODEL_STATUS, protos.GetModelStatusRequest(model_spec=spec)


def toy_spec(signature: str = "", **more: Any) -> dict[str, Any]:
    return {"name": "toy", "signature_name": signature, **more}


ONE = example(x=1.0)
NONE, SEVENTH, NEW = {"name": "none"}, toy_spec(version={"value": 7}), toy_spec(version_label="new")
ROW = {"instances": [1.0]}
EXAMPLES = {"examples": [{"x": 1.0}]}

GRPC: dict[str, list[Rpc]] = {
    "error.no-spec": [
        predict(None, x=[1.0]),
        classify(None, ONE),
        regress(None, ONE),
        metadata(None, "signature_def"),
        status(None),
    ],
    "error.no-name": [
        predict({}, x=1.0),
        classify({}, ONE),
        regress({}, ONE),
        metadata({}, "signature_def"),
        status({}),
    ],
    "error.unknown-model": [
        predict(NONE, x=1.0),
        classify(NONE, ONE),
        regress(NONE, ONE),
        metadata(NONE, "signature_def"),
        multi(("none", "classify", CLASSIFY_METHOD)),
    ],
    "error.unknown-version": [
        predict(SEVENTH, x=1.0),
        classify(SEVENTH, ONE),
        regress(SEVENTH, ONE),
        metadata(SEVENTH, "signature_def"),
    ],
    "error.unknown-label": [
        predict(NEW, x=1.0),
        classify(NEW, ONE),
        regress(NEW, ONE),
        metadata(NEW, "signature_def"),
    ],
    "error.predict-signature": [predict(toy_spec("S"), x=1.0)],
    "error.examples-signature": [classify(toy_spec("S"), ONE), regress(toy_spec("S"), ONE)],
    "error.multi-signature": [multi(("toy", "S", CLASSIFY_METHOD))],
    "error.fewer-inputs": [predict(toy_spec("ab"), a=[1.0])],
    "error.more-inputs": [predict(toy_spec(), x=[1.0], z=[1.0])],
    "error.wrong-alias": [predict(toy_spec(), z=[1.0])],
    "error.tensor-parsing": [
        predict(toy_spec(), x=protos.TensorProto(dtype=1, float_val=[1, 2])),
        predict(toy_spec(), x=protos.TensorProto(float_val=[1])),
        predict(
            toy_spec(),
            x=protos.TensorProto(dtype=1, tensor_content=b"abc", tensor_shape={"dim": [{"size": 1}]}),
        ),
        predict(toy_spec(), x=protos.TensorProto(dtype=1, tensor_shape={"dim": [{"size": -1}]})),
        predict(toy_spec(), x=protos.TensorProto(dtype=1, tensor_shape={"dim": [{"size": 1}] * 100})),
    ],
    "error.wrong-dtype": [predict(toy_spec(), x=tensors.encode([b"a"]))],
    "error.output-unknown": [predict(toy_spec(), ("Z",), x=[1.0])],
    "error.output-twice": [predict(toy_spec(), ("y", "y"), x=[1.0])],
    "error.no-examples": [
        classify(toy_spec("classify")),
        regress(toy_spec("regress")),
        multi(("toy", "classify", CLASSIFY_METHOD), rows=()),
    ],
    "error.metadata-no-field": [metadata(toy_spec())],
    "error.metadata-other-field": [metadata(toy_spec(), "F"), metadata(toy_spec(), "signature_def", "F")],
    "error.status-model": [status(NONE)],
    "error.status-version": [status(SEVENTH)],
    "error.multi-models": [multi(("toy", "classify", CLASSIFY_METHOD), ("none", "regress", REGRESS_METHOD))],
    "error.multi-twice": [multi(*[("toy", "classify", CLASSIFY_METHOD)] * 2)],
    "error.multi-method": [multi(("toy", "classify", "M"))],
    "error.graph-shape": [predict({"name": "graph"}, x=np.ones((1, 5)))],
    "error.no-example": [
        predict({"name": "graph", "signature_name": "classify"}, inputs=tensors.encode([b"no example"]))
    ],
    "error.example-lacks": [classify({"name": "graph", "signature_name": "classify"}, example(y=1.0))],
    "error.example-kind": [classify({"name": "graph", "signature_name": "classify"}, example(x=b"a"))],
    "error.batch-task-size": [
        predict(toy_spec(), x=[1.0] * 5),
        classify(toy_spec("classify"), *[ONE] * 5),
        regress(toy_spec("regress"), *[ONE] * 5),
    ],
    "error.batch-scalar": [predict(toy_spec(), x=1.0)],
    "error.batch-unequal": [predict(toy_spec("ab"), a=[1.0], b=[1.0, 2.0])],
    "error.batch-output-scalar": [predict(toy_spec("total"), x=[1.0, 2.0])],
    "error.batch-output-rows": [predict(toy_spec("short"), x=[1.0, 2.0])],
}


def post(path: str, **body: Any) -> Http:
    return "POST", f"/v1/models/{path}", body


REST: dict[str, list[Http]] = {
    "error.unknown-model": [
        post("none:predict", **ROW),
        post("none:classify", **EXAMPLES),
        post("none:regress", **EXAMPLES),
        ("GET", "/v1/models/none/metadata", None),
    ],
    "error.unknown-version": [
        post("toy/versions/7:predict", **ROW),
        post("toy/versions/7:classify", **EXAMPLES),
        post("toy/versions/7:regress", **EXAMPLES),
        ("GET", "/v1/models/toy/versions/7/metadata", None),
    ],
    "error.unknown-label": [
        post("toy/labels/new:predict", **ROW),
        post("toy/labels/new:classify", **EXAMPLES),
        ("GET", "/v1/models/toy/labels/new/metadata", None),
    ],
    "error.predict-signature": [post("toy:predict", signature_name="S", **ROW)],
    "error.examples-signature": [
        post("toy:classify", signature_name="S", **EXAMPLES),
        post("toy:regress", signature_name="S", **EXAMPLES),
    ],
    "error.fewer-inputs": [post("toy:predict", signature_name="ab", instances=[{"a": 1.0}])],
    "error.fewer-columns": [post("toy:predict", signature_name="ab", inputs={"a": [1.0]})],
    "error.more-inputs": [post("toy:predict", instances=[{"x": 1.0, "z": 1.0}])],
    "error.wrong-alias": [post("toy:predict", instances=[{"z": 1.0}])],
    "error.wrong-dtype": [post("toy:predict", instances=["a"]), post("toy:predict", inputs=["a"])],
    "error.no-examples": [
        post("toy:classify", signature_name="classify", examples=[]),
        post("toy:regress", signature_name="regress", examples=[]),
    ],
    "error.status-model": [("GET", "/v1/models/none", None)],
    "error.status-version": [("GET", "/v1/models/toy/versions/7", None)],
    "error.graph-shape": [post("graph:predict", instances=[[1.0] * 5])],
    "error.no-example": [post("graph:predict", signature_name="classify", instances=["no example"])],
    "error.example-lacks": [post("graph:classify", signature_name="classify", examples=[{"y": 1.0}])],
    "error.example-kind": [post("graph:classify", signature_name="classify", examples=[{"x": "a"}])],
    "error.batch-task-size": [post("toy:predict", instances=[1.0] * 5)],
    "error.batch-scalar": [post("toy:predict", inputs=1.0)],
    "error.batch-unequal": [post("toy:predict", signature_name="ab", inputs={"a": [1.0], "b": [1.0, 2.0]})],
    "error.batch-output-scalar": [post("toy:predict", signature_name="total", inputs=[1.0, 2.0])],
    "error.batch-output-rows": [post("toy:predict", signature_name="short", inputs=[1.0, 2.0])],
}
