"""The blocking client."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import chain, islice
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

import grpc
from numpy.typing import NDArray

from serving import protos
from serving.client.channel import ClientConfig, encode_headers, make_config, open_channel
from serving.client.concurrency import (
    AdaptiveLimit,
    CancellationScope,
    ConcurrencyLimiter,
    map_in_threads,
)
from serving.client.operations import Core, Rows, with_top_k
from serving.client.photos import Item, Photo, batch_items
from serving.client.responses import Embedding, Metadata, VersionStatus, truncate_top_k
from serving.client.sans_io import Call, Operation, Pause, Step, run_operation
from serving.client.telemetry import Metrics, Telemetry
from serving.contract import Prediction
from serving.errors import Cancelled

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

T = TypeVar("T")
A = TypeVar("A")

_READERS = 4
_READ_AHEAD = 2 * _READERS
"""Photos that are read and converted ahead of the request they go into."""


class Client:
    """A blocking client of one model; safe to share between threads.

    Args:
        target: settings of the client, or the server's gRPC target alone.
        channel: open channel to use in place of one to the target; the client does not close it.
        metrics: Prometheus metrics to update (serving/client/telemetry.py).
        tracer: OpenTelemetry tracer that makes a span per call and propagates it to the server.
        settings: beside a bare target the other attributes of `ClientConfig`; `model` is required.
    """

    def __init__(
        self,
        target: str | ClientConfig,
        *,
        channel: grpc.Channel | None = None,
        metrics: Metrics | None = None,
        tracer: Tracer | None = None,
        **settings: Any,
    ) -> None:
        self._config = config = make_config(target, settings)
        self._telemetry = Telemetry(config.target, config.model, metrics, tracer)
        self._core = Core(config, self._telemetry.count_photos)
        self._limiter = ConcurrencyLimiter(AdaptiveLimit(config.max_concurrency))
        self._closed = False
        self._owns_channel = channel is None
        self._channel = channel or open_channel(config)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def target(self) -> str:
        """gRPC target of the server."""
        return self._core.target

    @property
    def model(self) -> str:
        """Name of the model."""
        return self._core.model

    @property
    def max_photos(self) -> int:
        """Photos per request: as given, or the maximum batch size that the server has stated since."""
        return self._core.max_photos

    def close(self) -> None:
        """Close the channel, unless it was given, and stop the processes that convert photos."""
        self._closed = True
        self._core.close()
        if self._owns_channel:
            self._channel.close()

    def classify(
        self, photos: Iterable[Photo], top_k: int | None = None, *, user: str | None = None
    ) -> list[Prediction]:
        """Return one prediction per photo, in order.

        A photo that cannot be used does not fail the others: a file that cannot be read gets
        Status.UNREADABLE, a photo that the server fails on even alone gets Status.FAILED. The reason is in
        `detail`.

        Args:
            photos: encoded bytes, paths, files open for reading, or decoded pixels: uint8 [H,W,3], RGB,
                upright. Pixels of the model's input size go to `classify_pixels` unchanged; those of
                another size are sent as PNG, without loss, and resized by the model like every photo.
            top_k: number of labels to keep; None for all that the model returns.
            user: id of the user, which decides by its hash whether the canary answers, so that a user
                always gets the same version; None to decide at random for each request.

        Raises:
            InputError: an item is not a photo, such as an array of another dtype.
            ServerError: or one of its subclasses, see serving/errors.py.
        """
        predictions = self._collect(photos, lambda items: self._core.classify(items, user))
        return truncate_top_k(predictions, top_k)

    def embed(self, photos: Iterable[Photo]) -> list[Embedding]:
        """Return one embedding per photo, in order; otherwise like `classify`."""
        return self._collect(photos, self._core.embed)

    def iclassify(
        self, photos: Iterable[Photo], top_k: int | None = None, *, ordered: bool = True
    ) -> Generator[tuple[Photo, Prediction]]:
        """Yield (photo, prediction) for any number of photos, in bounded memory.

        Photos are read ahead and sent in concurrent requests, as many as the server takes without
        queueing them. Closing the iterator cancels the requests in flight.

        Args:
            photos: as for `classify`; any iterable, an endless one too.
            top_k: as for `classify`.
            ordered: True to yield in the order of the photos, False as responses arrive.

        Raises:
            ServerError: as `classify`, at the photo that it concerns.
        """
        return self._stream(photos, lambda items: with_top_k(self._core.classify(items), top_k), ordered)

    def iembed(self, photos: Iterable[Photo], *, ordered: bool = True) -> Generator[tuple[Photo, Embedding]]:
        """Yield (photo, embedding) for any number of photos; otherwise like `iclassify`."""
        return self._stream(photos, self._core.embed, ordered)

    def run(self, signature: str, inputs: Mapping[str, Rows]) -> dict[str, NDArray[Any]]:
        """Run any signature of any model and return its outputs by name.

        Args:
            signature: name of the signature.
            inputs: input tensors by name, batch first: arrays, or lists of bytes for strings. More than
                `max_photos` rows are sent in several requests.

        Raises:
            InputError: the inputs have no rows, or differ in their number of rows.
            ServerError: or one of its subclasses.
        """
        return run_operation(self._core.run(signature, inputs), self._perform)

    def imap(
        self, signature: str, batches: Iterable[Mapping[str, Rows]], *, ordered: bool = True
    ) -> Generator[dict[str, NDArray[Any]]]:
        """Yield the result of `run` for any number of batches, concurrently, in bounded memory."""
        return self._run_concurrently(batches, lambda batch: self._core.run(signature, batch), ordered)

    def metadata(self) -> Metadata:
        """Return the signatures of the model, as its saved_model.pb declares them.

        Raises:
            ServerError: or one of its subclasses.
        """
        return run_operation(self._core.metadata(), self._perform)

    def status(self) -> list[VersionStatus]:
        """Return all versions that the server has of the model, or the one asked for; newest first.

        Raises:
            ServerError: or one of its subclasses.
        """
        return run_operation(self._core.status(), self._perform)

    def reload(self, config: protos.Message) -> None:
        """Replace the server's model configuration (HandleReloadConfigRequest).

        TensorFlow Serving waits until new models are loaded, but not until new versions of a model that it
        has are: move a label only after `status` reports its version as AVAILABLE.

        Args:
            config: protos.ModelServerConfig with all models to serve; others are unloaded.

        Raises:
            ServerError: or one of its subclasses.
        """
        run_operation(self._core.reload(config), self._perform)

    def wait_until_ready(self, timeout: float) -> None:
        """Block until the server responds and the model is AVAILABLE.

        Args:
            timeout: maximum wait in seconds.

        Raises:
            DeadlineExceeded: the model was not ready in time; the message has the state seen last.
        """
        run_operation(self._core.wait_until_ready(timeout), self._perform)

    # --- Photos to requests ------------------------------------------------------------------------------

    def _collect(
        self, photos: Iterable[Photo], request: Callable[[list[Item]], Operation[list[T]]]
    ) -> list[T]:
        """Return one result per photo: by a single request in this thread if it suffices, else a stream."""
        run_operation(self._core.prepare(), self._perform)
        iterator = iter(photos)
        first = list(islice(iterator, self._core.max_photos))
        rest = list(islice(iterator, 1))
        if rest:
            stream = self._stream(chain(first, rest, iterator), request, ordered=True)
            return [result for _, result in stream]
        items = [self._core.loader(photo) for photo in first]
        batches = list(batch_items(items, max_bytes=self._core.max_bytes))
        if len(batches) <= 1:
            return [result for batch in batches for result in run_operation(request(batch), self._perform)]
        return [result for results in self._run_concurrently(batches, request, True) for result in results]

    def _stream(
        self, photos: Iterable[Photo], request: Callable[[list[Item]], Operation[list[T]]], ordered: bool
    ) -> Generator[tuple[Photo, T]]:
        core = self._core
        run_operation(core.prepare(), self._perform)
        unbatched: list[Photo] = []  # photos that were read and are not in a batch yet

        def read() -> Generator[Item]:
            with ThreadPoolExecutor(_READERS, thread_name_prefix="hubhead-read") as pool:
                pairs = map_in_threads(
                    pool, lambda photo: (photo, core.loader(photo)), photos, lambda: _READ_AHEAD
                )
                with closing(pairs):
                    for photo, item in pairs:
                        unbatched.append(photo)
                        yield item

        def batch() -> Generator[tuple[list[Photo], list[Item]]]:
            # batch_items keeps the order: a batch of n items belongs to the n oldest photos.
            with closing(read()) as items:
                for group in batch_items(items, max_photos=core.max_photos, max_bytes=core.max_bytes):
                    batched, unbatched[: len(group)] = unbatched[: len(group)], []
                    yield batched, group

        def request_pairs(batch: tuple[list[Photo], list[Item]]) -> Operation[list[tuple[Photo, T]]]:
            results = yield from request(batch[1])
            return list(zip(batch[0], results, strict=True))

        with (
            closing(batch()) as batches,
            closing(self._run_concurrently(batches, request_pairs, ordered)) as responses,
        ):
            for pairs in responses:
                yield from pairs

    def _run_concurrently(
        self, batches: Iterable[A], operation: Callable[[A], Operation[T]], ordered: bool
    ) -> Generator[T]:
        """Run an operation per batch, in as many threads as the adaptive limit allows."""
        scope = CancellationScope()
        limit = self._limiter.limit

        def run(batch: A) -> T:
            return run_operation(operation(batch), lambda step: self._perform(step, scope))

        with ThreadPoolExecutor(limit.maximum, thread_name_prefix="hubhead-ask") as pool:
            # One batch more than the limit, so that a request is ready as soon as a permit is free.
            results = map_in_threads(pool, run, batches, lambda: int(limit.value) + 1, ordered)
            try:
                yield from results
            finally:
                scope.cancel()
                results.close()

    def _perform(self, step: Step, scope: CancellationScope | None = None) -> Any:
        match step:
            case Call():
                return self._call(step, scope)
            case Pause(seconds):
                return scope.sleep(seconds) if scope else time.sleep(seconds)
            case _:
                return step.function()

    def _call(self, step: Call, scope: CancellationScope | None) -> Any:
        method = self._channel.unary_unary(
            step.method,
            request_serializer=type(step.request).SerializeToString,
            response_deserializer=step.response_type.FromString,
        )
        options: dict[str, Any] = {"timeout": step.timeout, "wait_for_ready": step.wait_for_ready}
        if self._closed:
            raise Cancelled(f"The client of {self.target} is closed.", remedy="Open a new client.")
        headers = encode_headers(self._config.headers)
        if scope is None:  # a single request: neither limited nor cancellable
            with self._telemetry.observe_call(step) as trace_headers:
                return method(step.request, metadata=headers + trace_headers, **options)
        with self._limiter(step.rows) as permit, self._telemetry.observe_call(step) as trace_headers:
            metadata = headers + trace_headers
            try:
                return scope.run_call(lambda: method.future(step.request, metadata=metadata, **options))
            except BaseException as error:
                permit.record_failure(error)
                raise
