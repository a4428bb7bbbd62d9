"""From single requests to figures."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9)

LATE_SECONDS = 0.01
"""What the generator itself may be late by at the 99th percentile before it is said."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One request.

    Attributes:
        intended: when it was to be sent, in seconds from the start.
        late: by how much it was sent later.
        seconds: from the intended time to the answer, or to the failure.
        error: the name of the gRPC code; "" where it was answered.
    """

    intended: float
    late: float
    seconds: float
    error: str = ""


@dataclass(frozen=True)
class Result:
    """What one rate of arrivals gave.

    Attributes:
        rate: requests that were to come in a second, on average.
        seconds: for how long.
        photos: photos a request.
        samples: all requests that were sent, in the order of their intended times.
        statuses: photos answered, by status.
        dropped: requests that were not sent, since too many were under way.
    """

    rate: float
    seconds: float
    photos: int
    samples: Sequence[Sample]
    statuses: Mapping[str, int] = field(default_factory=dict)
    dropped: int = 0

    @cached_property
    def latencies(self) -> list[float]:
        """Seconds of the requests that were answered, ascending."""
        return sorted(sample.seconds for sample in self.samples if not sample.error)

    @property
    def answered(self) -> int:
        """Requests that were answered."""
        return len(self.latencies)

    @property
    def throughput(self) -> float:
        """Requests answered a second, from the start to the last answer."""
        end = max((sample.intended + sample.seconds for sample in self.samples), default=0.0)
        return self.answered / max(self.seconds, end) if self.samples else 0.0

    @property
    def errors(self) -> dict[str, int]:
        """Failed requests by gRPC code, and those that were dropped here."""
        counts = Counter(sample.error for sample in self.samples if sample.error)
        if self.dropped:
            counts["NOT_SENT"] = self.dropped
        return dict(counts.most_common())

    @property
    def late(self) -> float:
        """By how many seconds the generator was late, at the 99th percentile."""
        return percentile(sorted(sample.late for sample in self.samples), 99.0)

    def record(self) -> dict[str, object]:
        """The figures for machines; seconds as milliseconds, None where nothing was answered."""
        named = {f"p{number:g}": percentile(self.latencies, number) for number in PERCENTILES}
        named["max"] = self.latencies[-1] if self.latencies else math.nan
        return {
            "rate": self.rate,
            "seconds": self.seconds,
            "photos_per_request": self.photos,
            "sent": len(self.samples),
            "answered": self.answered,
            "answered_per_second": round(self.throughput, 2),
            "errors": self.errors,
            "statuses": dict(self.statuses),
            "latency_ms": {name: milliseconds(value) for name, value in named.items()},
            "generator_late_p99_ms": milliseconds(self.late),
        }


def percentile(ascending: Sequence[float], percent: float) -> float:
    """The smallest value that so many percent of the values do not exceed; NaN of none."""
    if not ascending:
        return math.nan
    return ascending[max(0, math.ceil(len(ascending) * percent / 100) - 1)]


def milliseconds(seconds: float) -> float | None:
    """Rounded to microseconds; None for NaN."""
    return None if math.isnan(seconds) else round(1000 * seconds, 3)
