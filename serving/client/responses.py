"""Responses of a server: the records that callers get, and their decoding from tensors and messages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving import contract, protos
from serving.contract import PhotoRejection, Prediction, Status
from serving.errors import InputError, ServerError
from serving.protos import tensors

Outputs = Mapping[str, NDArray[Any]]


class State(StrEnum):
    """Where a version is in its life (ModelVersionStatus.State in get_model_status.proto)."""

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
        version: its number.
        state: AVAILABLE means loaded and answering.
        error: why it did not load, or "".
    """

    version: int
    state: State
    error: str


@dataclass(frozen=True)
class TensorInfo:
    """dtype by TensorFlow's name; shape with None where it is open, None if the rank is open."""

    dtype: str
    shape: tuple[int | None, ...] | None

    def __str__(self) -> str:
        if self.shape is None:
            return f"{self.dtype} of any shape"
        return f"{self.dtype} [{','.join('?' if size is None else str(size) for size in self.shape)}]"


@dataclass(frozen=True)
class Signature:
    """The named inputs and outputs of one signature."""

    inputs: Mapping[str, TensorInfo]
    outputs: Mapping[str, TensorInfo]


@dataclass(frozen=True)
class Metadata:
    """The version that answers, and what it can be asked."""

    name: str
    version: int
    signatures: Mapping[str, Signature]


@dataclass(frozen=True, slots=True, eq=False)
class Embedding:
    """What the backbone makes of one photo.

    Attributes:
        status: what became of the photo.
        vector: float32 [D]; None where the photo was refused.
        height, width: pixels of the upright photo as it was sent; 0 where the photo was refused.
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
        """What stands in the place of an answer where the model is not asked."""
        return cls(rejection.status, None, detail=rejection.detail)


_PREDICTION = (
    (contract.LABEL, 1, "O"),
    (contract.CLASSES, 2, "O"),
    (contract.SCORES, 2, "f"),
    (contract.STATUS, 1, "O"),
)
"""The outputs of serving_default: name, rank, numpy kind."""

_EMBEDDING = (
    (contract.EMBEDDING, 2, "f"),
    (contract.STATUS, 1, "O"),
    (contract.HEIGHT, 1, "i"),
    (contract.WIDTH, 1, "i"),
)
"""The outputs of embed."""

_KINDS = {"O": "strings", "f": "floats", "i": "integers"}


def decode_outputs(response: protos.Message, target: str) -> dict[str, NDArray[Any]]:
    """The tensors of a PredictResponse, whichever of the two encodings they have.

    Raises:
        ServerError: one of them does not fit its shape.
    """
    try:
        return {name: tensors.decode(proto, name) for name, proto in response.outputs.items()}
    except InputError as error:
        raise ServerError(f"The server at {target} sent a broken answer: {error}") from error


def predictions(outputs: Outputs, count: int, version: int | None = None) -> list[Prediction]:
    """The outputs of `serving_default` for `count` photos as records.

    Raises:
        ServerError: they are not what serving/contract.py says.
    """
    results = []
    for label, classes, scores, raw in zip(*_columns(outputs, count, _PREDICTION), strict=True):
        status = _status(raw)
        named = zip(classes, scores, strict=True) if status.usable else ()
        top = tuple((name.decode(), float(score)) for name, score in named)
        results.append(Prediction(status, label.decode() or None, top, version=version))
    return results


def embeddings(outputs: Outputs, count: int, version: int | None = None) -> list[Embedding]:
    """The outputs of `embed` for `count` photos as records.

    Raises:
        ServerError: they are not what serving/contract.py says.
    """
    results = []
    for vector, raw, height, width in zip(*_columns(outputs, count, _EMBEDDING), strict=True):
        status = _status(raw)
        results.append(
            Embedding(status, vector if status.usable else None, int(height), int(width), version=version)
        )
    return results


def metadata(response: protos.Message, target: str) -> Metadata:
    """A GetModelMetadataResponse, without the signatures that are TensorFlow's own.

    Raises:
        ServerError: it has no signatures.
    """
    declared = protos.SignatureDefMap()
    if not response.metadata["signature_def"].Unpack(declared):
        raise ServerError(f"The server at {target} answered without signatures.")
    return Metadata(
        response.model_spec.name,
        response.model_spec.version.value,
        {
            name: Signature(_infos(signature.inputs), _infos(signature.outputs))
            for name, signature in sorted(declared.signature_def.items())
            if not name.startswith("__")  # such as __saved_model_init_op
        },
    )


def statuses(response: protos.Message) -> list[VersionStatus]:
    """A GetModelStatusResponse, newest version first."""
    names = protos.ModelVersionStatus.State
    found = [
        VersionStatus(entry.version, State(names.Name(entry.state)), entry.status.error_message)
        for entry in response.model_version_status
    ]
    return sorted(found, key=lambda status: status.version, reverse=True)


def _columns(outputs: Outputs, count: int, expected: tuple[tuple[str, int, str], ...]) -> list[NDArray[Any]]:
    columns = []
    for name, rank, kind in expected:
        column = outputs.get(name)
        if column is None or column.ndim != rank or len(column) != count or column.dtype.kind != kind:
            found = "none" if column is None else f"one of {column.dtype} {list(column.shape)}"
            raise ServerError(
                f"The model's answer for {count} photos should have an output {name!r}: {_KINDS[kind]} of "
                f"rank {rank} with as many rows; there is {found}.",
                remedy="Ask for a model that hubhead made.",
            )
        columns.append(column)
    return columns


def _status(raw: bytes) -> Status:
    try:
        return Status(raw.decode())
    except ValueError as error:
        raise ServerError(
            f"The model's answer has the photo status {raw!r}, which this hubhead does not know.",
            remedy="Update hubhead to the release that made the model, or later.",
        ) from error


def _infos(declared: Mapping[str, Any]) -> dict[str, TensorInfo]:
    return {name: _info(info) for name, info in sorted(declared.items())}


def _info(info: protos.Message) -> TensorInfo:
    shape = info.tensor_shape
    sizes = None if shape.unknown_rank else tuple(d.size if d.size >= 0 else None for d in shape.dim)
    return TensorInfo(tensors.dtype_name(info.dtype), sizes)
