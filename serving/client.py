"""Ask a model server that speaks TensorFlow Serving's gRPC protocol. No TensorFlow here.

    with Client("localhost:8500", model="food") as client:
        for prediction in client.classify(["a.jpg", "b.jpg"]):
            print(prediction.status, prediction.label, prediction.score)

What to send and how to read the answer are pure functions (`batches`, `predictions`,
`error_from`); `Client` only adds the transport.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
from numpy.typing import NDArray

from serving import contract, protos, tensors
from serving.contract import Prediction, Refusal, Status
from serving.convert import Converter
from serving.errors import (
    DeadlineExceeded,
    InputError,
    InvalidRequest,
    ModelNotFound,
    ServerError,
    ServerUnavailable,
)

Photo = bytes | str | os.PathLike[str]
"""A photo's encoded bytes, or the path of its file."""

MAX_PHOTOS = contract.WARMUP_BATCH_SIZES[-1]
"""Photos a request: the largest batch that the server was warmed for."""

MAX_BYTES = 32 * 2**20
"""Bytes of photos a request; a single larger photo goes alone."""

CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", -1),  # gRPC's own default is 4 MiB, a handful of photos
    ("grpc.max_send_message_length", -1),
    ("grpc.lb_policy_name", "round_robin"),  # every pod behind a headless service, not the first one
    ("grpc.initial_reconnect_backoff_ms", 100),  # a server that is just starting is found at once
    ("grpc.max_reconnect_backoff_ms", 2000),
)

_READY_POLL_SECONDS = 0.1

_COLUMNS = (
    (contract.LABEL, 1, "O"),
    (contract.CLASSES, 2, "O"),
    (contract.SCORES, 2, "f"),
    (contract.STATUS, 1, "O"),
)
"""The outputs of serving_default: name, rank, numpy kind."""


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


def batches(
    photos: Iterable[Photo],
    *,
    converter: Converter | None = None,
    max_photos: int = MAX_PHOTOS,
    max_bytes: int = MAX_BYTES,
) -> Iterator[list[bytes | Refusal]]:
    """Read photos, convert those that need it, and group them into requests.

    A Refusal stands for a photo that is not to be sent.
    """
    batch: list[bytes | Refusal] = []
    size = 0
    for photo in photos:
        image = _read(photo)
        if converter and isinstance(image, bytes):
            image = converter.for_graph(image)
        length = len(image) if isinstance(image, bytes) else 0
        if batch and (len(batch) == max_photos or size + length > max_bytes):
            yield batch
            batch, size = [], 0
        batch.append(image)
        size += length
    if batch:
        yield batch


def classify(
    photos: Iterable[Photo],
    ask: Callable[[list[bytes]], Sequence[Prediction]],
    *,
    top_k: int | None = None,
    converter: Converter | None = None,
) -> list[Prediction]:
    """One prediction a photo, in order, whoever answers.

    Args:
        photos: encoded bytes or paths. A file that cannot be read becomes Status.UNREADABLE and
            is not sent.
        ask: answers a list of encoded photos, never an empty one.
        top_k: how many labels to keep; None keeps all that the model gives.
        converter: converts what the graph does not decode; None sends everything as it is.
    """
    results: list[Prediction] = []
    for batch in batches(photos, converter=converter):
        images = [image for image in batch if isinstance(image, bytes)]
        answers = iter(ask(images) if images else ())
        results.extend(
            Prediction.refused(image) if isinstance(image, Refusal) else next(answers) for image in batch
        )
    return [replace(result, top=result.top[:top_k]) for result in results]


def predictions(outputs: Mapping[str, NDArray[Any]], count: int) -> list[Prediction]:
    """The outputs of `serving_default` for `count` photos as records.

    Raises:
        ServerError: they are not what serving/contract.py says.
    """
    columns = []
    for name, rank, kind in _COLUMNS:
        column = outputs.get(name)
        if column is None or column.ndim != rank or len(column) != count or column.dtype.kind != kind:
            found = "none" if column is None else f"one of {column.dtype} {list(column.shape)}"
            expected = "strings" if kind == "O" else "floats"
            raise ServerError(
                f"The model's answer for {count} photos should have an output {name!r}: {expected} of rank "
                f"{rank} with as many rows; there is {found}.",
                remedy="Ask for a model that hubhead made.",
            )
        columns.append(column)
    results = []
    for label, classes, scores, raw in zip(*columns, strict=True):
        try:
            status = Status(raw.decode())
        except ValueError as error:
            raise ServerError(
                f"The model's answer has the photo status {raw!r}, which this hubhead does not know.",
                remedy="Update hubhead to the release that made the model, or later.",
            ) from error
        named = zip(classes, scores, strict=True) if status.usable else ()
        top = tuple((name.decode(), float(score)) for name, score in named)
        results.append(Prediction(status, label.decode() or None, top))
    return results


