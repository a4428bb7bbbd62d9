"""One loaded version of a model, and its answers to the requests of PredictionService."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import grpc
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from serving import contract, protos, runtime
from serving.errors import BundleError
from serving.protos import tensors
from serving.server.batching.batcher import Batcher
from serving.server.batching.queue import rules
from serving.server.config import files
from serving.server.config.settings import BATCHING_FILE, Batching, ServerSettings
from serving.server.metrics import Metrics
from serving.server.models import inference
from serving.server.status_error import Refusal

SERVE_TAG = "serve"


class Model(Protocol):
    """What the server needs of `serving.runtime.Model`."""

    @property
    def threads(self) -> int:
        """How many calls run at once."""
        ...

    def run(self, signature: str, inputs: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
        """Call one signature, from any thread."""
        ...


Loader = Callable[[Path], Model]


_FAULTS = ("ABORTED", "DATA_LOSS", "INTERNAL", "RESOURCE_EXHAUSTED", "UNKNOWN")
"""Status codes that speak of the model and not of what a caller sent."""


class Pulse:
    """Whether a model's last answer was one, and how long ago."""

    def __init__(self) -> None:
        self._beaten = time.monotonic()
        self.answering = True

    def beat(self, *, answering: bool = True) -> None:
        """The model answered, or failed."""
        self._beaten, self.answering = time.monotonic(), answering

    def quiet_seconds(self) -> float:
        """Since its last answer; for ever where it failed."""
        return time.monotonic() - self._beaten if self.answering else math.inf


