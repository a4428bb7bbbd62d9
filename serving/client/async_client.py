"""The client for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable, Mapping
from contextlib import aclosing, nullcontext
from itertools import islice
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

import grpc
from numpy.typing import NDArray

from serving import protos
from serving.client.channel import Headers, Tls, metadata, open_async_channel
from serving.client.concurrency import MAX_CONCURRENCY, AdaptiveLimit, AsyncConcurrencyLimiter
from serving.client.operations import Core, Rows, truncate_top_k, with_top_k
from serving.client.photos import MAX_BYTES, MAX_PHOTOS, Item, Photo, batch_items
from serving.client.responses import Embedding, Metadata, VersionStatus
from serving.client.retry import Retry
from serving.client.sans_io import Call, Operation, Pause, Step
from serving.client.telemetry import Metrics, Telemetry
from serving.contract import Prediction
from serving.errors import Cancelled

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

T = TypeVar("T")
A = TypeVar("A")

_READ_AHEAD = 8
"""Photos that are read and converted before their turn."""


class AsyncClient:
    """`Client` for asyncio: the same arguments and methods, awaited.

    Photos are read and converted in threads, so the event loop is never held up. It belongs to the
    loop in which it is first used; cancelling a task gives up its calls.
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
        channel: grpc.aio.Channel | None = None,
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
        self._limiter = AsyncConcurrencyLimiter(AdaptiveLimit(max_concurrency))
        self._tls = tls
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
        """Where the server is."""
        return self._core.target

    @property
    def model(self) -> str:
        """The model's name."""
        return self._core.model

    async def close(self) -> None:
        """Close the channel, unless it was given, and end the processes that convert photos."""
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
        """One prediction a photo, in order; see `Client.classify`."""
        return truncate_top_k(
            await self._collect(photos, lambda items: self._core.classify(items, user)), top_k
        )

    async def embed(self, photos: Iterable[Photo] | AsyncIterable[Photo]) -> list[Embedding]:
        """One embedding a photo, in order; see `Client.embed`."""
        return await self._collect(photos, self._core.embed)

    def iclassify(
        self,
        photos: Iterable[Photo] | AsyncIterable[Photo],
        top_k: int | None = None,
        *,
        ordered: bool = True,
    ) -> AsyncGenerator[tuple[Photo, Prediction]]:
        """Any number of photos, as (photo, prediction), in bounded memory; see `Client.iclassify`."""
        return self._stream(photos, lambda items: with_top_k(self._core.classify(items), top_k), ordered)

    def iembed(
        self, photos: Iterable[Photo] | AsyncIterable[Photo], *, ordered: bool = True
    ) -> AsyncGenerator[tuple[Photo, Embedding]]:
        """Any number of photos, as (photo, embedding); see `Client.iembed`."""
        return self._stream(photos, self._core.embed, ordered)

    async def run(self, signature: str, inputs: Mapping[str, Rows]) -> dict[str, NDArray[Any]]:
        """The outputs of any signature; see `Client.run`."""
        return await self._run(self._core.run(signature, inputs))

    def imap(
        self,
        signature: str,
        batches: Iterable[Mapping[str, Rows]] | AsyncIterable[Mapping[str, Rows]],
        *,
        ordered: bool = True,
    ) -> AsyncGenerator[dict[str, NDArray[Any]]]:
        """`run` over any number of batches; see `Client.imap`."""
        return self._run_concurrently(batches, lambda batch: self._core.run(signature, batch), ordered)

    async def metadata(self) -> Metadata:
        """The signatures of the model; see `Client.metadata`."""
        return await self._run(self._core.metadata())

    async def status(self) -> list[VersionStatus]:
        """The versions that the server knows; see `Client.status`."""
        return await self._run(self._core.status())

    async def reload(self, config: protos.Message) -> None:
        """Have the server serve what a configuration says; see `Client.reload`."""
        await self._run(self._core.reload(config))

    async def wait_until_ready(self, timeout: float) -> None:
        """Return as soon as the model is AVAILABLE; see `Client.wait_until_ready`."""
        await self._run(self._core.wait_until_ready(timeout))

    # --- Photos to requests ------------------------------------------------------------------------------

    async def _collect(
        self,
        photos: Iterable[Photo] | AsyncIterable[Photo],
        ask: Callable[[list[Item]], Operation[list[T]]],
    ) -> list[T]:
        """One request in this task where one is enough; else a stream."""
        await self._run(self._core.prepare())
        if not isinstance(photos, AsyncIterable):
            iterator = iter(photos)
            first = list(islice(iterator, self._core.max_photos + 1))
            if len(first) <= self._core.max_photos:
                items = await asyncio.gather(*map(self._read, first))
                groups = list(batch_items(items, max_bytes=self._core.max_bytes))
                answered = [await self._run(ask(group), many=len(groups) > 1) for group in groups]
                return [result for results in answered for result in results]
            photos = _chained(first, iterator)
        return [result async for _, result in self._stream(photos, ask, ordered=True)]

    async def _read(self, photo: Photo) -> Item:
        reader = self._core.loader
        return reader(photo) if reader.is_ready(photo) else await asyncio.to_thread(reader, photo)

    async def _stream(
        self,
        photos: Iterable[Photo] | AsyncIterable[Photo],
        ask: Callable[[list[Item]], Operation[list[T]]],
        ordered: bool,
    ) -> AsyncGenerator[tuple[Photo, T]]:
        core = self._core
        await self._run(core.prepare())

        async def read(photo: Photo) -> tuple[Photo, Item]:
            return photo, await self._read(photo)

        async def groups() -> AsyncGenerator[tuple[list[Photo], list[Item]]]:
            given: list[Photo] = []
            items: list[Item] = []
            async with aclosing(_map_concurrently(read, photos, lambda: _READ_AHEAD)) as pairs:
                async for photo, item in pairs:
                    given.append(photo)
                    items.append(item)
                    whole = list(batch_items(items, max_photos=core.max_photos, max_bytes=core.max_bytes))
                    if len(whole) > 1:
                        size = len(whole[0])
                        yield given[:size], whole[0]
                        del given[:size], items[:size]
            if items:
                yield given, items

        def script(group: tuple[list[Photo], list[Item]]) -> Operation[list[tuple[Photo, T]]]:
            results = yield from ask(group[1])
            return list(zip(group[0], results, strict=True))

        async with (
            aclosing(groups()) as made,
            aclosing(self._run_concurrently(made, script, ordered)) as answered,
        ):
            async for pairs in answered:
                for pair in pairs:
                    yield pair

    async def _run_concurrently(
        self, batches: Iterable[A] | AsyncIterable[A], script: Callable[[A], Operation[T]], ordered: bool
    ) -> AsyncGenerator[T]:
        """Run a script a batch, in as many tasks as the flow control lets through."""
        limit = self._limiter.limit

        async def run(batch: A) -> T:
            return await self._run(script(batch), many=True)

        async with aclosing(
            _map_concurrently(run, batches, lambda: int(limit.value) + 1, ordered)
        ) as results:
            async for result in results:
                yield result

    async def _run(self, script: Operation[T], *, many: bool = False) -> T:
        try:
            step = next(script)
            while True:
                try:
                    outcome = await self._perform(step, many)
                except grpc.RpcError as error:
                    step = script.throw(error)
                else:
                    step = script.send(outcome)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]

    async def _perform(self, step: Step, many: bool) -> Any:
        match step:
            case Call():
                return await self._call(step, many)
            case Pause(seconds):
                return await asyncio.sleep(seconds)
            case _:
                return await asyncio.to_thread(step.function)

    async def _call(self, step: Call, many: bool) -> Any:
        if self._closed:
            raise Cancelled(f"The client of {self.target} is closed.", remedy="Make a new one.")
        if self._channel is None:  # in the loop that uses it
            self._channel = open_async_channel(self.target, self._tls)
        method = self._channel.unary_unary(
            step.method,
            request_serializer=type(step.request).SerializeToString,
            response_deserializer=step.answer.FromString,
        )
        sent = metadata(self._headers)
        async with self._limiter(step.rows) if many else nullcontext() as permit:
            with self._telemetry.call(step) as traced:
                try:
                    return await method(
                        step.request,
                        timeout=step.timeout,
                        wait_for_ready=step.wait_for_ready,
                        metadata=sent + traced,
                    )
                except BaseException as error:
                    if permit:
                        permit.record_failure(error)
                    raise


async def _chained(first: Iterable[A], rest: Iterable[A]) -> AsyncGenerator[A]:
    for items in (first, rest):
        for item in items:
            yield item


async def _each(items: Iterable[A] | AsyncIterable[A]) -> AsyncGenerator[A]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item


async def _map_concurrently(
    function: Callable[[A], Awaitable[T]],
    items: Iterable[A] | AsyncIterable[A],
    window: Callable[[], int],
    ordered: bool = True,
) -> AsyncGenerator[T]:
    """`map` in tasks, of which at most `window()` are under way or done and not taken at a time."""
    waiting: list[asyncio.Future[T]] = []

    async def done(least: int) -> AsyncGenerator[T]:
        """Those that are ready, in order if so wanted, until fewer than `least` are left."""
        while waiting:
            ready = [task for task in waiting[: 1 if ordered else None] if task.done()]
            if not ready:
                if len(waiting) < least:
                    return
                await asyncio.wait(waiting[:1] if ordered else waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in ready:
                waiting.remove(task)
                yield task.result()

    try:
        async with aclosing(_each(items)) as source:
            async for item in source:
                waiting.append(asyncio.ensure_future(function(item)))
                async for result in done(max(1, window())):
                    yield result
        async for result in done(0):
            yield result
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
