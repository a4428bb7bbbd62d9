"""The blocking client."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from functools import partial
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Generic, NoReturn, Self, TypeVar

import grpc
from numpy.typing import NDArray

from serving import protos
from serving.client.channel import ClientConfig, check_target, encode_headers, make_config, open_channel
from serving.client.concurrency import (
    AdaptiveLimit,
    CancellationScope,
    ConcurrencyLimiter,
    map_in_threads,
)
from serving.client.operations import READ_AHEAD, Core, answer_photos
from serving.client.photos import Item, LoadedPhoto, Photo, Rows, check_choice, check_several
from serving.client.responses import Embedding, Metadata, VersionStatus
from serving.client.sans_io import Call, Operation, Pause, Step, run_operation
from serving.client.telemetry import Metrics, Telemetry
from serving.contract import Prediction
from serving.errors import Cancelled, InputError

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

T = TypeVar("T")
C = TypeVar("C", grpc.Channel, grpc.aio.Channel)
A = TypeVar("A")

_READERS = READ_AHEAD // 2  # each reads one photo and has one ready


class ClientBase(Generic[C]):
    """State and calls that both clients have in common; `Client` describes the arguments."""

    def __init__(
        self,
        target: str | ClientConfig,
        *,
        channel: C | None = None,
        metrics: Metrics | None = None,
        tracer: Tracer | None = None,
        **settings: Any,
    ) -> None:
        self._config = make_config(target, settings)
        self._telemetry = Telemetry(self._config.target, self._config.model, metrics, tracer)
        self._core = Core(self._config, self._telemetry.count_photos)
        self._closed = False
        self._pid = os.getpid()
        self._owns_channel = channel is None
        if channel is None:
            check_target(self._config)
        self._open(channel, AdaptiveLimit(self._config.max_concurrency))

    def _open(self, channel: C | None, limit: AdaptiveLimit) -> None:
        """Keep or open the channel, and make the limiter; called by the constructor."""
        raise NotImplementedError

    @property
    def target(self) -> str:
        """gRPC target of the server."""
        return self._config.target

    @property
    def model(self) -> str:
        """Name of the model."""
        return self._config.model

    @property
    def max_photos(self) -> int:
        """Photos per request: as given, or the maximum batch size that the server has stated since."""
        return self._core.max_photos

    def __reduce__(self) -> NoReturn:
        raise InputError(
            f"The client of {self.target} holds a connection, which cannot be copied or pickled.",
            remedy="Pass its ClientConfig on, and open a client where it is used: Client(config).",
        )

    def _check_open(self) -> None:
        """Check that the client can be used here.

        Raises:
            Cancelled: it is closed.
            InputError: it was opened before the fork of this process; gRPC's threads are not in it.
        """
        if self._closed:
            raise Cancelled(f"The client of {self.target} is closed.", remedy="Open a new client.")
        if self._pid != os.getpid():
            raise InputError(
                f"The client of {self.target} was opened by process {self._pid}, before this one was forked.",
                remedy="Open a client in each process, after the fork.",
            )

    def _classifier(
        self, top_k: int | None, user: str | None = None
    ) -> Callable[[list[Item]], Operation[list[Prediction]]]:
        """Return the function that classifies photos; its arguments are checked here."""
        check_choice(top_k, user)
        return lambda items: self._core.classify(items, top_k, user)

    @contextmanager
    def _observe(self, step: Call) -> Iterator[dict[str, Any]]:
        """Measure the call made in the block; yield its options."""
        headers = encode_headers(self._config.headers)
        with self._telemetry.observe_call(step) as trace_headers:
            yield {
                "timeout": step.timeout,
                "wait_for_ready": step.wait_for_ready,
                "metadata": headers + trace_headers,
            }


class Client(ClientBase[grpc.Channel]):
    """A blocking client of one model; safe to share between threads.

    Args:
        target: settings of the client, or the server's gRPC target alone.
        channel: open channel to use in place of one to the target; the client does not close it.
        metrics: Prometheus metrics to update (serving/client/telemetry.py).
        tracer: OpenTelemetry tracer that makes a span per call and propagates it to the server.
        settings: beside a bare target the other attributes of `ClientConfig`; `model` is required.
    """

    def _open(self, channel: grpc.Channel | None, limit: AdaptiveLimit) -> None:
        if isinstance(channel, grpc.aio.Channel):
            raise InputError(
                "The channel given to a Client is one of grpc.aio.",
                remedy="Open it with grpc, or use it with an AsyncClient.",
            )
        self._limiter = ConcurrencyLimiter(limit)
        self._channel = channel or open_channel(grpc, self._config)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the channel, unless it was given, and stop the processes that convert photos."""
        self._closed = True
        if self._pid != os.getpid():  # after a fork the connection and the processes are the parent's
            return
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
        return self._collect(photos, self._classifier(top_k, user))

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
        return self._stream(check_several(photos), self._classifier(top_k), ordered)

    def iembed(self, photos: Iterable[Photo], *, ordered: bool = True) -> Generator[tuple[Photo, Embedding]]:
        """Yield (photo, embedding) for any number of photos; otherwise like `iclassify`."""
        return self._stream(check_several(photos), self._core.embed, ordered)

    def run(self, signature: str, inputs: Mapping[str, Rows]) -> dict[str, NDArray[Any]]:
        """Run any signature of any model and return its outputs by name.

        Args:
            signature: name of the signature.
            inputs: input tensors by name, batch first: arrays, or lists of bytes for strings; an array
                without dimensions is a scalar. More than `max_photos` rows are sent in several requests only
                if no output can depend on that: for a bundle's own signatures, and if the server merges and
                splits rows itself. All others are sent in one request.

        Raises:
            InputError: the inputs have no rows, differ in their number of rows, or state no dtype.
            ServerError: or one of its subclasses.
        """
        return self._run(self._core.run(signature, inputs))

    def imap(
        self, signature: str, batches: Iterable[Mapping[str, Rows]], *, ordered: bool = True
    ) -> Generator[dict[str, NDArray[Any]]]:
        """Yield the result of `run` for any number of batches, concurrently, in bounded memory."""
        batches = check_several(batches, what="batches")
        return self._run_concurrently(batches, lambda batch: self._core.run(signature, batch), ordered)

    def metadata(self) -> Metadata:
        """Return the signatures of the model, as its saved_model.pb declares them.

        Raises:
            ServerError: or one of its subclasses.
        """
        return self._run(self._core.metadata())

    def status(self) -> list[VersionStatus]:
        """Return all versions that the server has of the model, or the one asked for; newest first.

        Raises:
            ServerError: or one of its subclasses.
        """
        return self._run(self._core.status())

    def reload(self, config: protos.Message) -> None:
        """Replace the server's model configuration (HandleReloadConfigRequest).

        TensorFlow Serving waits until new models are loaded, but not until new versions of a model that it
        has are: move a label only after `status` reports its version as AVAILABLE.

        Args:
            config: protos.ModelServerConfig with all models to serve; others are unloaded.

        Raises:
            ServerError: or one of its subclasses.
        """
        self._run(self._core.reload(config))

    def wait_until_ready(self, timeout: float) -> None:
        """Block until the server responds and the model is AVAILABLE.

        Args:
            timeout: maximum wait in seconds.

        Raises:
            DeadlineExceeded: the model was not ready in time; the message has the state seen last.
        """
        self._run(self._core.wait_until_ready(timeout))

    # --- Photos to requests ------------------------------------------------------------------------------

    def _collect(
        self, photos: Iterable[Photo], request: Callable[[list[Item]], Operation[list[T]]]
    ) -> list[T]:
        """Return one result per photo: by a single request in this thread if it suffices, else a stream."""
        core = self._core
        self._run(core.prepare())
        iterator = iter(check_several(photos))
        first = list(islice(iterator, core.max_photos + 1))
        if len(first) > core.max_photos:
            return [result for _, result in self._stream(chain(first, iterator), request, ordered=True)]
        batches = list(core.batcher().split((photo, core.loader(photo)) for photo in first))
        answer = partial(answer_photos, request)
        if len(batches) > 1:
            answers: Iterable[list[tuple[Photo, T]]] = self._run_concurrently(batches, answer, ordered=True)
        else:
            answers = (self._run(answer(batch)) for batch in batches)
        return [result for pairs in answers for _, result in pairs]

    def _stream(
        self, photos: Iterable[Photo], request: Callable[[list[Item]], Operation[list[T]]], ordered: bool
    ) -> Generator[tuple[Photo, T]]:
        core = self._core
        self._run(core.prepare())

        def load(photo: Photo) -> LoadedPhoto:
            return photo, core.loader(photo)

        with (
            closing(map_in_threads(_READERS, load, photos, lambda: READ_AHEAD)) as loaded,
            closing(core.batcher().split(loaded)) as batches,
            closing(self._run_concurrently(batches, partial(answer_photos, request), ordered)) as answers,
        ):
            for pairs in answers:
                yield from pairs

    def _run_concurrently(
        self, batches: Iterable[A], operation: Callable[[A], Operation[T]], ordered: bool
    ) -> Generator[T]:
        """Run an operation per batch, in as many threads as the adaptive limit allows."""
        limit = self._limiter.limit

        def run(batch: A) -> T:
            return self._run(operation(batch), scope)

        def window() -> int:  # one batch more than the limit: it is ready as soon as a permit is free
            return int(limit.value) + 1

        with (
            closing(map_in_threads(limit.maximum, run, batches, window, ordered)) as results,
            CancellationScope() as scope,
        ):
            # Not `yield from`, which would wait for the calls in flight before the scope cancels them.
            for result in results:  # noqa: UP028
                yield result

    def _run(self, operation: Operation[T], scope: CancellationScope | None = None) -> T:
        """Run an operation to its end; without a scope its calls are neither limited nor cancellable."""
        self._check_open()
        return run_operation(operation, lambda step: self._perform(step, scope))

    def _perform(self, step: Step, scope: CancellationScope | None) -> Any:
        match step:
            case Call():
                return self._call(step, scope)
            case Pause(seconds):
                return scope.sleep(seconds) if scope else time.sleep(seconds)
            case _:
                return step.function()

    def _call(self, step: Call, scope: CancellationScope | None) -> Any:
        self._check_open()
        method = step.bind(self._channel)
        with self._limiter(step.rows) if scope else nullcontext(), self._observe(step) as options:
            if scope is None:
                return method(step.request, **options)
            return scope.run_call(lambda: method.future(step.request, **options))
