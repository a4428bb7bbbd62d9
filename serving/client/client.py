"""The blocking client."""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing
from itertools import chain, islice
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

import grpc
from numpy.typing import NDArray

from serving import protos
from serving.client.channel import Headers, Tls, metadata, open_channel
from serving.client.concurrency import MAX_CONCURRENCY, AdaptiveLimit, ConcurrencyLimiter
from serving.client.operations import Core, Rows, truncate_top_k, with_top_k
from serving.client.photos import MAX_BYTES, MAX_PHOTOS, Item, Photo, batch_items
from serving.client.responses import Embedding, Metadata, VersionStatus
from serving.client.retry import Retry
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
"""Photos that are read and converted before their turn."""


class Client:
    """A blocking client of one model; safe to share between threads.

    Args:
        target: host:port of the server's gRPC port, or any gRPC target; `dns:///name:port` of a
            headless service sends to all of its pods in turn.
        model: the name that the server knows the model by.
        version: ask for this version; default: the one the server chooses (its newest).
        label: ask for the version that carries this label, such as "canary".
        canary: the share of requests, 0 to 1, for the version with the label "canary"; the others go to
            `label`, "stable" where none is given. Where there is no such label, all do.
        timeout: seconds each request may take, its retries included; None waits for ever.
        retry: how often and after how long a request is sent again where nothing answers or the server
            is overloaded; Retry(attempts=1) never does.
        tls: an encrypted connection, with a client certificate or without.
        headers: metadata of every call, or a function asked for it before each.
        max_photos: photos a request; a server that takes fewer says so and is heeded.
        max_bytes: bytes of photos a request; a larger photo goes alone.
        max_concurrency: requests of many photos under way at once at most; how many there are, up to
            that, follows the server's answers (serving/client/concurrency_limit.py).
        channel: an open channel to use in place of one to `target`; it stays open at the end.
        convert: whether photos that the graph does not decode (HEIC, AVIF, TIFF, ...) are converted here,
            before the call (serving/photos/converter.py).
        downscale: whether photos much larger than the model's input are reduced to twice that before they
            are sent, as JPEGs, by the same converter; what that changes is measured by
            `python -m tests.bench.client`.
        metrics: Prometheus metrics that this client adds to (serving/client/telemetry.py).
        tracer: an OpenTelemetry tracer for a span a call, carried on to the server.
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
        tls: Tls | None = None,
        headers: Headers | None = None,
        max_photos: int = MAX_PHOTOS,
        max_bytes: int = MAX_BYTES,
        max_concurrency: int = MAX_CONCURRENCY,
        channel: grpc.Channel | None = None,
        convert: bool = True,
        downscale: bool = False,
        metrics: Metrics | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        self._telemetry = Telemetry(target, model, metrics, tracer)
        self._core = Core(
            target,
            model=model,
            version=version,
            label=label,
            canary=canary,
            timeout=timeout,
            retry=retry,
            convert=convert,
            downscale=downscale,
            max_photos=max_photos,
            max_bytes=max_bytes,
            answered=self._telemetry.answered,
        )
        self._headers = headers or {}
        metadata({} if callable(self._headers) else self._headers)  # an error here, not at the first call
        self._limiter = ConcurrencyLimiter(AdaptiveLimit(max_concurrency))
        self._closed = False
        self._owns_channel = channel is None
        self._channel = channel or open_channel(target, tls)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def target(self) -> str:
        """Where the server is."""
        return self._core.target

    @property
    def model(self) -> str:
        """The model's name."""
        return self._core.model

    @property
    def max_photos(self) -> int:
        """Photos a request, as given or as the server stated since."""
        return self._core.max_photos

    def close(self) -> None:
        """Close the channel, unless it was given, and end the processes that convert photos."""
        self._closed = True
        self._core.close()
        if self._owns_channel:
            self._channel.close()

    def classify(
        self, photos: Iterable[Photo], top_k: int | None = None, *, user: str | None = None
    ) -> list[Prediction]:
        """One prediction a photo, in order.

        Args:
            photos: encoded bytes, paths, files open for reading, or decoded pixels: uint8 [H,W,3], RGB,
                upright. Pixels of the model's own size go to `classify_pixels` as they are; those of
                another size are sent as PNGs, without loss, and resized by the model like every photo.
            top_k: how many labels to keep; None keeps all that the model gives.
            user: whoever asks, by any id: whether the canary answers is then settled by a hash of it, and
                the same at every request; None: at random, by request.

        Returns:
            A file that cannot be read is Status.UNREADABLE, a photo that the server fails on, alone too,
            Status.FAILED; `detail` says why.

        Raises:
            InputError: something that is no photo at all, such as an array of another dtype.
            ServerError: or one of its classes, see serving/errors.py.
        """
        return truncate_top_k(self._collect(photos, lambda items: self._core.classify(items, user)), top_k)

    def embed(self, photos: Iterable[Photo]) -> list[Embedding]:
        """One embedding a photo, in order; otherwise as `classify`."""
        return self._collect(photos, self._core.embed)

    def iclassify(
        self, photos: Iterable[Photo], top_k: int | None = None, *, ordered: bool = True
    ) -> Generator[tuple[Photo, Prediction]]:
        """Any number of photos, as (photo, prediction), in bounded memory.

        Photos are read ahead and asked for in several requests at once, as many as the server takes
        without a queue. Closing the iterator gives up the requests under way.

        Args:
            photos: as for `classify`, from any iterable, an endless one too.
            top_k: as for `classify`.
            ordered: in the order of the photos; else as they are answered, a request at a time.

        Raises:
            ServerError: as `classify`, at the photo that it concerns.
        """
        return self._stream(photos, lambda items: with_top_k(self._core.classify(items), top_k), ordered)

    def iembed(self, photos: Iterable[Photo], *, ordered: bool = True) -> Generator[tuple[Photo, Embedding]]:
        """Any number of photos, as (photo, embedding); otherwise as `iclassify`."""
        return self._stream(photos, self._core.embed, ordered)

    def run(self, signature: str, inputs: Mapping[str, Rows]) -> dict[str, NDArray[Any]]:
        """The outputs of any signature of any model.

        Args:
            signature: its name.
            inputs: by name, the batch as first dimension: arrays, or bytes for strings. More than
                `max_photos` rows go in several requests.

        Raises:
            InputError: the inputs have no rows, or not equally many.
            ServerError: or one of its classes.
        """
        return run_operation(self._core.run(signature, inputs), self._perform)

    def imap(
        self, signature: str, batches: Iterable[Mapping[str, Rows]], *, ordered: bool = True
    ) -> Generator[dict[str, NDArray[Any]]]:
        """`run` over any number of batches, several at once as in `iclassify`, in bounded memory."""
        return self._run_concurrently(batches, lambda batch: self._core.run(signature, batch), ordered)

    def metadata(self) -> Metadata:
        """The signatures of the model, as `saved_model.pb` declares them.

        Raises:
            ServerError: or one of its classes.
        """
        return run_operation(self._core.metadata(), self._perform)

    def status(self) -> list[VersionStatus]:
        """All versions of the model that the server knows, or the one asked for; newest first.

        Raises:
            ServerError: or one of its classes.
        """
        return run_operation(self._core.status(), self._perform)

    def reload(self, config: protos.Message) -> None:
        """Have the server serve what a configuration says, and no other model (HandleReloadConfigRequest).

        TensorFlow Serving waits for new models, not for new versions of a model that it has: a label may
        be moved only once `status` says that its version is AVAILABLE.

        Args:
            config: a protos.ModelServerConfig with all models that are to be served.

        Raises:
            ServerError: or one of its classes.
        """
        run_operation(self._core.reload(config), self._perform)

    def wait_until_ready(self, timeout: float) -> None:
        """Return as soon as the server answers and the model is AVAILABLE.

        Args:
            timeout: seconds to wait at most.

        Raises:
            DeadlineExceeded: it was not in time; the message says what was seen last.
        """
        run_operation(self._core.wait_until_ready(timeout), self._perform)

    # --- Photos to requests ------------------------------------------------------------------------------

    def _collect(self, photos: Iterable[Photo], ask: Callable[[list[Item]], Operation[list[T]]]) -> list[T]:
        """One request in this thread where one is enough; else a stream."""
        run_operation(self._core.prepare(), self._perform)
        iterator = iter(photos)
        first = list(islice(iterator, self._core.max_photos))
        rest = list(islice(iterator, 1))
        if not rest:
            items = [self._core.loader(photo) for photo in first]
            groups = list(batch_items(items, max_bytes=self._core.max_bytes))
            if len(groups) <= 1:
                return [result for group in groups for result in run_operation(ask(group), self._perform)]
            return [result for results in self._run_concurrently(groups, ask, True) for result in results]
        return [result for _, result in self._stream(chain(first, rest, iterator), ask, ordered=True)]

    def _stream(
        self, photos: Iterable[Photo], ask: Callable[[list[Item]], Operation[list[T]]], ordered: bool
    ) -> Generator[tuple[Photo, T]]:
        core = self._core
        run_operation(core.prepare(), self._perform)
        given: list[Photo] = []  # photos read and not yet in a group

        def read() -> Generator[Item]:
            with ThreadPoolExecutor(_READERS, thread_name_prefix="hubhead-read") as pool:
                pairs = _map_concurrently(
                    pool, lambda photo: (photo, core.loader(photo)), photos, lambda: _READ_AHEAD
                )
                with closing(pairs):
                    for photo, item in pairs:
                        given.append(photo)
                        yield item

        def groups() -> Generator[tuple[list[Photo], list[Item]]]:
            with closing(read()) as items:
                for group in batch_items(items, max_photos=core.max_photos, max_bytes=core.max_bytes):
                    mine, given[: len(group)] = given[: len(group)], []
                    yield mine, group

        def script(group: tuple[list[Photo], list[Item]]) -> Operation[list[tuple[Photo, T]]]:
            results = yield from ask(group[1])
            return list(zip(group[0], results, strict=True))

        with closing(groups()) as made, closing(self._run_concurrently(made, script, ordered)) as answered:
            for pairs in answered:
                yield from pairs

    def _run_concurrently(
        self, batches: Iterable[A], script: Callable[[A], Operation[T]], ordered: bool
    ) -> Generator[T]:
        """Run a script a batch, in as many threads as the flow control lets through."""
        stop = _Cancellation()
        limit = self._limiter.limit

        def run(batch: A) -> T:
            return run_operation(script(batch), lambda step: self._perform(step, stop))

        with ThreadPoolExecutor(limit.most, thread_name_prefix="hubhead-ask") as pool:
            results = _map_concurrently(pool, run, batches, lambda: int(limit.value) + 1, ordered)
            try:
                yield from results
            finally:
                stop.set()
                results.close()

    def _perform(self, step: Step, stop: _Cancellation | None = None) -> Any:
        match step:
            case Call():
                return self._call(step, stop)
            case Pause(seconds):
                return stop.wait(seconds) if stop else time.sleep(seconds)
            case _:
                return step.function()

    def _call(self, step: Call, stop: _Cancellation | None) -> Any:
        method = self._channel.unary_unary(
            step.method,
            request_serializer=type(step.request).SerializeToString,
            response_deserializer=step.answer.FromString,
        )
        options: dict[str, Any] = {"timeout": step.timeout, "wait_for_ready": step.wait_for_ready}
        if self._closed:
            raise Cancelled(f"The client of {self.target} is closed.", remedy="Make a new one.")
        sent = metadata(self._headers)
        if stop is None:
            with self._telemetry.call(step) as traced:
                return method(step.request, metadata=sent + traced, **options)
        with self._limiter(step.rows) as permit, self._telemetry.call(step) as traced:
            try:
                return stop.result(lambda: method.future(step.request, metadata=sent + traced, **options))
            except BaseException as error:
                permit.record_failure(error)
                raise


