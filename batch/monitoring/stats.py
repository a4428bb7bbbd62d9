"""What a run counts and times, while it goes on and when it is done."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from batch.monitoring.drift import DecisionCounts, Moments
from batch.monitoring.sample_photos import Examples
from serving.contract import Status


@dataclass(frozen=True)
class Progress:
    """How far a run has come.

    Attributes:
        done: photos with a result, those known from earlier runs included.
        total: photos of the run.
        rejected: of those done, how many have no embedding; copies of a rejected photo count once.
        known: of those done, how many were so before this run, and tell nothing of its speed.
        listing: whether the photos are still being listed, and `total` is what was found so far.
    """

    done: int
    total: int
    rejected: int
    known: int = 0
    listing: bool = False

    @property
    def worked(self) -> int:
        """Photos that this run brought to their result."""
        return self.done - self.known


class Meter:
    """DecisionCounts photos across threads and tells `report` at every micro-batch."""

    def __init__(self, total: int = 0, report: Callable[[Progress], None] | None = None) -> None:
        self._progress = Progress(0, total, 0)
        self._report = report
        self._lock = threading.Lock()

    def add(self, done: int, rejected: int = 0, *, known: bool = False) -> None:
        """Count photos that have their result, and how many of them were rejected.

        Args:
            done: photos.
            rejected: of these.
            known: they had it before this run.
        """
        with self._lock:
            before = self._progress
            self._progress = Progress(
                before.done + done,
                before.total,
                before.rejected + rejected,
                before.known + (done if known else 0),
            )
            if self._report:
                self._report(self._progress)


@dataclass
class Stats:
    """Figures of one shard, or of many added up.

    Attributes:
        photos: photos, each once.
        rows: rows of the scores: photos times models, where none is left out.
        statuses: photos by status.
        models: what each model decided, by `name/version`.
        embeddings: moments of those of the distinct photos of each shard.
        examples: photos that stand for the labels and for the reasons of rejections.
        embedded: contents that the backbone was run on.
        reused: photos whose embedding was in the store, or belongs to an identical photo.
        read_bytes: bytes of the photos that were read.
        seconds: by stage; `read` and `convert` are sums over the reader threads, which overlap `embed`.
        elapsed: seconds from beginning to end.
        core_seconds: `elapsed` times the cores that were taken.
    """

    photos: int = 0
    rows: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    models: dict[str, DecisionCounts] = field(default_factory=dict)
    embeddings: Moments = field(default_factory=Moments)
    examples: Examples = field(default_factory=Examples)
    embedded: int = 0
    reused: int = 0
    read_bytes: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    elapsed: float = 0.0
    core_seconds: float = 0.0

    def __add__(self, other: Stats) -> Stats:
        total = Stats(
            photos=self.photos + other.photos,
            rows=self.rows + other.rows,
            statuses=self.statuses + other.statuses,
            models={
                name: self.models.get(name, DecisionCounts()) + other.models.get(name, DecisionCounts())
                for name in {**self.models, **other.models}
            },
            embeddings=self.embeddings + other.embeddings,
            examples=self.examples + other.examples,
            embedded=self.embedded + other.embedded,
            reused=self.reused + other.reused,
            read_bytes=self.read_bytes + other.read_bytes,
            seconds=dict(self.seconds),
            elapsed=self.elapsed + other.elapsed,
            core_seconds=self.core_seconds + other.core_seconds,
        )
        for stage, seconds in other.seconds.items():
            total.add_seconds(stage, seconds)
        return total

    @property
    def labels(self) -> Counter[str]:
        """Rows by decided label, of all models."""
        return sum((said.labels for said in self.models.values()), Counter())

    @property
    def abstained(self) -> int:
        """Rows of photos with an embedding, and no label, of all models."""
        return sum(said.abstained for said in self.models.values())

    @property
    def rejected(self) -> int:
        """Photos without an embedding."""
        return sum(count for name, count in self.statuses.items() if not Status(name).usable)

    @contextmanager
    def time_stage(self, stage: str) -> Iterator[None]:
        """Add the time of a block to a stage."""
        start = time.perf_counter()
        yield
        self.add_seconds(stage, time.perf_counter() - start)

    def add_seconds(self, stage: str, seconds: float) -> None:
        """Add time that was measured elsewhere to a stage."""
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds

    def to_json(self) -> str:
        """The stats as a JSON object."""
        parts = {
            "models": {name: decisions.to_json() for name, decisions in self.models.items()},
            "embeddings": self.embeddings.to_json(),
            "examples": self.examples.to_json(),
        }
        return json.dumps(vars(self) | parts, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> Stats:
        """Read what `to_json` wrote.

        Raises:
            ValueError, TypeError, KeyError, AttributeError: it is something else.
        """
        content = json.loads(text)
        parts = {
            "statuses": Counter(content["statuses"]),
            "models": {name: DecisionCounts.from_json(said) for name, said in content["models"].items()},
            "embeddings": Moments.from_json(content["embeddings"]),
            "examples": Examples.from_json(content["examples"]),
        }
        return cls(**content | parts)
