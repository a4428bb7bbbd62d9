"""The asyncio client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable, Mapping
from contextlib import aclosing, nullcontext
from itertools import chain, islice
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

import grpc
from numpy.typing import NDArray

from serving import protos
from serving.client.channel import ClientConfig, encode_headers, make_config, open_async_channel
from serving.client.concurrency import (
    AdaptiveLimit,
    AsyncConcurrencyLimiter,
    map_in_tasks,
)
from serving.client.operations import Core, Rows, with_top_k
from serving.client.photos import Item, Photo, batch_items
from serving.client.responses import Embedding, Metadata, VersionStatus, truncate_top_k
from serving.client.sans_io import Call, Operation, Pause, Step
from serving.client.telemetry import Metrics, Telemetry
from serving.contract import Prediction
from serving.errors import Cancelled

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

T = TypeVar("T")
A = TypeVar("A")

_READ_AHEAD = 8
"""Photos that are read and converted ahead of the request they go into."""


class AsyncClient:
    """`Client` for asyncio, with the same arguments; its methods are awaited.

    Photos are read and converted in threads, so that the event loop is never blocked. A client belongs to
    the event loop that first uses it. Cancelling a task cancels its calls.
    """

    def __init__(
        self,
        target: str | ClientConfig,
        *,
        channel: grpc.aio.Channel | None = None,
        metrics: Metrics | None = None,
        tracer: Tracer | None = None,
        **settings: Any,
    ) -> None:
        self._config = config = make_config(target, settings)
        self._telemetry = Telemetry(config.target, config.model, metrics, tracer)
        self._core = Core(config, self._telemetry.count_photos)
        self._limiter = AsyncConcurrencyLimiter(AdaptiveLimit(config.max_concurrency))
        self._closed = False
        self._owns_channel = channel is None
        self._channel = channel

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def target(self) -> str:
        """gRPC target of the server."""
        return self._core.target

    @property
    def model(self) -> str:
        """Name of the model."""
        return self._core.model

    async def close(self) -> None:
        """Close the channel, unless it was given, and stop the processes that convert photos."""
        self._closed = True
        self._core.close()
        if self._owns_channel and self._channel is not None:
            await self._channel.close(None)

    async def classify(
        self,
        photos: Iterable[Photo] | AsyncIterable[Photo],
        top_k: int | None = None,
        *,
        user: str | None = None,
    ) -> list[Prediction]:
        """Return one prediction per photo, in order; see `Client.classify`."""
        predictions = await self._collect(photos, lambda items: self._core.classify(items, user))
        return truncate_top_k(predictions, top_k)

    async def embed(self, photos: Iterable[Photo] | AsyncIterable[Photo]) -> list[Embedding]:
        """Return one embedding per photo, in order; see `Client.embed`."""
        return await self._collect(photos, self._core.embed)

    def iclassify(
        self,
        photos: Iterable[Photo] | AsyncIterable[Photo],
        top_k: int | None = None,
        *,
        ordered: bool = True,
    ) -> AsyncGenerator[tuple[Photo, Prediction]]:
        """Yield (photo, prediction) for any number of photos; see `Client.iclassify`."""
        return self._stream(photos, lambda items: with_top_k(self._core.classify(items), top_k), ordered)

    def iembed(
        self, photos: Iterable[Photo] | AsyncIterable[Photo], *, ordered: bool = True
    ) -> AsyncGenerator[tuple[Photo, Embedding]]:
        """Yield (photo, embedding) for any number of photos; see `Client.iembed`."""
        return self._stream(photos, self._core.embed, ordered)

    async def run(self, signature: str, inputs: Mapping[str, Rows]) -> dict[str, NDArray[Any]]:
        """Run any signature and return its outputs by name; see `Client.run`."""
        return await self._run(self._core.run(signature, inputs))

    def imap(
        self,
        signature: str,
        batches: Iterable[Mapping[str, Rows]] | AsyncIterable[Mapping[str, Rows]],
        *,
        ordered: bool = True,
    ) -> AsyncGenerator[dict[str, NDArray[Any]]]:
        """Yield the result of `run` for any number of batches; see `Client.imap`."""
        return self._run_concurrently(batches, lambda batch: self._core.run(signature, batch), ordered)

    async def metadata(self) -> Metadata:
        """Return the signatures of the model; see `Client.metadata`."""
        return await self._run(self._core.metadata())

    async def status(self) -> list[VersionStatus]:
        """Return the versions that the server has of the model; see `Client.status`."""
        return await self._run(self._core.status())

    async def reload(self, config: protos.Message) -> None:
        """Replace the server's model configuration; see `Client.reload`."""
        await self._run(self._core.reload(config))

    async def wait_until_ready(self, timeout: float) -> None:
        """Wait until the model is AVAILABLE; see `Client.wait_until_ready`."""
        await self._run(self._core.wait_until_ready(timeout))

    # --- Photos to requests ------------------------------------------------------------------------------

    async def _collect(
        self,
        photos: Iterable[Photo] | AsyncIterable[Photo],
        request: Callable[[list[Item]], Operation[list[T]]],
    ) -> list[T]:
        """Return one result per photo: by a single request in this task if it suffices, else a stream."""
        await self._run(self._core.prepare())
        if not isinstance(photos, AsyncIterable):
            iterator = iter(photos)
            first = list(islice(iterator, self._core.max_photos + 1))
            if len(first) <= self._core.max_photos:
                items = await asyncio.gather(*map(self._load, first))
                batches = list(batch_items(items, max_bytes=self._core.max_bytes))
                results = [await self._run(request(batch), limited=len(batches) > 1) for batch in batches]
                return list(chain.from_iterable(results))
            photos = _chain(first, iterator)
        return [result async for _, result in self._stream(photos, request, ordered=True)]

    async def _load(self, photo: Photo) -> Item:
        """Return a photo ready to be sent; files are read, and photos converted, in a thread."""
        loader = self._core.loader
        return loader(photo) if loader.is_ready(photo) else await asyncio.to_thread(loader, photo)

    async def _stream(
        self,
        photos: Iterable[Photo] | AsyncIterable[Photo],
        request: Callable[[list[Item]], Operation[list[T]]],
        ordered: bool,
    ) -> AsyncGenerator[tuple[Photo, T]]:
        core = self._core
        await self._run(core.prepare())

        async def load(photo: Photo) -> tuple[Photo, Item]:
            return photo, await self._load(photo)

        async def batch() -> AsyncGenerator[tuple[list[Photo], list[Item]]]:
            unbatched: list[Photo] = []
            items: list[Item] = []
            async with aclosing(map_in_tasks(load, photos, lambda: _READ_AHEAD)) as pairs:
                async for photo, item in pairs:
                    unbatched.append(photo)
                    items.append(item)
                    # batch_items starts a second batch once the first is full: the first can be sent.
                    batched = list(batch_items(items, max_photos=core.max_photos, max_bytes=core.max_bytes))
                    if len(batched) > 1:
                        size = len(batched[0])
                        yield unbatched[:size], batched[0]
                        del unbatched[:size], items[:size]
            if items:
                yield unbatched, items

        def request_pairs(batch: tuple[list[Photo], list[Item]]) -> Operation[list[tuple[Photo, T]]]:
            results = yield from request(batch[1])
            return list(zip(batch[0], results, strict=True))

        async with (
            aclosing(batch()) as batches,
            aclosing(self._run_concurrently(batches, request_pairs, ordered)) as responses,
        ):
            async for pairs in responses:
                for pair in pairs:
                    yield pair

    async def _run_concurrently(
        self, batches: Iterable[A] | AsyncIterable[A], operation: Callable[[A], Operation[T]], ordered: bool
    ) -> AsyncGenerator[T]:
        """Run an operation per batch, in as many tasks as the adaptive limit allows."""
        limit = self._limiter.limit

        async def run(batch: A) -> T:
            return await self._run(operation(batch), limited=True)

        # One batch more than the limit, so that a request is ready as soon as a permit is free.
        async with aclosing(map_in_tasks(run, batches, lambda: int(limit.value) + 1, ordered)) as results:
            async for result in results:
                yield result

    async def _run(self, operation: Operation[T], *, limited: bool = False) -> T:
        """Run an operation to its end, like `sans_io.run_operation`.

        Args:
            operation: operation to run.
            limited: True if its calls need a permit of the concurrency limiter.
        """
        try:
            step = next(operation)
            while True:
                try:
                    result = await self._perform(step, limited)
                except grpc.RpcError as error:
                    step = operation.throw(error)
                else:
                    step = operation.send(result)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]

    async def _perform(self, step: Step, limited: bool) -> Any:
        match step:
            case Call():
                return await self._call(step, limited)
            case Pause(seconds):
                return await asyncio.sleep(seconds)
            case _:
                return await asyncio.to_thread(step.function)

    async def _call(self, step: Call, limited: bool) -> Any:
        if self._closed:
            raise Cancelled(f"The client of {self.target} is closed.", remedy="Open a new client.")
        if self._channel is None:  # opened here, in the event loop that uses it
            self._channel = open_async_channel(self._config)
        method = self._channel.unary_unary(
            step.method,
            request_serializer=type(step.request).SerializeToString,
            response_deserializer=step.response_type.FromString,
        )
        headers = encode_headers(self._config.headers)
        async with self._limiter(step.rows) if limited else nullcontext() as permit:
            with self._telemetry.observe_call(step) as trace_headers:
                try:
                    return await method(
                        step.request,
                        timeout=step.timeout,
                        wait_for_ready=step.wait_for_ready,
                        metadata=headers + trace_headers,
                    )
                except BaseException as error:
                    if permit:
                        permit.record_failure(error)
                    raise


async def _chain(first: Iterable[A], rest: Iterable[A]) -> AsyncGenerator[A]:
    for items in (first, rest):
        for item in items:
            yield item
