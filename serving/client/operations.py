"""What both clients share: the settings, and the scripts of what they can be asked."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import grpc
import numpy as np
from numpy.typing import NDArray

from serving import contract, protos
from serving.client import responses
from serving.client.canary import STABLE, Canary
from serving.client.grpc_errors import parse_max_batch_size
from serving.client.photos import (
    DOWNSCALE_FACTOR,
    MAX_BYTES,
    MAX_PHOTOS,
    Item,
    PhotoLoader,
    Pixels,
    encode_png,
)
from serving.client.responses import Embedding, Metadata, State, VersionStatus
from serving.client.retry import Retry, RetryDecision, classify_error, with_retries
from serving.client.sans_io import Call, Compute, Operation, PartialResult, Pause
from serving.contract import PhotoRejection, Prediction, Status
from serving.errors import (
    DeadlineExceeded,
    InputError,
    ModelNotFound,
    ServerError,
    ServerUnavailable,
    TooLarge,
)
from serving.photos.converter import EXTRA, Converter
from serving.protos import tensors

Rows = NDArray[Any] | Sequence[bytes]
"""One input tensor: its first dimension is the batch."""

R = TypeVar("R", Prediction, Embedding)

_READY_POLL_SECONDS = 0.1

_PROBE_SIDE = 8


class Core:
    """A model on a server, and how to ask it.

    Args: those of `Client`, and `answered`, which is told the statuses of photos.
    """

    def __init__(
        self,
        target: str,
        *,
        model: str,
        version: int | None = None,
        label: str | None = None,
        canary: float = 0.0,
        timeout: float | None = 10.0,
        retry: Retry | None = None,
        convert: bool = True,
        downscale: bool = False,
        max_photos: int = MAX_PHOTOS,
        max_bytes: int = MAX_BYTES,
        answered: Callable[[Iterable[Status]], None],
    ) -> None:
        if version is not None and label is not None:
            raise InputError(
                f"Both version {version} and label {label!r} were given.", remedy="Ask for one of the two."
            )
        if canary and version is not None:
            raise InputError(
                f"Version {version} was given, and a share for the canary.", remedy="Ask for one of the two."
            )
        if max_photos < 1 or max_bytes < 1 or (timeout is not None and timeout <= 0):
            raise InputError(
                f"max_photos {max_photos}, max_bytes {max_bytes} and timeout {timeout} have to be above 0."
            )
        self.target = target
        self.model = model
        self.version = version
        self.canary = Canary(canary)
        # Who names no label gets the newest version that serves, which is the canary.
        self.label = STABLE if canary and label is None else label
        self.timeout = timeout
        self.max_photos = max_photos
        self.max_bytes = max_bytes
        self.retry = retry or Retry()
        self.converter = Converter() if convert or downscale else None
        if downscale and self.converter and not self.converter.can_downscale:
            raise InputError(
                "Downscaling needs Pillow, which is not installed.",
                remedy=f"Install it with: pip install '{EXTRA}'",
            )
        self.downscale = downscale
        self.loader = PhotoLoader(self.converter, convert)
        self._answered = answered
        self._pixels: tuple[int, int] | None = None

    def close(self) -> None:
        """End the processes that convert photos."""
        if self.converter:
            self.converter.close()

    def prepare(self) -> Operation[None]:
        """Learn the model's input size, where photos are to be reduced to twice that."""
        if self.downscale and self.loader.target_side is None:
            size = yield from self._input_size()
            if size is None:
                raise InputError(
                    f"Model {self.model!r} does not state its input size, which downscaling needs.",
                    remedy="Send the photos whole, or ask for a model that hubhead made.",
                )
            self.loader = replace(self.loader, target_side=DOWNSCALE_FACTOR * max(size))

    # --- What can be asked -------------------------------------------------------------------------------

    def classify(self, items: Sequence[Item], user: str | None = None) -> Operation[list[Prediction]]:
        """One prediction an item: decoded pixels of the model's own size by `classify_pixels`.

        Pixels of another size go as PNGs, without loss, and are resized as every photo is.
        """
        canary = self.canary.selects(user)
        size = None
        if any(isinstance(item, np.ndarray) for item in items):
            size = yield from self._input_size()
        ready = list(items)
        direct: list[int] = []
        encoded: list[int] = []
        for place, item in enumerate(items):
            if isinstance(item, np.ndarray):
                if item.shape[:2] == size:
                    direct.append(place)
                    continue
                ready[place] = yield Compute(_png_encoder(item))
            if not isinstance(item, PhotoRejection):
                encoded.append(place)
        results = [
            Prediction.from_rejection(item) if isinstance(item, PhotoRejection) else None for item in items
        ]
        for signature, name, places in (
            (contract.SERVING_DEFAULT, contract.IMAGE_BYTES, encoded),
            (contract.CLASSIFY_PIXELS, contract.PIXELS, direct),
        ):
            if places:
                rows = [ready[place] for place in places]
                asked = yield from self._predict_each(signature, name, rows, responses.predictions, canary)
                for place, piece in zip(places, asked, strict=True):
                    results[place] = (
                        Prediction.from_rejection(piece) if isinstance(piece, PhotoRejection) else piece
                    )
        found = [result for result in results if result is not None]
        self._answered(result.status for result in found)
        return found

    def embed(self, items: Sequence[Item]) -> Operation[list[Embedding]]:
        """One embedding an item; decoded pixels go as PNGs."""
        rows: list[Any] = []
        for item in items:
            if isinstance(item, np.ndarray):
                rows.append((yield Compute(_png_encoder(item))))
            elif not isinstance(item, PhotoRejection):
                rows.append(item)
        asked: list[Embedding | PhotoRejection] = []
        if rows:
            asked = yield from self._predict_each(
                contract.EMBED, contract.IMAGE_BYTES, rows, responses.embeddings, self.canary.selects(None)
            )
        given = iter(asked)
        results = (item if isinstance(item, PhotoRejection) else next(given) for item in items)
        found = [
            Embedding.from_rejection(item) if isinstance(item, PhotoRejection) else item for item in results
        ]
        self._answered(result.status for result in found)
        return found

    def run(self, signature: str, inputs: Mapping[str, Rows]) -> Operation[dict[str, NDArray[Any]]]:
        """The outputs of any signature; more rows than the server takes at once go in several requests."""
        rows = {
            name: value if isinstance(value, np.ndarray) else list(value) for name, value in inputs.items()
        }
        counts = {len(value) for value in rows.values()}
        if len(counts) != 1 or 0 in counts:
            raise InputError(
                f"The inputs {sorted(rows)} of signature {signature} have {sorted(counts)} rows.",
                remedy="Give each input as many rows, one at least.",
            )
        pieces = yield from self._predict_all(signature, rows, None, self.canary.selects(None))
        outputs = [piece.outputs for piece in pieces if piece.outputs is not None]
        if len(outputs) == 1:
            return outputs[0]
        return {name: np.concatenate([part[name] for part in outputs]) for name in outputs[0]}

    def metadata(self) -> Operation[Metadata]:
        """The signatures of the model."""
        request = protos.GetModelMetadataRequest(
            model_spec=self._model_spec(), metadata_field=["signature_def"]
        )
        call = Call(protos.GET_MODEL_METADATA, request, protos.GetModelMetadataResponse, self.timeout)
        response = yield from self._call(call)
        return responses.metadata(response, self.target)

    def status(
        self, timeout: float | None = None, *, wait_for_ready: bool = False
    ) -> Operation[list[VersionStatus]]:
        """The versions that the server knows."""
        request = protos.GetModelStatusRequest(model_spec=self._model_spec())
        call = Call(
            protos.GET_MODEL_STATUS,
            request,
            protos.GetModelStatusResponse,
            timeout or self.timeout,
            wait_for_ready=wait_for_ready,
        )
        response = yield from self._call(call)
        return responses.statuses(response)

    def reload(self, config: protos.Message) -> Operation[None]:
        """Serve what a ModelServerConfig says, and nothing else."""
        request = protos.ReloadConfigRequest(config=config)
        call = Call(protos.RELOAD_CONFIG, request, protos.ReloadConfigResponse, self.timeout)
        response = yield from self._call(call)
        if response.status.error_code:
            raise ServerError(
                f"The server at {self.target} does not take the configuration: "
                f"{response.status.error_message}.",
                code=_grpc_code_name(response.status.error_code),
                details=response.status.error_message,
            )

    def wait_until_ready(self, timeout: float) -> Operation[None]:
        """Until a version is AVAILABLE, and the label, where one is pinned, is on a version that is."""
        deadline = time.monotonic() + timeout
        seen = "no server answered"
        while (left := deadline - time.monotonic()) > 0:
            try:
                statuses = yield from self.status(left, wait_for_ready=True)
                if self.label is not None:  # which GetModelStatus does not look at
                    yield from self.metadata()
            except (ServerUnavailable, ModelNotFound) as error:
                seen = error.what
            except DeadlineExceeded:
                break
            else:
                if any(status.state is State.AVAILABLE for status in statuses):
                    return
                seen = ", ".join(f"version {s.version} is {s.state} {s.error}".rstrip() for s in statuses)
            yield Pause(min(_READY_POLL_SECONDS, max(0.0, deadline - time.monotonic())))
        raise DeadlineExceeded(
            f"Model {self.model!r} at {self.target} was not ready within {timeout:g} s: {seen}.",
            remedy=f"Start one with: hubhead serve --model_base_path MODELS/{self.model}",
            code=grpc.StatusCode.DEADLINE_EXCEEDED.name,
        )

    # --- How it is asked ---------------------------------------------------------------------------------

    def _predict_each(
        self,
        signature: str,
        name: str,
        rows: list[Any],
        read: Callable[[responses.Outputs, int, int | None], list[R]],
        canary: bool,
    ) -> Operation[list[R | PhotoRejection]]:
        """One answer a row; a row that the server fails on, alone too, is a PhotoRejection with its words."""
        batch: Rows = rows
        probe: Rows = [_PROBE]
        if isinstance(rows[0], np.ndarray):
            batch = np.stack(rows)
            probe = np.zeros_like(batch[:1])
        pieces = yield from self._predict_all(signature, {name: batch}, {name: probe}, canary)
        found: list[R | PhotoRejection] = []
        for piece in pieces:
            if piece.outputs is not None:
                found.extend(read(piece.outputs, piece.count, piece.version))
            else:
                assert piece.failure is not None
                found.append(_to_rejection(piece.failure))
        return found

    def _predict_all(
        self, signature: str, rows: Mapping[str, Rows], probe: Mapping[str, Rows] | None, canary: bool
    ) -> Operation[list[PartialResult]]:
        """Answer all rows, in requests as small as it takes.

        A request that is too large is halved. One that fails for what may be one photo is halved until
        that photo is alone; whether the photo or the server is at fault is then seen from `probe`, a
        row without fault: where it fails too, the failure is raised.
        """
        count = len(next(iter(rows.values())))
        if count > self.max_photos:
            pieces: list[PartialResult] = []
            for begin in range(0, count, self.max_photos):
                part = {name: value[begin : begin + self.max_photos] for name, value in rows.items()}
                pieces += yield from self._predict_all(signature, part, probe, canary)
            return pieces
        try:
            return [(yield from self._predict(signature, rows, count, canary))]
        except ServerError as error:
            failure = error
        if (allowed := parse_max_batch_size(failure)) and allowed < count:
            self.max_photos = allowed
            return (yield from self._predict_all(signature, rows, probe, canary))
        helps = classify_error(failure)
        if helps not in (RetryDecision.SPLIT, RetryDecision.ISOLATE) or (
            helps is RetryDecision.ISOLATE and probe is None
        ):
            raise failure
        if count > 1:
            middle = count // 2
            halves = (slice(None, middle), slice(middle, None))
            pieces = []
            for half in halves:
                part = {name: value[half] for name, value in rows.items()}
                pieces += yield from self._predict_all(signature, part, probe, canary)
            return pieces
        if probe is None:
            raise failure
        if helps is RetryDecision.ISOLATE:
            try:
                yield from self._predict(signature, probe, 1, canary)
            except ServerError:
                raise failure from failure.__cause__
        return [PartialResult(1, failure=failure)]

    def _predict(
        self, signature: str, rows: Mapping[str, Rows], count: int, canary: bool = False
    ) -> Operation[PartialResult]:
        """Ask about all rows in one request; where there is no canary (any more), as all others ask."""
        request = protos.PredictRequest(model_spec=self._model_spec())
        if canary:
            request.model_spec.version_label = self.canary.label
        request.model_spec.signature_name = signature
        for name, value in rows.items():
            request.inputs[name].CopyFrom(tensors.encode(value))
        try:
            response = yield from self._call(
                Call(protos.PREDICT, request, protos.PredictResponse, self.timeout, rows=count)
            )
        except ModelNotFound:
            if not canary:
                raise
            return (yield from self._predict(signature, rows, count))
        version = response.model_spec.version
        number = version.value if response.model_spec.HasField("version") else None
        return PartialResult(count, responses.decode_outputs(response, self.target), number)

    def _call(self, call: Call) -> Operation[protos.Message]:
        return (yield from with_retries(call, self.retry, self.target, self.model))

    def _input_size(self) -> Operation[tuple[int, int] | None]:
        """(height, width) of `classify_pixels`; None where the model has no such signature."""
        if self._pixels is None:
            declared = (yield from self.metadata()).signatures.get(contract.CLASSIFY_PIXELS)
            shape = declared and declared.inputs[contract.PIXELS].shape
            self._pixels = (shape[1] or 0, shape[2] or 0) if shape and len(shape) == 4 else (0, 0)
        return self._pixels if all(self._pixels) else None

    def _model_spec(self) -> protos.Message:
        spec = protos.ModelSpec(name=self.model)
        if self.version is not None:
            spec.version.value = self.version
        if self.label is not None:
            spec.version_label = self.label
        return spec


def truncate_top_k(predictions: Sequence[Prediction], top_k: int | None) -> list[Prediction]:
    """The same with at most so many labels each."""
    if top_k is None:
        return list(predictions)
    return [replace(prediction, top=prediction.top[:top_k]) for prediction in predictions]


def with_top_k(script: Operation[list[Prediction]], top_k: int | None) -> Operation[list[Prediction]]:
    """The same for what a script comes back with."""
    return truncate_top_k((yield from script), top_k)


def _png_encoder(pixels: Pixels) -> Callable[[], bytes]:
    return lambda: encode_png(pixels)


_PROBE = encode_png(np.full((_PROBE_SIDE, _PROBE_SIDE, 3), 128, np.uint8))
"""A photo that any model for photos can answer."""


def _to_rejection(failure: ServerError) -> PhotoRejection:
    status = Status.TOO_LARGE if isinstance(failure, TooLarge) else Status.FAILED
    return PhotoRejection(status, failure.details or failure.what)


def _grpc_code_name(number: int) -> str:
    return next((code.name for code in grpc.StatusCode if code.value[0] == number), "UNKNOWN")