def error_from(error: grpc.RpcError, target: str, model: str) -> ServerError:
    """The class of serving/errors.py that a failed call means; the one place that decides it."""
    code = error.code()
    details = error.details() or ""
    where = f"asked for model {model!r} at {target}"
    match code:
        case grpc.StatusCode.UNAVAILABLE:
            return ServerUnavailable(
                f"No model server answers at {target} ({where}): {details}.",
                remedy=f"Start one with: hubhead serve --model_base_path MODELS/{model}",
                code=code.name,
            )
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            return ServerUnavailable(
                f"The server is overloaded ({where}): {details}.",
                remedy="Try again later, or with fewer calls at once.",
                code=code.name,
            )
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return DeadlineExceeded(
                f"No answer in time ({where}).",
                remedy="Allow more with --timeout (Client(timeout=...)), or send fewer photos at once.",
                code=code.name,
            )
        case grpc.StatusCode.NOT_FOUND:
            return ModelNotFound(
                f"The server has no such model or version ({where}): {details}.",
                remedy="Check --model_name, or serve the model with: hubhead serve --model_base_path DIR",
                code=code.name,
            )
        case grpc.StatusCode.INVALID_ARGUMENT if details.startswith("Unrecognized servable version label"):
            return ModelNotFound(
                f"The server has no such version label ({where}): {details}.",
                remedy="Assign the label in the server's model configuration, or ask without one.",
                code=code.name,
            )
        case grpc.StatusCode.INVALID_ARGUMENT | grpc.StatusCode.FAILED_PRECONDITION:
            return InvalidRequest(
                f"The server refuses the request ({where}): {details}.",
                remedy="Ask for a model that hubhead made, of a release like this one.",
                code=code.name,
            )
        case grpc.StatusCode.UNIMPLEMENTED:
            return ServerError(
                f"What answers at {target} does not know this call ({where}): {details}.",
                remedy="Give the gRPC port of a TensorFlow Serving server, usually 8500.",
                code=code.name,
            )
        case _:
            return ServerError(
                f"The call failed with {code.name} ({where}): {details}.",
                remedy="See the server's own log.",
                code=code.name,
            )


