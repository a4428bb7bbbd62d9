"""Requests sent at the times of a Poisson process, whatever becomes of those before.

A closed loop, in which each caller waits for its answer before it asks again, stops asking exactly
when the server is slow, and so leaves the worst latencies out (G. Tene, "How NOT to Measure
Latency", 2015: coordinated omission). Here arrivals are independent of answers, and a latency counts
from the time at which the request was to be sent, also where the generator was late.
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

_TELL_SECONDS = 0.2


@dataclass(frozen=True)
class Load:
    """What is sent.

    Attributes:
        rate: requests a second, on average.
        seconds: for how long requests come.
        photos: photos a request.
        most: requests under way at once at most; those beyond are counted as not sent.
        seed: of the times of arrival and the choice of photos.
    """

    rate: float
    seconds: float
    photos: int = 1
    most: int = 2000
    seed: int = 0


def arrivals(load: Load) -> Iterator[float]:
    """Times of a Poisson process in seconds from the start: gaps drawn from an exponential distribution."""
    draw = random.Random(load.seed)
    at = draw.expovariate(load.rate)
    while at < load.seconds:
        yield at
        at += draw.expovariate(load.rate)


async def run(
    client: AsyncClient,
    photos: Sequence[bytes],
    load: Load,
    tell: Callable[[float, int, int], None] | None = None,
) -> Result:
    """Send the load and wait for all answers; each request has the client's deadline.

    Args:
        client: one that does not retry, or retries hide what is measured.
        photos: encoded photos to choose from.
        load: what is sent.
        tell: told seconds passed, requests sent and failed, now and then.

    Raises:
        InputError: there is no photo.
        ServerError: the first request, which is not counted, fails.
    """
    if not photos:
        raise InputError("There is no photo to send.")
    await client.classify([photos[0]])  # connects, and says at once what would fail all
    choose = random.Random(load.seed + 1)
    samples: list[Sample] = []
    statuses: Counter[str] = Counter()
    tasks: set[asyncio.Task[None]] = set()
    dropped = sent = failed = 0
    told = 0.0
    start = time.perf_counter()

    async def send(intended: float, chosen: list[bytes]) -> None:
        nonlocal failed
        late = time.perf_counter() - start - intended
        error = ""
        try:
            answers = await client.classify(chosen)
        except ServerError as failure:
            error = failure.code
            failed += 1
        else:
            statuses.update(answer.status.value for answer in answers)
        samples.append(Sample(intended, late, time.perf_counter() - start - intended, error))

    for intended in arrivals(load):
        await _until(start + intended)
        if len(tasks) >= load.most:
            dropped += 1
        else:
            task = asyncio.create_task(send(intended, choose.choices(photos, k=load.photos)))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            sent += 1
        if tell and intended - told > _TELL_SECONDS:
            told = intended
            tell(intended, sent, failed)
    await asyncio.gather(*tasks)
    if tell:
        tell(load.seconds, sent, failed)
    samples.sort(key=lambda sample: sample.intended)
    return Result(load.rate, load.seconds, load.photos, samples, dict(statuses), dropped)


async def _until(moment: float) -> None:
    """Let the answers be handled until then; also where it has passed, so that none of them starves."""
    await asyncio.sleep(max(0.0, moment - time.perf_counter()))
