"""Open-loop load generator: Poisson arrivals at a fixed rate, independent of earlier responses.

In a closed loop, each client waits for its response before it sends the next request. It sends least
exactly while the server is slow, and so omits the worst latencies (G. Tene, "How NOT to Measure
Latency", 2015: coordinated omission). Here arrivals do not depend on responses, and a latency is
measured from the intended send time, even if the generator itself was late.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from serving.errors import InputError, ServerError
from serving.loadtest.figures import Result, Sample

if TYPE_CHECKING:
    from serving.client import AsyncClient

_PROGRESS_INTERVAL_SECONDS = 0.2


@dataclass(frozen=True)
class Load:
    """The load to generate.

    Attributes:
        rate: arrival rate in requests per second, on average.
        seconds: duration in seconds.
        photos: photos per request.
        max_in_flight: maximum number of requests in flight; requests beyond it are counted as not sent.
        seed: random seed of the arrival times and of the choice of photos.
    """

    rate: float
    seconds: float
    photos: int = 1
    max_in_flight: int = 2000
    seed: int = 0


def draw_arrivals(load: Load) -> Iterator[float]:
    """Yield the arrival times of a Poisson process, in seconds from the start.

    The gaps between arrivals are drawn from an exponential distribution.
    """
    generator = random.Random(load.seed)
    at = generator.expovariate(load.rate)
    while at < load.seconds:
        yield at
        at += generator.expovariate(load.rate)


async def run_load(
    client: AsyncClient,
    photos: Sequence[bytes],
    load: Load,
    on_progress: Callable[[float, int, int], None] | None = None,
) -> Result:
    """Generate a load, wait for all responses, and return the result.

    Args:
        client: client to send with, whose timeout is the deadline of each request. It must not retry:
            retries would hide what is measured.
        photos: encoded photos to choose from at random.
        load: load to generate.
        on_progress: function that is called every 0.2 s with the seconds passed and the number of requests
            sent and failed so far.

    Raises:
        InputError: there are no photos.
        ServerError: the first request, which is not counted, fails.
    """
    if not photos:
        raise InputError("There are no photos to send.", remedy="Give at least one photo.")
    await client.classify([photos[0]])  # connects, and raises what would fail every request
    choose = random.Random(load.seed + 1)
    samples: list[Sample] = []
    statuses: Counter[str] = Counter()
    tasks: set[asyncio.Task[None]] = set()
    dropped = sent = failed = 0
    last_progress = 0.0
    start = time.perf_counter()

    async def send(intended: float, chosen: list[bytes]) -> None:
        nonlocal failed
        send_delay = time.perf_counter() - start - intended
        error = ""
        try:
            predictions = await client.classify(chosen)
            statuses.update(prediction.status.value for prediction in predictions)
        except ServerError as failure:
            error = failure.code
            failed += 1
        latency = time.perf_counter() - start - intended
        samples.append(Sample(intended, send_delay, latency, error))

    for intended in draw_arrivals(load):
        # Yields to the event loop even if the time has passed, so that responses are always handled.
        await asyncio.sleep(max(0.0, start + intended - time.perf_counter()))
        if len(tasks) >= load.max_in_flight:
            dropped += 1
        else:
            task = asyncio.create_task(send(intended, choose.choices(photos, k=load.photos)))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            sent += 1
        if on_progress and intended - last_progress > _PROGRESS_INTERVAL_SECONDS:
            last_progress = intended
            on_progress(intended, sent, failed)
    await asyncio.gather(*tasks)
    if on_progress:
        on_progress(load.seconds, sent, failed)
    samples.sort(key=lambda sample: sample.intended)
    return Result(load.rate, load.seconds, load.photos, samples, dict(statuses), dropped)
