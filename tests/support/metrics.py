"""Run records for tests of the metrics, and a parser of their text."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from typing import Any

import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from batch.monitoring.drift import DecisionCounts, Moments
from batch.monitoring.stats import Stats
from batch.output.run_record import Summary, build_run_record


def make_run(labels: dict[str, int]) -> dict[str, Any]:
    count = sum(labels.values())
    random = np.random.default_rng(0)
    stats = Stats(
        photos=count + 7,
        rows=count + 7,
        statuses=Counter({"ok": count + 2, "corrupt": 5}),
        models={"food/3": DecisionCounts(Counter(labels), 2, [count + 2] + [0] * 19)},
        embeddings=Moments.from_embeddings(random.normal(size=(count, 16))),
        elapsed=2.0,
    )
    summary = Summary("out", stats, stats, stats, 0, 1, 12.5, run_id="b", lines=count + 7)
    model = {"name": "food", "version": 3, "digest": "d", "fingerprint": "f"}
    return build_run_record(summary, started=datetime.now(UTC), models=[model], settings={})


def parse_samples(text: str) -> dict[tuple[str, ...], float]:
    """Return each sample by its name and labels; `model` and `version` are checked here and left out."""
    found = {}
    for family in text_string_to_metric_families(text):
        assert family.type == "gauge"
        assert family.documentation
        for sample in family.samples:
            labels = dict(sample.labels)
            assert (labels.pop("model"), labels.pop("version")) == ("food", "3")
            found[(sample.name.removeprefix("hubhead_score_"), *labels.values())] = sample.value
    return found
