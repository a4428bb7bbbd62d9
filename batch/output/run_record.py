"""What a scoring run says of itself: its summary, and `run.json`."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from batch.monitoring.drift import DecisionCounts
from batch.monitoring.stats import Stats
from batch.output.dataset import Output
from serving.storage import files

SCHEMA = 2

_PACKAGES = ("hubhead", "tensorflow", "apache-beam", "pyarrow", "numpy")
_MILLION = 1_000_000


@dataclass(frozen=True)
class Summary:
    """What a run did; `run.json` says the same.

    Attributes:
        path: the output directory, or the store where only embeddings were made.
        total: all photos of the input; with `only_new` those that this run's id has rows of.
        this_run: of these, what was worked on now.
        of_id: of these, what was worked on under this run id, now or before it was cut off.
        skipped_shards: how many shards were done before.
        worked_shards: how many were done now.
        seconds: wall time.
        run_id: of the run; "" where only embeddings were made.
        lines: of the input, where a photo may have several.
        known: photos that were left out since an earlier run has scored them.
        price_per_hour: of one machine, in the currency of the user; None where not given.
    """

    path: str
    total: Stats
    this_run: Stats
    of_id: Stats
    skipped_shards: int
    worked_shards: int
    seconds: float
    run_id: str = ""
    lines: int = 0
    known: int = 0
    price_per_hour: float | None = None

    @property
    def run_file(self) -> str:
        """Where run.json is."""
        return Output(self.path).run_file

    @property
    def rejected(self) -> int:
        """Photos without an embedding."""
        return self.total.rejected

    @property
    def photos_per_second(self) -> float | None:
        """Photos of this run by the time its shards took; None where there was nothing to do."""
        return _ratio(self.this_run.photos, self.this_run.elapsed)

    def counts(self) -> dict[str, Any]:
        """The part of run.json that is about photos."""
        return {
            "lines": self.lines,
            "photos": self.total.photos,
            "known_photos": self.known,
            "rows": self.total.rows,
            "rejected": self.rejected,
            "statuses": dict(sorted(self.total.statuses.items())),
        }

    def figures(self, stats: Stats) -> dict[str, Any]:
        """A part of run.json that is about time and money.

        What is counted is the time inside the shards without loading the model, which does not
        grow with the number of photos; the cost takes one machine to work on one shard at a time.
        """
        hours = _ratio(stats.elapsed / 3600 * _MILLION, stats.photos)
        price = self.price_per_hour
        return {
            "rows_written": stats.rows,
            "photos": stats.photos,
            "photos_per_second": _ratio(stats.photos, stats.elapsed),
            "photos_embedded": stats.embedded,
            "photos_embedded_per_second": _ratio(stats.embedded, stats.seconds.get("embed", 0.0)),
            "reused_embeddings": stats.reused,
            "bytes_read": stats.read_bytes,
            "seconds_by_stage": stats.seconds,
            "core_seconds_per_million": _ratio(stats.core_seconds * _MILLION, stats.photos),
            "cost_per_million": None if hours is None or price is None else hours * price,
        }


def build_run_record(
    summary: Summary,
    *,
    started: datetime,
    models: Sequence[Mapping[str, Any]],
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """What run.json says."""
    return {
        "schema": SCHEMA,
        "run_id": summary.run_id,
        "started": started.isoformat(timespec="seconds"),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        **summary.counts(),
        "models": [{**model, **_decisions(summary.total, model)} for model in models],
        "embeddings": summary.total.embeddings.to_json(),
        "seconds": summary.seconds,
        "shards": summary.worked_shards,
        "skipped_shards": summary.skipped_shards,
        "price_per_hour": summary.price_per_hour,
        "this_run": summary.figures(summary.of_id),
        "all_runs": summary.figures(summary.total),  # this one and those that made the skipped shards
        "settings": settings,
        "packages": _package_versions(),
    }


def write_run(run: Mapping[str, Any], output: Output) -> None:
    """Write the run's record and run.json, which says that the scores are complete."""
    text = json.dumps(run, indent=2, ensure_ascii=False) + "\n"
    files.write(output.run_record(run["run_id"]), text.encode())
    files.write(output.run_file, text.encode())


def _decisions(stats: Stats, model: Mapping[str, Any]) -> dict[str, Any]:
    said = stats.models.get(f"{model['name']}/{model['version']}", DecisionCounts())
    return said.to_json()


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _package_versions() -> dict[str, str]:
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # run from the source tree, or without an extra
    return versions
