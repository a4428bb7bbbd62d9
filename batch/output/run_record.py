"""Summary of a batch run, and its record in `run.json`."""

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
"""Version of the format of run.json."""

_PACKAGES = ("hubhead", "tensorflow", "apache-beam", "pyarrow", "numpy")
_MILLION = 1_000_000


@dataclass(frozen=True)
class Summary:
    """Result of a run; `run.json` contains the same figures.

    Attributes:
        path: output directory, or directory of the store if the run only embedded photos.
        total: statistics of all photos of the input; with `only_new`, of the photos that this run id
            has scored.
        this_run: statistics of the shards among them that were processed now.
        of_id: statistics of the shards among them that were processed under this run id, now or
            before an interruption.
        skipped_shards: number of shards that were already finished.
        worked_shards: number of shards processed now.
        seconds: wall-clock time.
        run_id: id of the run; "" if it only embedded photos.
        lines: number of lines of the input; a photo may be on several.
        known: number of photos excluded because a previous run has scored them.
        price_per_hour: price of one machine, in any currency; None if not given.
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
        """Address of run.json."""
        return Output(self.path).run_file

    @property
    def rejected(self) -> int:
        """Photos without an embedding."""
        return self.total.rejected

    @property
    def photos_per_second(self) -> float | None:
        """Photos per second of shard time; None if there was nothing to do."""
        return _ratio(self.this_run.photos, self.this_run.elapsed)

    def counts(self) -> dict[str, Any]:
        """Return the part of run.json with the numbers of photos and rows."""
        return {
            "lines": self.lines,
            "photos": self.total.photos,
            "known_photos": self.known,
            "rows": self.total.rows,
            "rejected": self.rejected,
            "statuses": dict(sorted(self.total.statuses.items())),
        }

    def throughput(self, stats: Stats) -> dict[str, Any]:
        """Return the part of run.json with throughput and cost.

        The time is that of the shards without loading the model, which does not grow with the number
        of photos. The cost assumes that a machine works on one shard at a time.

        Args:
            stats: statistics of the shards to include.
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
    """Return the content of run.json.

    Args:
        summary: result of the run.
        started: start of the run, with its time zone.
        models: name, version, digest and fingerprint of each model.
        settings: settings of the run as JSON values.
    """
    return {
        "schema": SCHEMA,
        "run_id": summary.run_id,
        "started": started.isoformat(timespec="seconds"),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        **summary.counts(),
        "models": [{**model, **_decision_counts(summary.total, model)} for model in models],
        "embeddings": summary.total.embeddings.to_json(),
        "seconds": summary.seconds,
        "shards": summary.worked_shards,
        "skipped_shards": summary.skipped_shards,
        "price_per_hour": summary.price_per_hour,
        "this_run": summary.throughput(summary.of_id),
        "all_runs": summary.throughput(summary.total),  # including the runs that finished the skipped shards
        "settings": settings,
        "packages": _package_versions(),
    }


def write_run(run: Mapping[str, Any], output: Output) -> None:
    """Write the run's record, and then run.json, whose presence means that the scores are complete."""
    text = json.dumps(run, indent=2, ensure_ascii=False) + "\n"
    files.write(output.run_record_file(run["run_id"]), text.encode())
    files.write(output.run_file, text.encode())


def _decision_counts(stats: Stats, model: Mapping[str, Any]) -> dict[str, Any]:
    counts = stats.models.get(f"{model['name']}/{model['version']}", DecisionCounts())
    return counts.to_json()


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _package_versions() -> dict[str, str]:
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # hubhead runs from a source tree, or the package is an optional extra
    return versions