class _Cancellation:
    """Gives up the calls and pauses of one stream."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._lock = threading.Lock()
        self._calls: set[Any] = set()

    def set(self) -> None:
        with self._lock:
            self._event.set()
            for call in self._calls:
                call.cancel()

    def wait(self, seconds: float) -> None:
        self._event.wait(seconds)

    def result(self, start: Callable[[], Any]) -> Any:
        with self._lock:
            call = start()
            self._calls.add(call)
            if self._event.is_set():
                call.cancel()
        try:
            return call.result()
        finally:
            with self._lock:
                self._calls.discard(call)


def _map_concurrently(
    pool: ThreadPoolExecutor,
    function: Callable[[A], T],
    items: Iterable[A],
    window: Callable[[], int],
    ordered: bool = True,
) -> Generator[T]:
    """`map` over a pool, of which at most `window()` results are awaited or ready at a time."""
    waiting: list[Future[T]] = []

    def done(least: int) -> Generator[T]:
        """Those that are ready, in order if so wanted, until fewer than `least` are left."""
        while waiting:
            if ordered:
                if len(waiting) < least and not waiting[0].done():
                    return
                yield waiting.pop(0).result()
                continue
            ready = [future for future in waiting if future.done()]
            if not ready:
                if len(waiting) < least:
                    return
                ready = list(wait(waiting, return_when=FIRST_COMPLETED).done)
            for future in ready:
                waiting.remove(future)
                yield future.result()

    try:
        for item in items:
            context = contextvars.copy_context()  # spans of the caller are parents of those in the pool
            waiting.append(pool.submit(context.run, function, item))
            yield from done(max(1, window()))
        yield from done(0)
    finally:
        for future in waiting:
            future.cancel()