class Client:
    """A blocking client of one model; safe to share between threads.

    Args:
        target: host:port of the server's gRPC port, or any gRPC target.
        model: the name that the server knows the model by.
        version: ask for this version; default: the one the server chooses (its newest).
        label: ask for the version that carries this label, such as "canary".
        timeout: seconds each call may take; None waits for ever.
        channel: an open channel to use in place of one to `target`; it stays open at the end.
        convert: whether photos that the graph does not decode (HEIC, AVIF, TIFF, ...) are converted here,
            before the call (serving/convert.py).
    """

    def __init__(
        self,
        target: str,
        *,
        model: str,
        version: int | None = None,
        label: str | None = None,
        timeout: float | None = 10.0,
        channel: grpc.Channel | None = None,
        convert: bool = True,
    ) -> None:
        if version is not None and label is not None:
            raise InputError(
                f"Both version {version} and label {label!r} were given.", remedy="Ask for one of the two."
            )
        self.target = target
        self.model = model
        self.version = version
        self.label = label
        self.timeout = timeout
        self._converter = Converter() if convert else None
        self._owns_channel = channel is None
        self._channel = channel or grpc.insecure_channel(target, options=CHANNEL_OPTIONS)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the channel, unless it was given, and end the processes that convert photos."""
        if self._converter:
            self._converter.close()
        if self._owns_channel:
            self._channel.close()

    def classify(self, photos: Iterable[Photo], top_k: int | None = None) -> list[Prediction]:
        """One prediction a photo, in order; sent in requests of at most 32 photos and 32 MiB.

        Args:
            photos: encoded bytes or paths; a file that cannot be read is Status.UNREADABLE, and
                `detail` says of every photo that was not sent why.
            top_k: how many labels to keep; None keeps all that the model gives.

        Raises:
            ServerError: or one of its classes, see serving/errors.py.
        """
        return classify(photos, self._classify_images, top_k=top_k, converter=self._converter)

    def metadata(self) -> Metadata:
        """The signatures of the model, as `saved_model.pb` declares them.

        Raises:
            ServerError: or one of its classes.
        """
        request = protos.GetModelMetadataRequest(model_spec=self._spec(), metadata_field=["signature_def"])
        response = self._call(protos.GET_MODEL_METADATA, request, protos.GetModelMetadataResponse)
        declared = protos.SignatureDefMap()
        if not response.metadata["signature_def"].Unpack(declared):
            raise ServerError(f"The server at {self.target} answered without signatures.")
        return Metadata(
            response.model_spec.name,
            response.model_spec.version.value,
            {
                name: Signature(_infos(signature.inputs), _infos(signature.outputs))
                for name, signature in sorted(declared.signature_def.items())
                if not name.startswith("__")  # TensorFlow's own, such as __saved_model_init_op
            },
        )

    def status(self) -> list[VersionStatus]:
        """All versions of the model that the server knows, or the one asked for; newest first.

        Raises:
            ServerError: or one of its classes.
        """
        return self._status(self.timeout, wait_for_ready=False)

    def wait_until_ready(self, timeout: float) -> None:
        """Return as soon as the server answers and the model is AVAILABLE.

        Args:
            timeout: seconds to wait at most.

        Raises:
            DeadlineExceeded: it was not in time; the message says what was seen last.
        """
        deadline = time.monotonic() + timeout
        seen = "no server answered"
        while (left := deadline - time.monotonic()) > 0:
            try:
                statuses = self._status(left, wait_for_ready=True)
            except (ServerUnavailable, ModelNotFound) as error:
                seen = error.what
            except DeadlineExceeded:
                break
            else:
                if any(status.state is State.AVAILABLE for status in statuses):
                    return
                seen = ", ".join(f"version {s.version} is {s.state} {s.error}".rstrip() for s in statuses)
            time.sleep(min(_READY_POLL_SECONDS, max(0.0, deadline - time.monotonic())))
        raise DeadlineExceeded(
            f"Model {self.model!r} at {self.target} was not ready within {timeout:g} s: {seen}.",
            remedy=f"Start one with: hubhead serve --model_base_path MODELS/{self.model}",
            code=grpc.StatusCode.DEADLINE_EXCEEDED.name,
        )

    def _classify_images(self, images: list[bytes]) -> list[Prediction]:
        request = protos.PredictRequest(model_spec=self._spec())
        request.model_spec.signature_name = contract.SERVING_DEFAULT
        request.inputs[contract.IMAGE_BYTES].CopyFrom(tensors.encode(images))
        response = self._call(protos.PREDICT, request, protos.PredictResponse)
        try:
            outputs = {name: tensors.decode(proto, name) for name, proto in response.outputs.items()}
        except InputError as error:
            raise ServerError(f"The server at {self.target} sent a broken answer: {error}") from error
        return predictions(outputs, len(images))

    def _status(self, timeout: float | None, *, wait_for_ready: bool) -> list[VersionStatus]:
        request = protos.GetModelStatusRequest(model_spec=self._spec())
        response = self._call(
            protos.GET_MODEL_STATUS,
            request,
            protos.GetModelStatusResponse,
            timeout=timeout,
            wait_for_ready=wait_for_ready,
        )
        names = protos.ModelVersionStatus.State
        statuses = [
            VersionStatus(entry.version, State(names.Name(entry.state)), entry.status.error_message)
            for entry in response.model_version_status
        ]
        return sorted(statuses, key=lambda status: status.version, reverse=True)

    def _spec(self) -> protos.Message:
        spec = protos.ModelSpec(name=self.model)
        if self.version is not None:
            spec.version.value = self.version
        if self.label is not None:
            spec.version_label = self.label
        return spec

    def _call(
        self,
        method: str,
        request: protos.Message,
        answer: protos.Message,
        *,
        timeout: float | None = None,
        wait_for_ready: bool = False,
    ) -> protos.Message:
        call = self._channel.unary_unary(
            method,
            request_serializer=type(request).SerializeToString,
            response_deserializer=answer.FromString,
        )
        try:
            return call(request, timeout=timeout or self.timeout, wait_for_ready=wait_for_ready)
        except grpc.RpcError as error:
            raise error_from(error, self.target, self.model) from error


def _read(photo: Photo) -> bytes | Refusal:
    if isinstance(photo, bytes):
        return photo
    try:
        return Path(photo).read_bytes()
    except OSError as error:
        return Refusal(Status.UNREADABLE, error.strerror or str(error))
    except ValueError as error:  # a path with a zero byte
        return Refusal(Status.UNREADABLE, str(error))


def _infos(declared: Mapping[str, Any]) -> dict[str, TensorInfo]:
    return {name: _info(info) for name, info in sorted(declared.items())}


def _info(info: protos.Message) -> TensorInfo:
    shape = info.tensor_shape
    sizes = None if shape.unknown_rank else tuple(d.size if d.size >= 0 else None for d in shape.dim)
    return TensorInfo(tensors.dtype_name(info.dtype), sizes)
