"""One loaded version of a model, and how it answers the requests of PredictionService.

Codes and texts are those of TensorFlow Serving (servables/tensorflow/predict_util.cc,
get_model_metadata_impl.cc, and saved_model/util.cc of TensorFlow), since clients match on them.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import grpc
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from serving import contract, protos, runtime, tensors
from serving.errors import BundleError, InputError
from serving.server.refusal import Refusal, invalid

SERVE_TAG = "serve"
SIGNATURE_DEF = "signature_def"


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

    def __init__(self, name: str, version: int, model: Model, signatures: Mapping[str, Any]) -> None:
        self.name = name
        self.version = version
        self._model = model
        self._signatures = signatures
        self._turns = threading.Semaphore(model.threads)
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
        with suppress(Refusal):
            self.predict(self.probe, seconds)

    def close(self) -> None:
        """Free the model; only where the version is idle and nobody can ask for it any more."""
        del self._model

    def predict(self, request: protos.Message, seconds: float | None = None) -> protos.Message:
        """Answer a PredictRequest.

        Args:
            request: the PredictRequest; its model_spec named this servable.
            seconds: how long the caller still waits; None: for ever.

        Raises:
            Refusal: the request does not fit the signature, or the model failed.
        """
        key = request.model_spec.signature_name or contract.SERVING_DEFAULT
        signature = self._signatures.get(key)
        if signature is None or key.startswith("__"):
            raise Refusal(grpc.StatusCode.FAILED_PRECONDITION, f'Serving signature key "{key}" not found.')
        inputs = _inputs(signature, request.inputs)
        wanted = _wanted(signature, request.output_filter)
        outputs = self._run(key, inputs, seconds)
        response = protos.PredictResponse(model_spec=self._spec())
        response.model_spec.signature_name = key
        for alias in wanted:
            response.outputs[alias].CopyFrom(tensors.encode(outputs[alias], typed_fields=True))
        return response

    def metadata(self) -> protos.Message:
        """The answer to a GetModelMetadataRequest that `check_metadata_fields` let through."""
        declared = protos.SignatureDefMap()
        for key, signature in self._signatures.items():
            declared.signature_def[key].CopyFrom(signature)
        response = protos.GetModelMetadataResponse(model_spec=self._spec())
        response.metadata[SIGNATURE_DEF].Pack(declared)
        return response

    def _run(
        self, key: str, inputs: Mapping[str, NDArray[Any]], seconds: float | None
    ) -> Mapping[str, NDArray[Any]]:
        if not self._turns.acquire(timeout=seconds):
            raise Refusal(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline passed while waiting for the model.")
        try:
            outputs = self._model.run(key, inputs)
            self.pulse.beat()
            return outputs
        except runtime.RunError as error:
            self.pulse.beat(answering=error.code not in _FAULTS)
            raise Refusal(grpc.StatusCode[error.code], error.what) from error
        finally:
            self._turns.release()

    def _spec(self) -> protos.Message:
        spec = protos.ModelSpec(name=self.name)
        spec.version.value = self.version
        return spec


def load(name: str, version: int, directory: Path, loader: Loader) -> Servable:
    """Load a version's directory.

    Raises:
        BundleError: its saved_model.pb is missing, torn, or holds no graph for serving.
    """
    signatures = read_signatures(directory)
    return Servable(name, version, loader(directory), signatures)


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


def check_metadata_fields(fields: list[str]) -> None:
    """Refuse a GetModelMetadataRequest that asks for anything but the signatures."""
    if not fields:
        raise invalid("GetModelMetadataRequest must specify at least one metadata_field")
    for field in fields:
        if field != SIGNATURE_DEF:
            raise invalid(f"Metadata field {field} is not supported")


def _inputs(signature: protos.Message, sent: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """The tensors to feed, in the order and with the checks of GetInputValues and DirectSession."""
    required, defaults = signature.inputs, signature.defaults
    if len(sent) > len(required) or (len(sent) < len(required) and not defaults):
        raise invalid(
            f"input size does not match signature: {len(sent)}!={len(required)} "
            f"len({_set(sent)}) != len({_set(required)}). Sent extra: {_set(set(sent) - set(required))}. "
            f"Missing but required: {_set(set(required) - set(sent))}."
        )
    protos_by_alias = {}
    for alias in sorted(required):
        if alias not in sent and alias not in defaults:
            raise invalid(
                f"Signature input alias: {alias}(feed name: {required[alias].name}) not found in request "
                f"and no default value provided. Inputs expected to be in the request {_set(sent)}, "
                f"or default input alias set: {','.join(sorted(defaults))}"
            )
        protos_by_alias[alias] = sent[alias] if alias in sent else defaults[alias]
    used = set(sent) & set(required)
    inputs = {}
    for alias, proto in protos_by_alias.items():
        try:
            inputs[alias] = tensors.decode(proto, alias)
        except InputError as error:
            raise invalid(f"tensor parsing error: {alias}") from error
    if len(used) != len(sent):
        raise invalid(
            f"Inputs contains invalid name. Used request inputs: {','.join(sorted(used))}, "
            f"request input: {','.join(sorted(sent))}"
        )
    by_feed_name = sorted(required, key=lambda alias: required[alias].name)
    for index, alias in enumerate(by_feed_name):
        declared, given = required[alias].dtype, protos_by_alias[alias].dtype
        if declared != given:
            raise invalid(
                f"Expects arg[{index}] to be {tensors.dtype_name(declared)} "
                f"but {tensors.dtype_name(given)} is provided"
            )
    return inputs


def _wanted(signature: protos.Message, output_filter: list[str]) -> list[str]:
    seen: set[str] = set()
    for alias in output_filter:
        if alias not in signature.outputs:
            raise invalid(
                f"output tensor alias not found in signature: {alias} "
                f"Outputs expected to be in the set {_set(signature.outputs)}."
            )
        if alias in seen:
            raise invalid(f"duplicate output tensor alias: {alias}")
        seen.add(alias)
    return list(output_filter) or sorted(signature.outputs)


def _set(names: Any) -> str:
    return f"{{{','.join(sorted(names))}}}"
