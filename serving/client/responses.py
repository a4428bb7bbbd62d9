"""Records that the client returns, and their decoding from response messages and tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import grpc
import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from serving import contract, protos
from serving.client.sans_io import Response
from serving.contract import PhotoRejection, Prediction, Status
from serving.errors import InputError, InvalidRequest, ServerError
from serving.protos import tensors

Outputs = Mapping[str, NDArray[Any]]


class State(StrEnum):
    """Lifecycle state of a version (ModelVersionStatus.State in get_model_status.proto)."""

    UNKNOWN = "UNKNOWN"
    START = "START"
    LOADING = "LOADING"
    AVAILABLE = "AVAILABLE"
    UNLOADING = "UNLOADING"
    END = "END"


@dataclass(frozen=True)
class VersionStatus:
    """One version of a model.

    Attributes:
        version: version number.
        state: lifecycle state; an AVAILABLE version is loaded and answers requests.
        error: why the version did not load, or "".
    """

    version: int
    state: State
    error: str


@dataclass(frozen=True)
class TensorInfo:
    """Type and shape of a tensor.

    Attributes:
        dtype: TensorFlow's name of the dtype.
        shape: sizes, None for a dimension of unknown size; None if the rank is unknown.
    """

    dtype: str
    shape: tuple[int | None, ...] | None

    def __str__(self) -> str:
        if self.shape is None:
            return f"{self.dtype} of any shape"
        return f"{self.dtype} [{','.join('?' if size is None else str(size) for size in self.shape)}]"


@dataclass(frozen=True)
class Signature:
    """Inputs and outputs of one signature, by name."""

    inputs: Mapping[str, TensorInfo]
    outputs: Mapping[str, TensorInfo]


@dataclass(frozen=True)
class Metadata:
    """Description of the model that answers.

    Attributes:
        name: name of the model.
        version: version number.
        signatures: signatures by name.
        engine: what runs the backbone, one of serving.contract.ENGINES; "" if the server does not say so, as
            TensorFlow Serving.
        cpu: name of the server's CPU, or "".
    """

    name: str
    version: int
    signatures: Mapping[str, Signature]
    engine: str = ""
    cpu: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Embedding:
    """The embedding of one photo.

    Attributes:
        status: status of the photo.
        vector: float32 [D]; None if the photo was rejected.
        height, width: size of the upright photo in pixels, as it was sent; 0 if the photo was rejected.
        detail: as in `Prediction`.
        version: as in `Prediction`.
    """

    status: Status
    vector: NDArray[np.float32] | None
    height: int = 0
    width: int = 0
    detail: str | None = None
    version: int | None = None

    @classmethod
    def from_rejection(cls, rejection: PhotoRejection) -> Embedding:
        """Return the result for a photo that was rejected before it was sent."""
        return cls(rejection.status, None, detail=rejection.detail)


_PREDICTION = (
    (contract.LABEL, 1, "O"),
    (contract.CLASSES, 2, "O"),
    (contract.SCORES, 2, "f"),
    (contract.STATUS, 1, "O"),
)
"""Outputs of serving_default: name, rank, NumPy kind."""

_EMBEDDING = (
    (contract.EMBEDDING, 2, "f"),
    (contract.STATUS, 1, "O"),
    (contract.HEIGHT, 1, "i"),
    (contract.WIDTH, 1, "i"),
)
"""Outputs of embed: name, rank, NumPy kind."""

ROW_WISE = {
    (contract.SERVING_DEFAULT, contract.IMAGE_BYTES): {name for name, *_ in _PREDICTION},
    (contract.CLASSIFY_PIXELS, contract.PIXELS): {name for name, *_ in _PREDICTION},
    (contract.EMBED, contract.IMAGE_BYTES): {name for name, *_ in _EMBEDDING},
    (contract.PROBABILITIES, contract.IMAGE_BYTES): {contract.PROBABILITIES, contract.STATUS},
    (contract.CLASSIFY_EMBEDDING, contract.EMBEDDING): {contract.PROBABILITIES, contract.KNOWN},
    (contract.CLASSIFY, contract.EXAMPLES): {contract.CLASSES, contract.SCORES},
}
"""Outputs of the signatures of a bundle, by signature and input: rows do not depend on each other.

