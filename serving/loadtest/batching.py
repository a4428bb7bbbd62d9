"""Batching parameters for a server, from its speed with batches of each size and number.

The load is closed-loop: a fixed number of requests is always in flight, each with the photos of one batch.
The server must run each request as one batch: then the number in flight stands for `num_batch_threads`, and
the photos of a request for the size of batches. TensorFlow Serving does so without --enable_batching, and
`hubhead serve` with an empty batching file; without a file it divides a request among its threads.
"""

from __future__ import annotations

import asyncio
import math
import statistics
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, cycle, islice
from typing import TYPE_CHECKING

from google.protobuf import text_format

from serving import contract, protos
from serving.errors import InputError, ServerError

if TYPE_CHECKING:
    from serving.client import AsyncClient

MAX_BATCHES = 32
"""Largest number of batches in flight that is measured."""

_ROUNDS = 2
"""Measurements of each size and number. The faster one counts: other load can only slow a server down."""

SIGNIFICANT_GAIN = 0.05
"""Relative difference of throughputs that counts: below it smaller and fewer batches are better."""

TIMEOUT_FRACTION = 0.1
"""Waiting time for the photos of others, as a fraction of the time of a request with one photo."""

QUEUE_SECONDS = 1.0
"""Time in which a full queue is served. Requests beyond it go to another server without having waited."""


@dataclass(frozen=True)
class Capacity:
    """Speed of a server with one size and number of batches.

    Attributes:
        size: photos per request, as the photos of a batch.
        batches: requests in flight.
        seconds: median time of a request.
        throughput: photos per second.
    """

    size: int
    batches: int
    seconds: float
    throughput: float

    @property
    def batch_rate(self) -> float:
        """Batches per second."""
        return self.throughput / self.size


async def measure_capacity(
    client: AsyncClient,
    photos: Sequence[bytes],
    seconds: float,
    on_progress: Callable[[Capacity], None] | None = None,
) -> list[Capacity]:
    """Measure a server with each batch size of the warm-up, and with 1, 2, 4, ... batches at once.

    For each size the number of batches doubles as long as the throughput grows by `SIGNIFICANT_GAIN`. Larger
    sizes and numbers are left out once the server rejects one. Everything is measured twice, and the better
    result counts.

    Args:
        client: client to send with; it must not retry.
        photos: encoded photos, sent in turns.
        seconds: duration for each size and number; each has at least one request per batch in flight.
        on_progress: function that is called with each measurement.

    Returns:
        Results by size and number, ascending.

    Raises:
        InputError: there are no photos.
        ServerError: the server rejects a single photo, or does not answer.
    """
    if not photos:
        raise InputError("There are no photos to send.", remedy="Give at least one photo.")
    endless = cycle(photos)
    await _send(client, [photos[0]])  # connects; not measured
    best: dict[tuple[int, int], Capacity] = {}
    for _ in range(_ROUNDS):
        async for capacity in _measure_each(client, endless, seconds / _ROUNDS):
            shape = capacity.size, capacity.batches
            best[shape] = max(capacity, best.get(shape, capacity), key=lambda one: one.throughput)
            if on_progress:
                on_progress(capacity)
    return [best[shape] for shape in sorted(best)]


async def _measure_each(
    client: AsyncClient, photos: Iterator[bytes], seconds: float
) -> AsyncIterator[Capacity]:
    """Yield the capacity for each size, and for 1, 2, 4, ... batches while the throughput grows."""
    measured = False
    for size in contract.WARMUP_BATCH_SIZES:
        best = 0.0
        for batches in _powers_of_two(MAX_BATCHES):
            try:
                capacity = await _measure(client, photos, (size, batches), seconds)
            except ServerError:
                if not measured:
                    raise
                break
            if client.max_photos < size:  # the server stated a smaller maximum, and the photos were divided
                return
            measured = True
            yield capacity
            if capacity.throughput < best * (1 + SIGNIFICANT_GAIN):
                break
            best = capacity.throughput
        if not best:  # not even one request of this size
            return


def _powers_of_two(highest: int) -> Iterator[int]:
    return (1 << power for power in range(highest.bit_length()))


async def _measure(
    client: AsyncClient, photos: Iterator[bytes], shape: tuple[int, int], seconds: float
) -> Capacity:
    """Keep (photos, requests) in flight for some seconds."""
    size, batches = shape
    times: list[float] = []
    start = time.perf_counter()

    async def send() -> None:
        while not times or time.perf_counter() < start + seconds:
            begin = time.perf_counter()
            await _send(client, list(islice(photos, size)))
            times.append(time.perf_counter() - begin)

    tasks = [asyncio.create_task(send()) for _ in range(batches)]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    passed = time.perf_counter() - start
    return Capacity(size, batches, statistics.median(times), size * len(times) / passed)


async def _send(client: AsyncClient, photos: list[bytes]) -> None:
    """Send one request; unlike with `classify`, the photos are not divided after an error."""
    await client.run(contract.SERVING_DEFAULT, {contract.IMAGE_BYTES: photos})


def choose(measured: Iterable[Capacity]) -> Capacity:
    """Return the fastest response among those within `SIGNIFICANT_GAIN` of the best throughput.

    A server under full load then loses next to nothing, and a photo waits for as few others as possible.
    """
    measured = list(measured)
    enough = (1 - SIGNIFICANT_GAIN) * max(one.throughput for one in measured)
    return min((one for one in measured if one.throughput >= enough), key=lambda one: one.seconds)


def derive_parameters(measured: Sequence[Capacity]) -> protos.Message:
    """Return the BatchingParameters of TensorFlow Serving that follow from measurements.

    - `max_execution_batch_size` and `num_batch_threads`: size and number of batches of `choose`.
    - `max_batch_size`, of a request: the largest size of the warm-up, so that no caller is rejected; requests
      are split where batches are smaller. `allowed_batch_sizes`: those of the warm-up.
    - `batch_timeout_micros`: `TIMEOUT_FRACTION` of the time of a single photo; 0 if batches have one photo.
    - `max_enqueued_batches`: what is served in `QUEUE_SECONDS`, and at least one batch per thread.

    Args:
        measured: results of `measure_capacity`.
    """
    best = choose(measured)
    single = min(one.seconds for one in measured if one.size == 1)
    sizes = contract.WARMUP_BATCH_SIZES
    parameters = protos.BatchingParameters(allowed_batch_sizes=sizes)
    parameters.max_batch_size.value = sizes[-1]
    if best.size < sizes[-1]:
        parameters.enable_large_batch_splitting.value = True
        parameters.max_execution_batch_size.value = best.size
    parameters.batch_timeout_micros.value = round(1e6 * TIMEOUT_FRACTION * single) if best.size > 1 else 0
    parameters.num_batch_threads.value = best.batches
    parameters.max_enqueued_batches.value = max(best.batches, math.floor(QUEUE_SECONDS * best.batch_rate))
    return parameters


def required_threads(parameters: protos.Message) -> int:
    """Return the --grpc_max_threads that TensorFlow Serving needs to fill the batches and the queue.

    A waiting request occupies a thread, and may have a single photo.
    """
    batches = parameters.num_batch_threads.value + parameters.max_enqueued_batches.value
    rows = parameters.max_execution_batch_size.value or parameters.max_batch_size.value
    return int(batches * rows)


def format_file(parameters: protos.Message, comments: Iterable[str]) -> str:
    """Return the batching file: BatchingParameters in text format, below comments of one line each."""
    return "\n".join(
        chain((f"# {comment}" for comment in comments), [text_format.MessageToString(parameters)])
    )
