"""Progress of a run on stderr: a progress bar on a terminal, log lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from batch.monitoring.stats import Progress
from serving.text import escape_controls

WINDOW_SECONDS = 30.0
"""Length of the window over which the rate is averaged: it smooths over micro-batches, but follows
changes in the storage's speed."""

_MIN_WINDOW_SECONDS = 2.0
_SAMPLE_SECONDS = 0.5
_FIRST_LINE_SECONDS, _MAX_LINE_SECONDS = 5.0, 60.0

Clock = Callable[[], float]


@dataclass
class RateEstimator:
    """Recent rate of a run and estimated time left, from a sliding window of samples.

    Attributes:
        clock: monotonic clock in seconds.
        progress: latest progress reported.
    """

    clock: Clock = time.monotonic
    progress: Progress = field(default_factory=lambda: Progress(0, 0, 0))
    _samples: deque[tuple[float, int]] = field(default_factory=deque)  # (time, photos worked on)

    def update(self, progress: Progress) -> None:
        """Add a sample. Another total, or fewer photos than before, starts a new run."""
        now, before = self.clock(), self.progress
        if progress.total != before.total or progress.done < before.done:
            self._samples.clear()
        # Samples start with the first photos: loading the model must not lower the rate.
        if progress.worked and (not self._samples or now - self._samples[-1][0] >= _SAMPLE_SECONDS):
            self._samples.append((now, progress.worked))
        self.progress = progress
        self._discard_old(now)

    @property
    def rate(self) -> float | None:
        """Photos per second over the last WINDOW_SECONDS; None until two seconds are measured.

        The time since the latest report counts too, so the rate of a run that stalls falls.
        """
        now = self.clock()
        self._discard_old(now)
        if not self._samples or now - self._samples[0][0] < _MIN_WINDOW_SECONDS:
            return None
        began, worked = self._samples[0]
        return (self.progress.worked - worked) / (now - began)

    @property
    def seconds_left(self) -> float | None:
        """Estimated seconds until the run ends; None while the rate is unknown or zero."""
        rate = self.rate
        return (self.progress.total - self.progress.done) / rate if rate else None

    def _discard_old(self, now: float) -> None:
        # The sample at the start of the window is kept, even if it is older than the window.
        while len(self._samples) > 1 and now - self._samples[1][0] >= WINDOW_SECONDS:
            self._samples.popleft()

    def __str__(self) -> str:
        """Return the rate and the time left as text; empty while the rate is unknown."""
        rate, left = self.rate, self.seconds_left
        words = [] if rate is None else [f"{rate:,.0f} photos/s" if rate >= 10 else f"{rate:.1f} photos/s"]
        if left is not None and self.progress.done < self.progress.total:
            words.append(f"{format_duration(left)} left")
        return ", ".join(words)


def format_duration(seconds: float) -> str:
    """Return a duration as `45 s`, `12 min`, `3 h 05 min` or `2 d 4 h`."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


@contextmanager
def progress_bar(shown: bool = True) -> Iterator[Callable[[Progress], None]]:
    """Display the progress of a run within a `with` block.

    Args:
        shown: False to display nothing.

    Yields:
        Callback that takes the progress, from one thread at a time. If stderr is not a terminal,
        the callback writes log lines.
    """
    if not shown:
        yield lambda _progress: None
        return
    if not sys.stderr.isatty():
        yield LogReporter()
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar

    estimator = RateEstimator()
    columns = (
        TextColumn("{task.fields[position]}"),
        BarColumn(),
        TextColumn("{task.percentage:.0f} %"),
        # The field is the estimator itself: its text is current at every refresh, not only at reports.
        TextColumn("{task.fields[estimator]!s}{task.fields[rejected]}{task.fields[note]}"),
    )
    bar = Bar(*columns, console=Console(stderr=True))
    task = bar.add_task("", total=0, position="", estimator=estimator, rejected="", note="")

    def report(progress: Progress) -> None:
        estimator.update(progress)
        bar.update(
            task,
            completed=progress.done,
            total=progress.total,
            position=_format_position(progress),
            rejected=_format_rejected(progress.rejected),
            note=_format_note(progress.note),
        )
        # Shown only while there is work left, so that other output does not break the bar.
        if progress.done < progress.total:
            bar.start()
        else:
            bar.stop()

    try:
        yield report
    finally:
        bar.stop()


class LogReporter:
    """Progress callback that writes lines for logs.

    The first line comes after 5 seconds. The interval then doubles up to a minute, and the end of
    the run gets a line of its own. A run that ends before the first line is due writes nothing.

    Args:
        clock: monotonic clock in seconds.
    """

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._estimator = RateEstimator(clock)
        self._clock = clock
        self._interval = _FIRST_LINE_SECONDS
        self._due = clock() + self._interval
        self._wrote_line = False

    def __call__(self, progress: Progress) -> None:
        self._estimator.update(progress)
        ended = progress.done >= progress.total
        if self._clock() < self._due and not (ended and self._wrote_line):
            return
        percent = f" ({100 * progress.done / progress.total:.0f} %)" if progress.total else ""
        words = [_format_position(progress) + (percent if not progress.listing else ""), str(self._estimator)]
        line = ", ".join(word for word in words if word) + _format_rejected(progress.rejected)
        line += _format_note(progress.note)
        print(escape_controls(line), file=sys.stderr, flush=True)
        # The next phase, such as scoring after listing, starts over with the short interval.
        self._wrote_line = not ended
        self._interval = _FIRST_LINE_SECONDS if ended else min(2 * self._interval, _MAX_LINE_SECONDS)
        self._due = self._clock() + self._interval


def _format_position(progress: Progress) -> str:
    if progress.listing:
        return f"{progress.total:,} photos listed"
    return f"{progress.done:,} of {progress.total:,} photos"


def _format_rejected(count: int) -> str:
    return f", {count:,} rejected" if count else ""


def _format_note(note: str) -> str:
    return f"; {note}" if note else ""
