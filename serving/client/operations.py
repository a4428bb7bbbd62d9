"""The operations that both clients share, as sans-I/O generators: classify, embed, run, status, reload."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from numbers import Real
from typing import Any, TypeAlias, TypeVar

import grpc
import numpy as np
from numpy.typing import NDArray

from serving import contract, protos
from serving.client import responses
from serving.client.canary import CANARY, STABLE, selects_canary
from serving.client.channel import MAX_TIMEOUT_SECONDS, ClientConfig
from serving.client.grpc_errors import code_name, parse_max_batch_size, to_rejection
from serving.client.photos import (
    DOWNSCALE_FACTOR,
    PROBE_PHOTO,
    Batcher,
    Item,
    LoadedPhoto,
    Photo,
    PhotoLoader,
    Pixels,
    Rows,
    check_inputs,
    encode_png,
)
from serving.client.responses import Embedding, Metadata, State, VersionStatus
from serving.client.retry import RetryDecision, classify_error, with_retries
from serving.client.sans_io import Call, Compute, Operation, Pause, Response
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

R = TypeVar("R", Prediction, Embedding)
T = TypeVar("T")

Decoder: TypeAlias = Callable[[responses.Outputs, int, int | None], list[R]]
"""A function that decodes the outputs of a number of rows, with the version that answered."""

READ_AHEAD = 8
"""Photos that are read and converted ahead of the request they go into."""

_READY_POLL_SECONDS = 0.1


class Core:
    """The operations of a client on one model.

    Args:
        config: settings of the client.
        count_photos: called with the status of each photo.
    """

    def __init__(self, config: ClientConfig, count_photos: Callable[[Iterable[Status]], None]) -> None:
        self.config = config
        # A request without a label gets the newest version that serves, which would be the canary.
        self.label = STABLE if config.canary and config.label is None else config.label
        self.max_photos = config.max_photos
        self.converter = Converter() if config.convert or config.downscale else None
        if config.downscale and self.converter and not self.converter.can_downscale:
            raise InputError(
                "Downscaling needs Pillow, which is not installed.",
                remedy=f"Install it with: pip install '{EXTRA}'",
            )
        self.loader = PhotoLoader(self.converter, config.convert)
        self._count_photos = count_photos
        self._pixels: tuple[int, int] | None = None  # (0, 0): the model does not state its input size

    def close(self) -> None:
        """Stop the processes that convert photos."""
        if self.converter:
            self.converter.close()

    def prepare(self) -> Operation[None]:
        """Look up the model's input size, if photos are to be downscaled; run before the other operations."""
        if self.config.downscale and self.loader.target_side is None:
            size = yield from self._input_size()
            if size is None:
                raise InputError(
                    f"Model {self.config.model!r} does not state its input size, which downscaling needs.",
                    remedy="Turn downscaling off, or use a model made by hubhead.",
                )
            self.loader = replace(self.loader, target_side=DOWNSCALE_FACTOR * max(size))

    def batcher(self) -> Batcher:
        """Return a new batcher with the bounds of a request."""
        return Batcher(self.max_photos, self.config.max_bytes)

    # --- Operations --------------------------------------------------------------------------------------

    def classify(
        self, items: Sequence[Item], top_k: int | None, user: str | None = None
    ) -> Operation[list[Prediction]]:
        """Return one prediction per item, with at most `top_k` labels.

        Decoded pixels of the model's input size go to `classify_pixels`. Those of another size are sent as
        PNG, without loss, and are resized by the model like every photo.
        """
        size = None
        if any(isinstance(item, np.ndarray) for item in items):
            size = yield from self._input_size()
        predictions = yield from self._answer(
            items, contract.SERVING_DEFAULT, responses.decode_predictions, Prediction, user, size
        )
        return responses.truncate_top_k(predictions, top_k)

    def embed(self, items: Sequence[Item]) -> Operation[list[Embedding]]:
        """Return one embedding per item; decoded pixels are sent as PNG."""
        return (yield from self._answer(items, contract.EMBED, responses.decode_embeddings, Embedding))

    def run(self, signature: str, inputs: Mapping[str, Rows]) -> Operation[dict[str, NDArray[Any]]]:
        """Return the outputs of any signature.

        Rows beyond `max_photos` are sent in further requests only if they do not depend on each other: for
        the signatures of a bundle, and for a server that states a maximum batch size, since it merges and
        splits the rows of its callers itself. Other signatures get one request.
        """
        rows, count = check_inputs(signature, inputs)
        canary = selects_canary(self.config.canary, None)
        expected = responses.ROW_WISE.get((signature, next(iter(rows)))) if len(rows) == 1 else None
        if expected and all(value.ndim for value in rows.values()):
            results = yield from self._predict_rows(signature, rows, canary)
            if len(results) == 1 or all(result.outputs.keys() == expected for result in results):
                return responses.join_rows(signature, results)
        try:
            return (yield from self._predict(signature, rows, count, canary)).outputs
        except ServerError as error:
            allowed = parse_max_batch_size(error)
            if allowed is None or allowed >= count or not all(value.ndim for value in rows.values()):
                if isinstance(error, TooLarge):
                    error.remedy = "Give fewer rows: those of this signature are not divided among requests."
                raise
            self.max_photos = min(allowed, self.max_photos)
        results = yield from self._predict_rows(signature, rows, canary, allowed)
        return responses.join_rows(signature, results)

    def metadata(self) -> Operation[Metadata]:
        """Return the signatures of the model."""
        request = protos.GetModelMetadataRequest(
            model_spec=self._model_spec(), metadata_field=["signature_def"]
        )
        response = yield from self._call(protos.GET_MODEL_METADATA, request, protos.GetModelMetadataResponse)
        return responses.decode_metadata(response, self.config.target)

    def status(
        self, timeout: float | None = None, *, wait_for_ready: bool = False
    ) -> Operation[list[VersionStatus]]:
        """Return the versions that the server has of the model, newest first."""
        request = protos.GetModelStatusRequest(model_spec=self._model_spec())
        response = yield from self._call(
            protos.GET_MODEL_STATUS,
            request,
            protos.GetModelStatusResponse,
            timeout=timeout or self.config.timeout,
            wait_for_ready=wait_for_ready,
        )
        return responses.decode_statuses(response)

    def reload(self, config: protos.Message) -> Operation[None]:
        """Replace the server's configuration by a protos.ModelServerConfig."""
        try:
            request = protos.ReloadConfigRequest(config=config)
        except (TypeError, ValueError) as error:
            raise InputError(
                f"The configuration is of type {type(config).__name__}.",
                remedy="Give a serving.protos.ModelServerConfig.",
            ) from error
        response = yield from self._call(protos.RELOAD_CONFIG, request, protos.ReloadConfigResponse)
        status = response.status
        if status.error_code:
            raise ServerError(
                f"The server at {self.config.target} rejected the configuration: {status.error_message}.",
                code=code_name(status.error_code),
                details=status.error_message,
            )

    def wait_until_ready(self, timeout: float) -> Operation[None]:
        """Wait until a version is AVAILABLE; with a label, until the label is on a version that is."""
        if not isinstance(timeout, Real) or isinstance(timeout, bool) or math.isnan(timeout):
            raise InputError(f"The timeout is {timeout!r}.", remedy="Give a number of seconds.")
        deadline = time.monotonic() + min(timeout, MAX_TIMEOUT_SECONDS)
        last_state = "no server answered"
        while (left := deadline - time.monotonic()) > 0:
            try:
                statuses = yield from self.status(left, wait_for_ready=True)
                if self.label is not None:  # GetModelStatus ignores the label
                    yield from self.metadata()
            except (ServerUnavailable, ModelNotFound) as error:
                last_state = error.what
            except DeadlineExceeded:
                break
            else:
                if any(status.state is State.AVAILABLE for status in statuses):
                    return
                last_state = ", ".join(
                    f"version {status.version} is {status.state} {status.error}".rstrip()
                    for status in statuses
                )
            yield Pause(min(_READY_POLL_SECONDS, max(0.0, deadline - time.monotonic())))
        model, target = self.config.model, self.config.target
        raise DeadlineExceeded(
            f"Model {model!r} at {target} was not ready within {timeout:g} s: {last_state}.",
            remedy=f"Start one with: hubhead serve --model_base_path MODELS/{model}",
            code=grpc.StatusCode.DEADLINE_EXCEEDED.name,
        )

    # --- Requests ----------------------------------------------------------------------------------------

    def _answer(
        self,
        items: Sequence[Item],
        signature: str,
        decode: Decoder[R],
        record: type[R],
        user: str | None = None,
        size: tuple[int, int] | None = None,
    ) -> Operation[list[R]]:
        """Return one record per item.

        Args:
            items: photos ready to be sent, and rejections.
            signature: name of the signature for encoded photos.
            decode: function that decodes the outputs of a number of rows.
            record: class of the records.
            user: id of the user, which decides whether the canary answers.
            size: (height, width) of the pixels that go to `classify_pixels` as they are; others are
                encoded.
        """
        canary = selects_canary(self.config.canary, user)
        results: dict[int, R | PhotoRejection] = {}
        encoded: dict[int, bytes] = {}
        direct: dict[int, Pixels] = {}
        for index, item in enumerate(items):
            if isinstance(item, PhotoRejection):
                results[index] = item
            elif not isinstance(item, np.ndarray):
                encoded[index] = item
            elif item.shape[:2] == size:
                direct[index] = item
            else:
                encoded[index] = yield Compute(partial(encode_png, item))
        # At most two requests: encoded photos and decoded pixels go to different signatures. The indices
        # put the results back into the order of the items.
        for name, tensor, rows in (
            (signature, contract.IMAGE_BYTES, encoded),
            (contract.CLASSIFY_PIXELS, contract.PIXELS, direct),
        ):
            if not rows:
                continue
            batch: Rows = [*encoded.values()]
            probe: Rows = [PROBE_PHOTO]
            if rows is direct:
                batch = np.stack([*direct.values()])
                probe = np.zeros_like(batch[:1])
            answers: list[R | PhotoRejection] = []
            for part in (yield from self._predict_all(name, {tensor: batch}, {tensor: probe}, canary)):
                if isinstance(part, ServerError):  # the server fails on this row even alone
                    answers.append(to_rejection(part))
                else:
                    answers += decode(part.outputs, part.count, part.version)
            results.update(zip(rows, answers, strict=True))
        records = [
            record.from_rejection(result) if isinstance(result, PhotoRejection) else result
            for _, result in sorted(results.items())
        ]
        self._count_photos(record.status for record in records)
        return records

    def _predict_rows(
        self, signature: str, rows: Mapping[str, Rows], canary: bool, most: int | None = None
    ) -> Operation[list[Response]]:
        """Return the responses for all rows, like `_predict_all`; the error of a row is raised."""
        results = yield from self._predict_all(signature, rows, None, canary, most)
        return [result for result in results if isinstance(result, Response)]

    def _predict_all(
        self,
        signature: str,
        rows: Mapping[str, Rows],
        probe: Mapping[str, Rows] | None,
        canary: bool,
        most: int | None = None,
    ) -> Operation[list[Response | ServerError]]:
        """Return the responses for all rows, splitting requests where needed, or the error of a single row.

        A request that is too large is halved. A request that one photo may have made fail is halved until
        that photo is alone; halving n rows takes about 2 log2(n) requests. The probe then tells a faulty
        photo from a faulty server: the error is raised if the probe fails too.

        Args:
            signature: name of the signature.
            rows: input tensors by name, batch first.
            probe: a row that any working server answers; None to raise the error instead of isolating.
            canary: True to ask the canary.
            most: rows per request; None for `max_photos`.
        """
        count = len(next(iter(rows.values())))
        size = most or self.max_photos
        if count <= size:
            try:
                return [(yield from self._predict(signature, rows, count, canary))]
            except ServerError as error:
                failure = error
            if (allowed := parse_max_batch_size(failure)) and allowed < count:
                size = self.max_photos = allowed  # kept for all later requests
            else:
                decision = classify_error(failure)
                if decision not in (RetryDecision.SPLIT, RetryDecision.ISOLATE):
                    raise failure  # RETRY too: with_retries has used up its attempts
                if probe is None and (count == 1 or decision is RetryDecision.ISOLATE):
                    raise failure
                if count == 1:
                    if decision is RetryDecision.ISOLATE and probe is not None:
                        try:
                            yield from self._predict(signature, probe, 1, canary)
                        except ServerError:
                            raise failure from failure.__cause__
                    return [failure]
                size = (count + 1) // 2
        results: list[Response | ServerError] = []
        for begin in range(0, count, size):
            part = {name: value[begin : begin + size] for name, value in rows.items()}
            results += yield from self._predict_all(signature, part, probe, canary, most)
        return results

    def _predict(
        self, signature: str, rows: Mapping[str, Rows], count: int, canary: bool = False
    ) -> Operation[Response]:
        """Return the response to one request; while no version is the canary, the others answer it."""
        request = protos.PredictRequest(model_spec=self._model_spec())
        if canary:
            request.model_spec.version_label = CANARY
        request.model_spec.signature_name = signature
        for name, value in rows.items():
            request.inputs[name].CopyFrom(tensors.encode(value))
        try:
            response = yield from self._call(protos.PREDICT, request, protos.PredictResponse, rows=count)
        except ModelNotFound:
            if not canary:
                raise
            return (yield from self._predict(signature, rows, count))
        version = response.model_spec.version.value if response.model_spec.HasField("version") else None
        return Response(count, responses.decode_outputs(response, self.config.target), version)

    def _call(
        self, method: str, request: protos.Message, response_type: protos.Message, **options: Any
    ) -> Operation[protos.Message]:
        """Make a call with retries; the options are further attributes of `Call`."""
        call = Call(method, request, response_type, **{"timeout": self.config.timeout, **options})
        return (yield from with_retries(call, self.config.retry, self.config.target, self.config.model))

    def _input_size(self) -> Operation[tuple[int, int] | None]:
        """Return the (height, width) of `classify_pixels`, or None if the model has no such signature."""
        if self._pixels is None:
            declared = (yield from self.metadata()).signatures.get(contract.CLASSIFY_PIXELS)
            pixels = declared and declared.inputs.get(contract.PIXELS)
            shape = pixels and pixels.shape
            self._pixels = (shape[1] or 0, shape[2] or 0) if shape and len(shape) == 4 else (0, 0)
        return self._pixels if all(self._pixels) else None

    def _model_spec(self) -> protos.Message:
        version = self.config.version
        return protos.ModelSpec(
            name=self.config.model,
            version=None if version is None else {"value": version},
            version_label=self.label,
        )


def answer_photos(
    request: Callable[[list[Item]], Operation[list[T]]], batch: Sequence[LoadedPhoto]
) -> Operation[list[tuple[Photo, T]]]:
    """Return the photos of a batch, each with its result.

    Args:
        request: returns the operation that returns one result per item.
        batch: photos to send.
    """
    results = yield from request([item for _, item in batch])
    return [(photo, result) for (photo, _), result in zip(batch, results, strict=True)]
