"""Statistics, run records and sample photos for tests of the scoring report."""

from __future__ import annotations

import hashlib
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from batch.monitoring.drift import BINS, DecisionCounts, Moments
from batch.monitoring.sample_photos import Example, Examples
from batch.monitoring.stats import Stats
from batch.output.run_record import Summary, build_run_record

STARTED = datetime(2026, 5, 31, 1, 30, tzinfo=UTC)
LABELS = ("crème brûlée", "寿司", "soup")


def make_stats(labels: dict[str, int], *, seed: int = 0, models: tuple[str, ...] = ("food/3",)) -> Stats:
    """Return statistics of an invented run; `seed` shifts the scores and the embeddings."""
    random = np.random.default_rng(seed)
    count = sum(labels.values())
    scores, _ = np.histogram(random.beta(6 - seed, 2, count + 40), BINS, (0, 1))
    return Stats(
        photos=count + 47,
        rows=(count + 47) * len(models),
        statuses=Counter({"ok": count + 40, "corrupt": 5, "unreadable": 2}),
        models={name: DecisionCounts(Counter(labels), 40, scores.tolist()) for name in models},
        # Embeddings of all photos would take up to a gigabyte.
        embeddings=Moments.from_embeddings(random.normal(0.2 * seed, 1, (min(count, 2000), 64))),
        embedded=count,
        reused=40,
        seconds={
            "read": 3.25,
            "embed": 40.5,
            "store": 0.5,
            "classify": 0.25,
            "rows": 0.125,
            "sketch": 0.0625,
        },
        elapsed=42.0,
        core_seconds=84.0,
    )


def make_run(stats: Stats, run_id: str = "2026-05-31", **settings: Any) -> dict[str, Any]:
    summary = Summary(
        "out", stats, stats, stats, 0, 3, 61.0, run_id=run_id, lines=stats.photos, price_per_hour=0.36
    )
    models = [
        {
            "name": name.rpartition("/")[0],
            "version": int(name.rpartition("/")[2]),
            "digest": "d1",
            "fingerprint": "f1",
        }
        for name in stats.models
    ]
    return build_run_record(
        summary, started=STARTED, models=models, settings={"photos": "uploads", **settings}
    )


def make_examples(
    top: Path, labels: tuple[str, ...] = LABELS, models: tuple[str, ...] = ("food/3",)
) -> Examples:
    """Write four small photos for each label, and return them with rejected photos of two statuses."""
    chosen = {}
    for number, label in enumerate(labels):
        found = []
        for copy in range(4):
            path = top / f"{number} {copy} <b>&amp;.jpg"
            Image.new("RGB", (60, 40), ((67 * number) % 256, 200 - 50 * copy, 90)).save(path)
            found.append(Example(hashlib.sha256(str(path).encode()).hexdigest(), str(path), 0.25 * copy))
        chosen[label] = tuple(found)
    rejected = {
        "corrupt": (Example("", "uploads/torn.jpg", None, "120 bytes, beginning ff d8"),),
        "unreadable": (Example("", "uploads/secret.jpg", None, "Permission denied"),),
    }
    return Examples(dict.fromkeys(models, chosen), rejected)


COUNTS = {"crème brûlée": 600, "寿司": 300, "soup": 100}
