"""The asyncio client."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable, Mapping
from contextlib import aclosing, nullcontext
from functools import partial
from itertools import chain, islice
from typing import Any, Self, TypeVar

import grpc
from numpy.typing import NDArray

from serving import protos
from serving.client.channel import open_channel
from serving.client.client import ClientBase
from serving.client.concurrency import AdaptiveLimit, AsyncConcurrencyLimiter, Many, map_in_tasks
from serving.client.operations import READ_AHEAD, answer_photos
from serving.client.photos import Item, LoadedPhoto, Photo, Rows, check_several
from serving.client.responses import Embedding, Metadata, VersionStatus
from serving.client.sans_io import Call, Operation, Pause, Step
from serving.contract import Prediction
from serving.errors import InputError

T = TypeVar("T")
A = TypeVar("A")


class AsyncClient(ClientBase[grpc.aio.Channel]):
    """`Client` for asyncio, with the same arguments; its methods are awaited.

    Photos are read and converted in threads, so that the event loop is never blocked. A client belongs to
    the event loop that first uses it. Cancelling a task cancels its calls.
    """

    def _open(self, channel: grpc.aio.Channel | None, limit: AdaptiveLimit) -> None:
        if isinstance(channel, grpc.Channel):
            raise InputError(
                "The channel given to an AsyncClient blocks.",
                remedy="Open it with grpc.aio, or use it with a Client.",
            )
        self._limiter = AsyncConcurrencyLimiter(limit)
        self._channel = channel
        # A channel that was given belongs to the event loop in which it was opened.
        self._loop: asyncio.AbstractEventLoop | None = getattr(channel, "_loop", None)

    def _check_open(self) -> None:
        """Check also that the event loop is the one of the connection, which the first call opens."""
        if self._channel is None:
            self._pid = os.getpid()
        super()._check_open()
        running = asyncio.get_running_loop()
        self._loop = self._loop or running
        if self._loop is not running:
            raise InputError(
                f"The client of {self.target} is used in another event loop than its "
                f"{'first call' if self._owns_channel else 'channel'}.",
                remedy="Open an AsyncClient in each event loop, as with every asyncio.run.",
            )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *details: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the channel, unless it was given, and stop the processes that convert photos."""
        self._closed = True
        if self._pid != os.getpid():  # after a fork the connection and the processes are the parent's
            return
        self._core.close()
        # In another event loop it cannot be closed; it ends with its own.
        if self._owns_channel and self._channel is not None and self._loop is asyncio.get_running_loop():
            await self._channel.close(None)

    async def classify(
        self, photos: Many[Photo], top_k: int | None = None, *, user: str | None = None
    ) -> list[Prediction]:
        """Return one prediction per photo, in order; see `Client.classify`."""
        return await self._collect(photos, self._classifier(top_k, user))

    async def embed(self, photos: Many[Photo]) -> list[Embedding]:
        """Return one embedding per photo, in order; see `Client.embed`."""
        return await self._collect(photos, self._core.embed)

    def iclassify(
        self, photos: Many[Photo], top_k: int | None = None, *, ordered: bool = True
    ) -> AsyncGenerator[tuple[Photo, Prediction]]:
        """Yield (photo, prediction) for any number of photos; see `Client.iclassify`."""
        return self._stream(check_several(photos, Iterable | AsyncIterable), self._classifier(top_k), ordered)

    def iembed(self, photos: Many[Photo], *, ordered: bool = True) -> AsyncGenerator[tuple[Photo, Embedding]]:
        """Yield (photo, embedding) for any number of photos; see `Client.iembed`."""
        return self._stream(check_several(photos, Iterable | AsyncIterable), self._core.embed, ordered)

    async def run(self, signature: str, inputs: Mapping[str, Rows]) -> dict[str, NDArray[Any]]:
        """Run any signature and return its outputs by name; see `Client.run`."""
        return await self._run(self._core.run(signature, inputs))

    def imap(
        self, signature: str, batches: Many[Mapping[str, Rows]], *, ordered: bool = True
    ) -> AsyncGenerator[dict[str, NDArray[Any]]]:
        """Yield the result of `run` for any number of batches; see `Client.imap`."""
        batches = check_several(batches, Iterable | AsyncIterable, "batches")
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
        self, photos: Many[Photo], request: Callable[[list[Item]], Operation[list[T]]]
    ) -> list[T]:
        """Return one result per photo: by a single request in this task if it suffices, else a stream."""
        core = self._core
        await self._run(core.prepare())
        photos = check_several(photos, Iterable | AsyncIterable)
        if not isinstance(photos, AsyncIterable):
            iterator = iter(photos)
            first = list(islice(iterator, core.max_photos + 1))
            if len(first) <= core.max_photos:
                loaded = await asyncio.gather(*map(self._load, first))
                batches = list(core.batcher().split(loaded))
                answers = [
                    await self._run(answer_photos(request, batch), limited=len(batches) > 1)
                    for batch in batches
                ]
                return [result for pairs in answers for _, result in pairs]
            photos = chain(first, iterator)
        return [result async for _, result in self._stream(photos, request, ordered=True)]

    async def _load(self, photo: Photo) -> LoadedPhoto:
        """Return a photo ready to be sent; files are read, and photos converted, in a thread."""
        loader = self._core.loader
        return photo, loader(photo) if loader.is_ready(photo) else await asyncio.to_thread(loader, photo)

    async def _stream(
        self, photos: Many[Photo], request: Callable[[list[Item]], Operation[list[T]]], ordered: bool
    ) -> AsyncGenerator[tuple[Photo, T]]:
        core = self._core
        await self._run(core.prepare())

        async def batch() -> AsyncGenerator[list[LoadedPhoto]]:
            batcher = core.batcher()
            async with aclosing(map_in_tasks(self._load, photos, lambda: READ_AHEAD)) as loaded:
                async for photo in loaded:
                    if complete := batcher.add(photo):
                        yield complete
            if batcher.batch:
                yield batcher.batch

        async with (
            aclosing(batch()) as batches,
            aclosing(self._run_concurrently(batches, partial(answer_photos, request), ordered)) as answers,
        ):
            async for pairs in answers:
                for pair in pairs:
                    yield pair

    async def _run_concurrently(
        self, batches: Many[A], operation: Callable[[A], Operation[T]], ordered: bool
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
        self._check_open()
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
            return end.value  # type: ignore[no-any-return]  # what the operation returns

    async def _perform(self, step: Step, limited: bool) -> Any:
        match step:
            case Call():
                return await self._call(step, limited)
            case Pause(seconds):
                return await asyncio.sleep(seconds)
            case _:
                return await asyncio.to_thread(step.function)

    async def _call(self, step: Call, limited: bool) -> Any:
        self._check_open()
        if self._channel is None:  # opened here, in the event loop that uses it
            self._channel = open_channel(grpc.aio, self._config)
        method = step.bind(self._channel)
        async with self._limiter(step.rows) if limited else nullcontext():
            with self._observe(step) as options:
                return await method(step.request, **options)