No declaration says so of other models: a signature [N] -> [N] may divide by a sum over the rows, or return
the values of ragged rows.
"""

_KINDS = {"O": "strings", "f": "floats", "i": "integers"}


def decode_outputs(response: protos.Message, target: str) -> dict[str, NDArray[Any]]:
    """Return the tensors of a PredictResponse by name; both tensor encodings are read.

    Raises:
        ServerError: a tensor does not match its declared shape.
    """
    try:
        return {name: tensors.decode(proto, name) for name, proto in response.outputs.items()}
    except InputError as error:
        raise ServerError(
            f"The server at {target} sent a broken answer: {error}", remedy="See the server's log."
        ) from error


def join_rows(signature: str, results: Sequence[Response]) -> dict[str, NDArray[Any]]:
    """Return the outputs of several requests as those of one.

    Raises:
        InvalidRequest: an output does not have one row for each of its request.
    """
    if len(results) == 1:
        return results[0].outputs
    names = results[0].outputs.keys()
    for result in results:
        for name, output in result.outputs.items():
            shapes = {part.outputs[name].shape[1:] for part in results if name in part.outputs}
            if result.outputs.keys() != names or output.shape[:1] != (result.count,) or len(shapes) > 1:
                raise InvalidRequest(
                    f"Output {name!r} of signature {signature} is of shape {list(output.shape)} for "
                    f"{result.count} rows: the outputs of several requests cannot be joined.",
                    remedy="Give fewer rows, so that one request suffices.",
                    code=grpc.StatusCode.INVALID_ARGUMENT.name,
                )
    return {name: np.concatenate([result.outputs[name] for result in results]) for name in names}


def decode_predictions(outputs: Outputs, count: int, version: int | None = None) -> list[Prediction]:
    """Decode the outputs of `serving_default` for `count` photos.

    Raises:
        ServerError: the outputs do not follow serving/contract.py.
    """
    results = []
    columns = _extract_columns(outputs, count, _PREDICTION)
    _, classes, scores, _ = columns
    if classes.shape != scores.shape:
        raise ServerError(
            f"The model's response has {classes.shape[1]} labels and {scores.shape[1]} scores per photo.",
            remedy="Use a model made by hubhead.",
        )
    for label, names, values, raw in zip(*columns, strict=True):
        status = _parse_status(raw)
        named = zip(names, values, strict=True) if status.usable else ()
        top = tuple((_decode_label(name), float(score)) for name, score in named)
        results.append(Prediction(status, _decode_label(label) or None, top, version=version))
    return results


def decode_embeddings(outputs: Outputs, count: int, version: int | None = None) -> list[Embedding]:
    """Decode the outputs of `embed` for `count` photos.

    Raises:
        ServerError: the outputs do not follow serving/contract.py.
    """
    results = []
    for vector, raw, height, width in zip(*_extract_columns(outputs, count, _EMBEDDING), strict=True):
        status = _parse_status(raw)
        results.append(
            Embedding(status, vector if status.usable else None, int(height), int(width), version=version)
        )
    return results


def truncate_top_k(predictions: Iterable[Prediction], top_k: int | None) -> list[Prediction]:
    """Return the predictions with at most `top_k` labels each; None keeps all labels."""
    if top_k is None:
        return list(predictions)
    return [replace(prediction, top=prediction.top[:top_k]) for prediction in predictions]


def decode_metadata(response: protos.Message, target: str) -> Metadata:
    """Decode a GetModelMetadataResponse, without TensorFlow's internal signatures.

    Raises:
        ServerError: the response has no signatures, or they cannot be parsed.
    """
    declared = protos.SignatureDefMap()
    if not _unpack(response.metadata["signature_def"], declared):
        raise ServerError(
            f"The server at {target} returned model metadata without signatures.",
            remedy="Give the gRPC port of a TensorFlow Serving server, usually 8500.",
        )
    return Metadata(
        response.model_spec.name,
        response.model_spec.version.value,
        decode_signatures(declared.signature_def),
        *(_unpack_text(response.metadata.get(name)) for name in (contract.ENGINE_KEY, contract.CPU_KEY)),
    )


def _unpack_text(packed: protos.Message | None) -> str:
    """Return the text in a google.protobuf.Any; "" if there is none."""
    text = protos.StringValue()
    return text.value if packed is not None and _unpack(packed, text) else ""


def _unpack(packed: protos.Message, message: protos.Message) -> bool:
    """Parse a google.protobuf.Any into a message; False if it has another type, or cannot be parsed."""
    try:
        return bool(packed.Unpack(message))
    except DecodeError:
        return False


def decode_signatures(declared: Mapping[str, Any]) -> dict[str, Signature]:
    """Return SignatureDefs by name, without TensorFlow's internal ones, such as __saved_model_init_op."""
    return {
        name: Signature(_tensor_infos(signature.inputs), _tensor_infos(signature.outputs))
        for name, signature in sorted(declared.items())
        if not name.startswith("__")
    }


def decode_statuses(response: protos.Message) -> list[VersionStatus]:
    """Decode a GetModelStatusResponse, newest version first; a state that is not in State is UNKNOWN."""
    names = {number: name for name, number in protos.ModelVersionStatus.State.items()}
    found = [
        VersionStatus(entry.version, State(names.get(entry.state, State.UNKNOWN)), entry.status.error_message)
        for entry in response.model_version_status
    ]
    return sorted(found, key=lambda status: status.version, reverse=True)


def _extract_columns(
    outputs: Outputs, count: int, expected: tuple[tuple[str, int, str], ...]
) -> list[NDArray[Any]]:
    columns = []
    for name, rank, kind in expected:
        column = outputs.get(name)
        if column is None or column.ndim != rank or len(column) != count or column.dtype.kind != kind:
            found = "none" if column is None else f"{column.dtype} {list(column.shape)}"
            raise ServerError(
                f"The model's response for {count} photos has no usable output {name!r}: {_KINDS[kind]} of "
                f"rank {rank} with {count} rows expected, found {found}.",
                remedy="Use a model made by hubhead.",
            )
        columns.append(column)
    return columns


def _decode_label(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise ServerError(
            f"The model's response has the label {raw!r}, which is not UTF-8.",
            remedy="Use a model made by hubhead.",
        ) from error


def _parse_status(raw: bytes) -> Status:
    try:
        return Status(raw.decode())
    except ValueError as error:
        raise ServerError(
            f"The model's response has the photo status {raw!r}, unknown to this release of hubhead.",
            remedy="Update hubhead to the release that made the model, or to a later one.",
        ) from error


def _tensor_infos(declared: Mapping[str, Any]) -> dict[str, TensorInfo]:
    infos = {}
    for name, info in sorted(declared.items()):
        shape = info.tensor_shape
        sizes = None if shape.unknown_rank else tuple(d.size if d.size >= 0 else None for d in shape.dim)
        infos[name] = TensorInfo(tensors.dtype_name(info.dtype), sizes)
    return infos
