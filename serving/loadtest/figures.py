"""Results of a load test: single requests, and the latency percentiles and error counts over them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9)

MAX_SEND_DELAY_SECONDS = 0.01
"""99th percentile of the send delay above which the command warns that the generator is overloaded."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One request.

    Attributes:
        intended: intended send time, in seconds from the start.
        send_delay: seconds from the intended to the actual send time.
        seconds: latency, from the intended send time to the response or the error.
        error: name of the gRPC code; "" for a response.
    """

    intended: float
    send_delay: float
    seconds: float
    error: str = ""


@dataclass(frozen=True)
class Result:
    """The result of one arrival rate.

    Attributes:
        rate: arrival rate in requests per second, on average.
        seconds: duration in seconds.
        photos: photos per request.
        samples: all requests that were sent, in the order of their intended send times.
        statuses: number of photos by status.
        dropped: requests that were not sent because too many were in flight.
        engine, cpu: what runs the backbone on the server, and the server's CPU; "" if it does not say so, as
            TensorFlow Serving.
    """

    rate: float
    seconds: float
    photos: int
    samples: Sequence[Sample]
    statuses: Mapping[str, int] = field(default_factory=dict)
    dropped: int = 0
    engine: str = ""
    cpu: str = ""

    @cached_property
    def latencies(self) -> list[float]:
        """Latencies of the successful requests in seconds, ascending."""
        return sorted(sample.seconds for sample in self.samples if not sample.error)

    @property
    def successes(self) -> int:
        """Number of successful requests."""
        return len(self.latencies)

    @property
    def throughput(self) -> float:
        """Successful requests per second, from the start to the last response."""
        end = max((sample.intended + sample.seconds for sample in self.samples), default=0.0)
        return self.successes / max(self.seconds, end) if self.samples else 0.0

    @property
    def errors(self) -> dict[str, int]:
        """Number of failed requests by gRPC code; NOT_SENT counts the dropped ones."""
        counts = Counter(sample.error for sample in self.samples if sample.error)
        if self.dropped:
            counts["NOT_SENT"] = self.dropped
        return dict(counts.most_common())

    @property
    def send_delay_p99(self) -> float:
        """99th percentile of the send delay in seconds."""
        return percentile(sorted(sample.send_delay for sample in self.samples), 99.0)

    def to_dict(self) -> dict[str, object]:
        """Return the result for JSON; times in milliseconds, None if no request succeeded."""
        latencies = {f"p{number:g}": percentile(self.latencies, number) for number in PERCENTILES}
        latencies["max"] = self.latencies[-1] if self.latencies else math.nan
        return {
            "rate": self.rate,
            "seconds": self.seconds,
            "photos_per_request": self.photos,
            "sent": len(self.samples),
            "answered": self.successes,
            "answered_per_second": round(self.throughput, 2),
            "errors": self.errors,
            "statuses": dict(self.statuses),
            "latency_ms": {name: to_milliseconds(value) for name, value in latencies.items()},
            "generator_late_p99_ms": to_milliseconds(self.send_delay_p99),
            "engine": self.engine or None,
            "cpu": self.cpu or None,
        }


def percentile(ascending: Sequence[float], percent: float) -> float:
    """Return the smallest value that at least `percent` % of the values do not exceed (nearest rank).

    Args:
        ascending: values in ascending order; NaN is returned if there are none.
        percent: percentage, 0 to 100.
    """
    if not ascending:
        return math.nan
    return ascending[max(0, math.ceil(len(ascending) * percent / 100) - 1)]


def to_milliseconds(seconds: float) -> float | None:
    """Return milliseconds, rounded to microseconds; None for NaN."""
    return None if math.isnan(seconds) else round(1000 * seconds, 3)