class Servable:
    """One version: its model, its declared signatures, and the requests that are using it.

    Attributes:
        pulse: whether the model answers.
        probe: a PredictRequest that it has to answer; None where nobody gave one.
    """

    def __init__(
        self,
        name: str,
        version: int,
        model: Model,
        signatures: Mapping[str, Any],
        *,
        batching: Batching | None = None,
        rows_apart: bool = False,
        tensor_content: bool = False,
        metrics: Metrics | None = None,
    ) -> None:
        """Of a loaded model.

        Args:
            name: the model's.
            version: its number.
            model: what runs it.
            signatures: SignatureDef by name.
            batching: how requests are merged; None: as is fastest, where rows are apart.
            rows_apart: whether an answer's row depends on nothing but the request's row.
            tensor_content: whether answers hold the raw bytes of tensors in place of their values.
            metrics: where to count.
        """
        self.name = name
        self.version = version
        self._model = model
        self._signatures = signatures
        self._rows_apart = rows_apart
        self._tensor_content = tensor_content
        self._metrics = metrics
        self._batcher = Batcher(
            name, rules(model.threads, batching), self._call, self._mergeable, metrics=metrics
        )
        self._users = 0
        self.pulse = Pulse()
        self.probe: protos.Message | None = None
        self._counting = threading.Lock()

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Keep the version from being called idle while a request uses it."""
        with self._counting:
            self._users += 1
        try:
            yield
        finally:
            with self._counting:
                self._users -= 1

    @property
    def idle(self) -> bool:
        """Whether no request is using this version."""
        return self._users == 0

    def ask_itself(self, seconds: float) -> None:
        """Run the probe, so that the pulse says whether the model answers."""
        if self.probe is None:
            self.pulse.beat()
            return
        try:
            self.predict(self.probe, seconds)
        except Refusal as refusal:
            if refusal.code in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED):
                self.pulse.beat(answering=False)

    def close(self) -> None:
        """Free the model and its threads; only where it is idle and nobody can ask for it any more."""
        self._batcher.close()
        del self._model

    @property
    def signatures(self) -> Mapping[str, Any]:
        """The declared SignatureDefs by name, TensorFlow's own among them."""
        return self._signatures

    def signature(self, name: str) -> protos.Message | None:
        """The SignatureDef of that name, or of the default; None where there is none to ask for."""
        name = name or contract.SERVING_DEFAULT
        return None if name.startswith("__") else self._signatures.get(name)

    def predict(self, request: protos.Message, seconds: float | None = None) -> protos.Message:
        """Answer a PredictRequest.

        Args:
            request: the PredictRequest; its model_spec named this servable.
            seconds: how long the caller still waits; None: for ever.

        Raises:
            Refusal: the request does not fit the signature, or the model failed.
        """
        key = inference.key(request.model_spec)
        signature = inference.predict_signature(self._signatures, key)
        inputs = inference.predict_inputs(signature, request.inputs)
        wanted = inference.predict_outputs(signature, request.output_filter)
        outputs = self.run(key, inputs, wanted, seconds, "Predict")
        response = protos.PredictResponse(model_spec=self.spec(key))
        for alias in wanted:
            encoded = tensors.encode(outputs[alias], typed_fields=not self._tensor_content)
            response.outputs[alias].CopyFrom(encoded)
        return response

    def classify(self, request: protos.Message, seconds: float | None = None) -> protos.Message:
        """Answer a ClassificationRequest; as `predict`."""
        key = inference.key(request.model_spec)
        wanted = inference.classify_outputs(inference.examples_signature(self._signatures, key))
        feed = inference.examples(request.input)
        outputs = self.run(key, feed, wanted, seconds, "Classify")
        result = inference.classification(outputs, len(feed[inference.EXAMPLES]))
        return protos.ClassificationResponse(model_spec=self.spec(key), result=result)

    def regress(self, request: protos.Message, seconds: float | None = None) -> protos.Message:
        """Answer a RegressionRequest; as `predict`."""
        key = inference.key(request.model_spec)
        wanted = inference.regress_outputs(inference.examples_signature(self._signatures, key))
        feed = inference.examples(request.input)
        outputs = self.run(key, feed, wanted, seconds, "Regress")
        result = inference.regression(outputs, len(feed[inference.EXAMPLES]))
        return protos.RegressionResponse(model_spec=self.spec(key), result=result)

    def multi_inference(self, request: protos.Message, seconds: float | None = None) -> protos.Message:
        """Answer a MultiInferenceRequest: several signatures on the same examples; as `predict`."""
        tasks = inference.multi_inference_outputs(self._signatures, request.tasks)
        feed = inference.examples(request.input)
        count = len(feed[inference.EXAMPLES])
        response = protos.MultiInferenceResponse()
        for name, wanted in tasks.items():
            outputs = self.run(name, feed, wanted, seconds, "MultiInference")
            if wanted == (inference.OUTPUTS,):
                result = protos.InferenceResult(regression_result=inference.regression(outputs, count))
            else:
                classified = inference.classification(outputs, count)
                result = protos.InferenceResult(classification_result=classified)
            result.model_spec.CopyFrom(self.spec(name))
            response.results.append(result)
        return response

    def metadata(self) -> protos.Message:
        """The answer to a GetModelMetadataRequest that `inference.check_metadata_fields` let through."""
        declared = protos.SignatureDefMap()
        for key, signature in self._signatures.items():
            declared.signature_def[key].CopyFrom(signature)
        response = protos.GetModelMetadataResponse(model_spec=self.spec())
        response.metadata[inference.SIGNATURE_DEF].Pack(declared)
        return response

    def run(
        self,
        key: str,
        inputs: Mapping[str, NDArray[Any]],
        wanted: tuple[str, ...],
        seconds: float | None,
        api: str,
    ) -> Mapping[str, NDArray[Any]]:
        """Run a signature once it is this request's turn.

        Args:
            key: of the signature.
            inputs: by alias.
            wanted: aliases of the outputs.
            seconds: how long the caller still waits; None: for ever.
            api: for the metrics, such as "Predict".

        Raises:
            Refusal: too many wait already, the deadline passed, or the model failed.
        """
        start = time.perf_counter()
        outputs = self._batcher.run(key, inputs, wanted, seconds)
        if self._metrics:
            self._metrics.runtime(self.name, api, time.perf_counter() - start)
        return outputs

    def _call(self, key: str, inputs: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
        try:
            outputs = self._model.run(key, inputs)
        except runtime.RunError as error:
            self.pulse.beat(answering=error.code not in _FAULTS)
            raise Refusal(grpc.StatusCode[error.code], error.what) from error
        self.pulse.beat()
        return outputs

    def _mergeable(self, key: str, wanted: Sequence[str]) -> bool:
        """Whether a signature's requests may be merged and cut without a file that says so.

        Not where rows may depend on each other (x / sum(x) would be another answer), and not where its
        tensors do not all declare a batch of any size as their first dimension.
        """
        if not self._rows_apart:
            return False
        signature = self._signatures[key]
        shapes = [info.tensor_shape for info in signature.inputs.values()]
        shapes += [signature.outputs[alias].tensor_shape for alias in wanted]
        return all(shape.dim and shape.dim[0].size == -1 for shape in shapes)

    def spec(self, signature: str = "") -> protos.Message:
        """The ModelSpec of a response: name, version and the signature that answered."""
        spec = protos.ModelSpec(name=self.name, signature_name=signature)
        spec.version.value = self.version
        return spec


def load(
    name: str,
    version: int,
    directory: Path,
    loader: Loader,
    settings: ServerSettings | None = None,
    metrics: Metrics | None = None,
) -> Servable:
    """Load a version's directory.

    Raises:
        BundleError: its saved_model.pb is missing, torn, or holds no graph for serving.
        InputError: its batching file cannot be used.
    """
    settings = settings or ServerSettings()
    signatures, batching = read_signatures(directory), settings.batching
    own = directory / BATCHING_FILE
    if settings.enable_per_model_batching_parameters and own.is_file():
        batching = files.read_batching(own)
    return Servable(
        name,
        version,
        loader(directory),
        signatures,
        batching=batching,
        rows_apart=(directory / contract.METADATA_FILE).is_file(),  # of hubhead's bundles they are
        tensor_content=settings.enable_serialization_as_tensor_content,
        metrics=metrics,
    )


def read_signatures(directory: Path) -> dict[str, Any]:
    """The SignatureDefs of a SavedModel's graph for serving.

    Raises:
        BundleError: saved_model.pb is missing, torn, or holds no graph for serving.
    """
    path = directory / contract.SAVED_MODEL_FILE
    try:
        saved = protos.SavedModel.FromString(path.read_bytes())
    except (OSError, DecodeError) as error:
        raise BundleError(f"{path} cannot be read: {error}.", remedy="Export the bundle again.") from error
    for graph in saved.meta_graphs:
        if SERVE_TAG in graph.meta_info_def.tags:
            signatures = protos.SignatureDefMap(signature_def=graph.signature_def)
            return dict(signatures.signature_def)
    raise BundleError(
        f"{path} holds no graph with the tag {SERVE_TAG!r}.", remedy="Export it with that tag, the default."
    )
