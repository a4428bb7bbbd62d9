"""How a run gets on, told on stderr: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from batch.monitoring.stats import Progress

WINDOW_SECONDS = 30.0
"""Seconds that the rate is taken over: it follows what the storage does, and not every micro-batch."""

_SHORTEST = 2.0
_BETWEEN_SAMPLES = 0.5
_FIRST_LINE, _LONGEST_BETWEEN_LINES = 5.0, 60.0

Clock = Callable[[], float]


@dataclass
class RateEstimator:
    """The recent rate of a run, and the time that the rest takes at it.

    Attributes:
        clock: seconds, rising.
        progress: the last that was heard.
    """

    clock: Clock = time.monotonic
    progress: Progress = field(default_factory=lambda: Progress(0, 0, 0))
    _samples: deque[tuple[float, int]] = field(default_factory=deque)

    def update(self, progress: Progress) -> None:
        """Take in how far the run has come; another total is another run."""
        now, before = self.clock(), self.progress
        if progress.total != before.total or progress.done < before.done:
            self._samples.clear()
        # From the first photos on: loading the model tells nothing of the rate.
        if progress.worked and (not self._samples or now - self._samples[-1][0] >= _BETWEEN_SAMPLES):
            self._samples.append((now, progress.worked))
        self.progress = progress
        self._forget(now)

    @property
    def rate(self) -> float | None:
        """Photos a second over the last WINDOW_SECONDS, the silence since the last report included."""
        now = self.clock()
        self._forget(now)
        if not self._samples or now - self._samples[0][0] < _SHORTEST:
            return None
        began, worked = self._samples[0]
        return (self.progress.worked - worked) / (now - began)

    @property
    def seconds_left(self) -> float | None:
        """None where nothing can be said."""
        rate = self.rate
        return (self.progress.total - self.progress.done) / rate if rate else None

    def _forget(self, now: float) -> None:
        while len(self._samples) > 1 and now - self._samples[1][0] >= WINDOW_SECONDS:
            self._samples.popleft()

    def __str__(self) -> str:
        """The rate and the time left, for people; empty as long as neither is known."""
        rate, left = self.rate, self.seconds_left
        words = [] if rate is None else [f"{rate:,.0f} photos/s" if rate >= 10 else f"{rate:.1f} photos/s"]
        if left is not None and self.progress.done < self.progress.total:
            words.append(f"{format_duration(left)} left")
        return ", ".join(words)


def format_duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 05 min`, `2 d 4 h`."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


@contextmanager
def progress_bar() -> Iterator[Callable[[Progress], None]]:
    """What a run may call with its progress, from one thread at a time."""
    if not sys.stderr.isatty():
        yield LogReporter()
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar

    estimator = RateEstimator()
    columns = (
        TextColumn("{task.fields[far]}"),
        BarColumn(),
        TextColumn("{task.percentage:.0f} %"),
        TextColumn("{task.fields[pace]!s}{task.fields[rejected]}"),  # the pace at every refresh, not report
    )
    bar = Bar(*columns, console=Console(stderr=True))
    task = bar.add_task("", total=0, far="", estimator=estimator, rejected="")

    def report(progress: Progress) -> None:
        estimator.update(progress)
        bar.update(
            task,
            completed=progress.done,
            total=progress.total,
            far=_far(progress),
            rejected=_rejected(progress.rejected),
        )
        # On the screen only while photos are worked on, so that no other line falls into it.
        if progress.done < progress.total:
            bar.start()
        else:
            bar.stop()

    try:
        yield report
    finally:
        bar.stop()


class LogReporter:
    """Progress as lines, for logs: soon the first one, later one a minute, and one at the end.

    A run that is over before the first is due says nothing.
    """

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._estimator = RateEstimator(clock)
        self._clock = clock
        self._wait = _FIRST_LINE
        self._due = clock() + self._wait
        self._said = False

    def __call__(self, progress: Progress) -> None:
        self._estimator.update(progress)
        ended = progress.done >= progress.total
        if self._clock() < self._due and not (ended and self._said):
            return
        share = f" ({100 * progress.done / progress.total:.0f} %)" if progress.total else ""
        words = [_far(progress) + (share if not progress.listing else ""), str(self._estimator)]
        line = ", ".join(word for word in words if word) + _rejected(progress.rejected)
        print(line, file=sys.stderr, flush=True)
        self._said = not ended
        self._wait = _FIRST_LINE if ended else min(2 * self._wait, _LONGEST_BETWEEN_LINES)
        self._due = self._clock() + self._wait


def _far(progress: Progress) -> str:
    if progress.listing:
        return f"{progress.total:,} photos listed"
    return f"{progress.done:,} of {progress.total:,} photos"


def _rejected(count: int) -> str:
    return f", {count:,} rejected" if count else ""
