"""Counts and timings of a run: its progress while it runs, its statistics at the end."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from typing import Any

from batch.monitoring.drift import DecisionCounts, Moments
from batch.monitoring.engines import EngineRecord
from batch.monitoring.json_record import JsonRecord
from batch.monitoring.sample_photos import Examples
from serving.contract import Status


@dataclass(frozen=True)
class Progress:
    """Progress of a run, in photos.

    Attributes:
        done: photos with a result, including those from previous runs.
        total: photos of the run.
        rejected: photos among `done` without an embedding; copies of a rejected photo count once.
        known: photos among `done` whose result comes from a previous run; they do not count for
            the rate.
        listing: whether the photos are still being listed; `total` is then the number so far.
        note: what the run is waiting for; "" for nothing in particular.
    """

    done: int
    total: int
    rejected: int
    known: int = 0
    listing: bool = False
    note: str = ""

    @property
    def worked(self) -> int:
        """Photos that this run processed."""
        return self.done - self.known


class Meter:
    """Thread-safe counter of photos that reports progress after every update.

    Args:
        total: photos of the run.
        report: called with the progress, from one thread at a time; None for no reports.
    """

    def __init__(self, total: int = 0, report: Callable[[Progress], None] | None = None) -> None:
        self._progress = Progress(0, total, 0)
        self._report = report
        self._lock = threading.Lock()

    def add(self, done: int, rejected: int = 0, *, known: bool = False) -> None:
        """Count photos that have a result now.

        Args:
            done: number of photos.
            rejected: number of photos among them that were rejected.
            known: whether their result comes from a previous run.
        """
        with self._lock:
            before = self._progress
            self._progress = replace(
                before,
                done=before.done + done,
                rejected=before.rejected + rejected,
                known=before.known + done * known,
            )
            if self._report:
                self._report(self._progress)

    def note(self, text: str) -> None:
        """Report what the run is waiting for, without progress."""
        with self._lock:
            if self._report:
                self._report(replace(self._progress, note=text))


@dataclass
class Stats(JsonRecord):
    """Statistics of a shard, or the sum over several shards.

    Attributes:
        photos: number of photos, without duplicates.
        rows: rows of the scores: photos times models, unless some models skip a photo.
        statuses: photos by status.
        models: decisions of each model, by `name/version`.
        embeddings: moments of the embeddings, over the distinct photos of each shard.
        examples: sample photos of each label and of each reason for rejection.
        embedded: distinct contents that the backbone processed.
        engines: photos that the backbone embedded, by engine and by CPU (`list_engines`).
        reused: photos whose embedding was in the store or belongs to an identical photo.
        read_bytes: bytes of photos read.
        seconds: seconds by stage; `read` and `convert` are sums over reader threads that run
            in parallel with `embed`.
        elapsed: seconds from start to end.
        core_seconds: `elapsed` times the number of cores used.
    """

    photos: int = 0
    rows: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    models: dict[str, DecisionCounts] = field(default_factory=dict)
    embeddings: Moments = field(default_factory=Moments)
    examples: Examples = field(default_factory=Examples)
    embedded: int = 0
    engines: dict[str, Counter[str]] = field(default_factory=dict)
    reused: int = 0
    read_bytes: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    elapsed: float = 0.0
    core_seconds: float = 0.0

    def __add__(self, other: Stats) -> Stats:
        names = [field.name for field in fields(self)]
        return Stats(**{name: _add(getattr(self, name), getattr(other, name)) for name in names})

    @property
    def labels(self) -> Counter[str]:
        """Rows by predicted label, over all models."""
        return sum((counts.labels for counts in self.models.values()), Counter())

    @property
    def abstained(self) -> int:
        """Rows of photos that have an embedding but no label, over all models."""
        return sum(counts.abstained for counts in self.models.values())

    @property
    def rejected(self) -> int:
        """Photos without an embedding."""
        return sum(count for name, count in self.statuses.items() if not Status(name).usable)

    def count_engine(self, engine: str, cpu: str, photos: int) -> None:
        """Count photos that an engine embedded on a CPU."""
        if photos:
            self.engines.setdefault(engine, Counter())[cpu] += photos

    def list_engines(self) -> list[EngineRecord]:
        """Return what embedded the photos, the engine and CPU of most photos first."""
        found = [
            EngineRecord(engine=engine, cpu=cpu, photos=photos)
            for engine, counts in self.engines.items()
            for cpu, photos in counts.items()
        ]
        return sorted(found, key=lambda record: (-record["photos"], record["engine"], record["cpu"]))

    @contextmanager
    def time_stage(self, stage: str) -> Iterator[None]:
        """Measure a `with` block and add its time to a stage."""
        start = time.perf_counter()
        yield
        self.add_seconds(stage, time.perf_counter() - start)

    def add_seconds(self, stage: str, seconds: float) -> None:
        """Add seconds that were measured elsewhere to a stage."""
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds


def _add(one: Any, other: Any) -> Any:
    """Return the sum of two values; that of dictionaries by key, with values of one alone as they are."""
    if not isinstance(one, dict) or isinstance(one, Counter):
        return one + other
    return {**one, **other, **{key: _add(one[key], other[key]) for key in one.keys() & other.keys()}}
