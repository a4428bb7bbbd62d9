"""One loaded version of a model, which answers the requests of PredictionService."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import text_format
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from serving import bundle, contract, protos, runtime
from serving.errors import BundleError
from serving.process import get_cpu_model
from serving.protos import tensors
from serving.server import memory
from serving.server.batching.batcher import Batcher
from serving.server.batching.queue import make_policy
from serving.server.callers import Caller
from serving.server.config import files
from serving.server.config.settings import BATCHING_FILE, BatchingParameters, ServerSettings
from serving.server.metrics import Metrics
from serving.server.models import inference
from serving.server.models.health_probe import HealthProbe
from serving.server.status_error import StatusError

SERVE_TAG = "serve"
"""Tag of the graph to load from a SavedModel."""

SAVED_MODEL_FILES = (contract.SAVED_MODEL_FILE, f"{contract.SAVED_MODEL_FILE}txt")
"""Names of a SavedModel's file, in binary and in text format."""


Loader = Callable[[Path], runtime.Model]
"""Loads the model in a version's directory; only its `threads`, `engine` and `run` are used."""

_MODEL_FAULTS = ("ABORTED", "DATA_LOSS", "INTERNAL", "RESOURCE_EXHAUSTED", "UNKNOWN")
"""Status codes that report a fault of the model, not of the request."""


class Servable:
    """One version: its model and its declared signatures.

    Attributes:
        name: model name.
        version: version number.
        signatures: SignatureDefs by signature key, without those that are internal to TensorFlow (`__...`).
        users: number of requests that use it; it is unloaded only when there are none.
        health_probe: whether the model answers.
    """

    def __init__(
        self,
        name: str,
        version: int,
        model: runtime.Model,
        signatures: Mapping[str, Any],
        *,
        batching: BatchingParameters | None = None,
        rows_independent: bool = False,
        tensor_content: bool = False,
        metrics: Metrics | None = None,
    ) -> None:
        """Wrap a loaded model.

        Args:
            name: model name.
            version: version number.
            model: the loaded model.
            signatures: SignatureDefs by signature key.
            batching: contents of the batching file; None: no file is given.
            rows_independent: whether each row of an output depends only on the same row of the inputs;
                without a batching file, only such models get batches.
            tensor_content: whether responses carry tensors as raw bytes.
            metrics: registry that counts requests and batches; None: one of its own.
        """
        self.name = name
        self.version = version
        self._model = model
        self._signatures = signatures
        self.signatures = {key: found for key, found in signatures.items() if not key.startswith("__")}
        self._rows_independent = rows_independent
        self._tensor_content = tensor_content
        self._metrics = metrics or Metrics()
        self._metrics.add_model(name, version, model.engine)
        policy = make_policy(model.threads, batching)
        self._batcher = Batcher(name, policy, self._call_model, self._is_batchable, metrics=self._metrics)
        self.users = 0
        self.health_probe = HealthProbe()

    def close(self) -> None:
        """Free the model and its threads; the version must have no users and be unreachable for new ones."""
        self._batcher.close()
        self._metrics.remove_model(self.name, self.version, self._model.engine)
        del self._model
        memory.collect()  # TensorFlow's functions are reference cycles; each has a copy of the weights

    def predict(
        self, request: protos.Message, seconds: float | None = None, caller: Caller | None = None
    ) -> protos.Message:
        """Answer a PredictRequest.

        Args:
            request: PredictRequest whose model_spec resolved to this version.
            seconds: how long the caller still waits; None: no limit.
            caller: sender of the request; None: the server itself.

        Raises:
            StatusError: the request does not match the signature, the deadline passed, or the model failed.
        """
        key = inference.get_signature_key(request.model_spec)
        signature = inference.find_predict_signature(self._signatures, key)
        inputs = inference.decode_predict_inputs(signature, request.inputs)
        wanted = inference.select_predict_outputs(signature, request.output_filter)
        outputs = self.run(key, inputs, wanted, seconds, "Predict", caller)
        typed = not self._tensor_content
        encoded = {alias: tensors.encode(outputs[alias], typed_fields=typed) for alias in wanted}
        return protos.PredictResponse(model_spec=self.make_spec(key), outputs=encoded)

    def classify(
        self, request: protos.Message, seconds: float | None = None, caller: Caller | None = None
    ) -> protos.Message:
        """Answer a ClassificationRequest; parameters and errors as for `predict`."""
        fields = self._answer_examples("Classify", inference.CLASSIFY_METHOD, request, seconds, caller)
        return protos.ClassificationResponse(**fields)

    def regress(
        self, request: protos.Message, seconds: float | None = None, caller: Caller | None = None
    ) -> protos.Message:
        """Answer a RegressionRequest; parameters and errors as for `predict`."""
        fields = self._answer_examples("Regress", inference.REGRESS_METHOD, request, seconds, caller)
        return protos.RegressionResponse(**fields)

    def _answer_examples(
        self, api: str, method: str, request: protos.Message, seconds: float | None, caller: Caller | None
    ) -> dict[str, protos.Message]:
        """Return the fields of the response to a Classify or Regress request."""
        _, select_outputs, build_result = inference.EXAMPLES_METHODS[method]
        key = inference.get_signature_key(request.model_spec)
        wanted = select_outputs(inference.find_examples_signature(self._signatures, key))
        feed = inference.serialize_examples(request.input)
        outputs = self.run(key, feed, wanted, seconds, api, caller)
        result = build_result(outputs, len(feed[inference.EXAMPLES]))
        return {"model_spec": self.make_spec(key), "result": result}

    def multi_inference(
        self, request: protos.Message, seconds: float | None = None, caller: Caller | None = None
    ) -> protos.Message:
        """Answer a MultiInferenceRequest, several signatures on the same examples; as for `predict`."""
        tasks = inference.select_multi_inference_outputs(self._signatures, request.tasks)
        feed = inference.serialize_examples(request.input)
        response = protos.MultiInferenceResponse()
        for name, (method, wanted) in tasks.items():
            outputs = self.run(name, feed, wanted, seconds, "MultiInference", caller)
            field, _, build_result = inference.EXAMPLES_METHODS[method]
            result = {field: build_result(outputs, len(feed[inference.EXAMPLES]))}
            response.results.add(model_spec=self.make_spec(name), **result)
        return response

    def get_metadata(self) -> protos.Message:
        """Answer a GetModelMetadataRequest that passed `inference.check_metadata_fields`."""
        declared = protos.SignatureDefMap(signature_def=self._signatures)
        response = protos.GetModelMetadataResponse(model_spec=self.make_spec())
        response.metadata[inference.SIGNATURE_DEF].Pack(declared)
        # Entries that TensorFlow Serving does not have; clients read those that they know.
        for key, text in ((contract.ENGINE_KEY, self._model.engine), (contract.CPU_KEY, get_cpu_model())):
            response.metadata[key].Pack(protos.StringValue(value=text))
        return response

    def run(
        self,
        key: str,
        inputs: Mapping[str, NDArray[Any]],
        wanted: tuple[str, ...],
        seconds: float | None,
        api: str,
        caller: Caller | None = None,
    ) -> Mapping[str, NDArray[Any]]:
        """Run a signature through the batcher; return the requested outputs.

        Args:
            key: signature key.
            inputs: arrays by input alias.
            wanted: aliases of the requested outputs.
            seconds: how long the caller still waits; None: no limit.
            api: name of the RPC for the metrics, such as "Predict".
            caller: sender of the request; None: the server itself.

        Raises:
            StatusError: the queue is full, the deadline passed, or the model failed.
        """
        start = time.perf_counter()
        self._model.prepare(key)  # takes seconds at most once; the batcher's threads serve others meanwhile
        if seconds is not None:
            seconds = max(seconds - (time.perf_counter() - start), 0.0)
        outputs = self._batcher.run(key, inputs, wanted, seconds, caller)
        self._metrics.observe_runtime(self.name, api, time.perf_counter() - start)
        return outputs

    def _call_model(self, key: str, inputs: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
        try:
            outputs = self._model.run(key, inputs)
        except runtime.RunError as error:
            self.health_probe.record(healthy=error.code not in _MODEL_FAULTS)
            raise StatusError(grpc.StatusCode[error.code], error.what) from error
        self.health_probe.record(healthy=True)
        return outputs

    def _is_batchable(self, key: str, wanted: Sequence[str]) -> bool:
        """Return whether requests to a signature may be merged and split without a batching file.

        False if rows may depend on each other, as in x / sum(x), where merging would change the result; and
        unless all tensors declare a first dimension of any size.
        """
        if not self._rows_independent:
            return False
        signature = self._signatures[key]
        shapes = [info.tensor_shape for info in signature.inputs.values()]
        shapes += [signature.outputs[alias].tensor_shape for alias in wanted]
        return all(shape.dim and shape.dim[0].size == -1 for shape in shapes)

    def make_spec(self, signature: str = "") -> protos.Message:
        """Return the ModelSpec of a response: model name, version and signature key."""
        return protos.ModelSpec(name=self.name, signature_name=signature, version={"value": self.version})


def load(
    name: str, version: int, directory: Path, loader: Loader, settings: ServerSettings, metrics: Metrics
) -> Servable:
    """Load the version in a directory.

    Args:
        name: model name.
        version: version number.
        directory: directory of the version, with its saved_model.pb.
        loader: function that loads the model.
        settings: settings of the server.
        metrics: registry that counts requests and batches.

    Raises:
        BundleError: saved_model.pb is missing, corrupt, or has no graph for serving; or it is in a malformed
            bundle of hubhead.
        InputError: the version's batching file cannot be used.
    """
    signatures, batching = read_signatures(directory), settings.batching
    if is_bundle := (directory / contract.METADATA_FILE).is_file():
        bundle.read_metadata(directory)  # raises BundleError if it is malformed; other SavedModels have none
    per_version = directory / BATCHING_FILE
    if settings.enable_per_model_batching_parameters and per_version.is_file():
        batching = files.read_batching(per_version)
    return Servable(
        name,
        version,
        loader(directory),
        signatures,
        batching=batching,
        rows_independent=is_bundle,  # hubhead's bundles guarantee it
        tensor_content=settings.enable_serialization_as_tensor_content,
        metrics=metrics,
    )


def read_signatures(directory: Path) -> dict[str, Any]:
    """Return the SignatureDefs of a SavedModel's serving graph, by signature key.

    Raises:
        BundleError: saved_model.pb is missing, corrupt, or has no graph for serving.
    """
    binary, text = (directory / name for name in SAVED_MODEL_FILES)
    path = text if text.is_file() and not binary.is_file() else binary
    try:
        if path is binary:
            saved = protos.SavedModel.FromString(path.read_bytes())
        else:
            saved = text_format.Parse(path.read_text("utf-8"), protos.SavedModel(), allow_unknown_field=True)
    except (OSError, ValueError, DecodeError, text_format.ParseError) as error:
        raise BundleError(f"{path} cannot be read: {error}.", remedy="Export the bundle again.") from error
    graphs = [graph for graph in saved.meta_graphs if SERVE_TAG in graph.meta_info_def.tags]
    # TensorFlow Serving wants exactly this tag; a graph for GPUs or TPUs has more.
    for graph in sorted(graphs, key=lambda graph: len(graph.meta_info_def.tags)):
        return dict(protos.SignatureDefMap(signature_def=graph.signature_def).signature_def)
    raise BundleError(
        f"{path} has no graph with the tag {SERVE_TAG!r}.",
        remedy="Export the model with that tag, which is the default.",
    )
