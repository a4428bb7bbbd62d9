"""Summary of a batch run, and its record in `run.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NotRequired, TypedDict, cast

from batch.monitoring.drift import DecisionCounts, DecisionCountsRecord, MomentsRecord
from batch.monitoring.engines import EngineRecord
from batch.monitoring.stats import Stats
from batch.output.dataset import Output
from serving.errors import InputError
from serving.process import get_cpu_model, get_package_versions
from serving.storage import files
from serving.storage.records import RecordFormat
from serving.text import redact

SCHEMA = 2
"""Version of the format of run.json."""

_PACKAGES = ("hubhead", "tensorflow", "onnxruntime", "apache-beam", "pyarrow", "numpy")
_MILLION = 1_000_000


class ModelRecord(DecisionCountsRecord):
    """A model in run.json: its identity, and the counts of its decisions.

    Attributes:
        name: name of the model.
        version: version of the model.
        digest: digest of the files of the bundle.
        fingerprint: fingerprint of its backbone, the key of the embedding store.
        labels: rows by predicted label.
        abstained: rows of photos that have an embedding but no label.
        scores: histogram of the top scores of both, in 20 equal bins from 0 to 1.
    """

    name: str
    version: int
    digest: str
    fingerprint: str


class ThroughputRecord(TypedDict):
    """Throughput and cost in run.json; rates are None if there was nothing to do.

    Attributes:
        rows_written: rows of the scores.
        photos: photos with rows.
        photos_per_second: photos by wall-clock time, without loading the model.
        photos_embedded: photos that ran through the backbone.
        photos_embedded_per_second: those photos by the time of the stage `embed`.
        engines: engines that embedded them, and their CPUs.
        reused_embeddings: photos whose embedding was in the embedding store.
        bytes_read: bytes of the photos that were read.
        seconds_by_stage: time of each stage, summed over all workers.
        core_seconds_per_million: processor seconds for a million photos.
        cost_per_million: cost of a million photos at `price_per_hour`; None without a price.
    """

    rows_written: int
    photos: int
    photos_per_second: float | None
    photos_embedded: int
    photos_embedded_per_second: float | None
    engines: NotRequired[list[EngineRecord]]
    reused_embeddings: int
    bytes_read: int
    seconds_by_stage: dict[str, float]
    core_seconds_per_million: float | None
    cost_per_million: float | None


class RunRecord(TypedDict):
    """Content of run.json.

    Attributes:
        schema: version of the layout.
        run_id: id of the run.
        started: start of the run, ISO 8601 in UTC.
        finished: end of the run, ISO 8601 in UTC.
        lines: lines of the input; a photo may be on several.
        photos: photos that have rows, without those that a previous run scored.
        known_photos: photos excluded because a previous run has scored them.
        rows: rows of the scores; each photo has one per model.
        rejected: photos without an embedding.
        statuses: photos by status.
        models: identity and decisions of each model.
        embeddings: moments of the embeddings.
        seconds: wall-clock time.
        shards: shards that this run processed.
        skipped_shards: shards that were finished before.
        price_per_hour: price of one machine; None if not given.
        this_run: throughput under this run id, interrupted attempts included.
        all_runs: throughput of all runs that finished a shard of this output.
        settings: settings of the run, without secrets in addresses.
        configuration: options of the command in the tables of a configuration file, without secrets.
        cpu: CPU of the machine that ran the job; `engines` of the throughput has those of all workers.
        packages: versions of the installed packages.
        changes: difference from the previous run (RunDiff); None if there was none.
    """

    schema: int
    run_id: str
    started: str
    finished: str
    lines: int
    photos: int
    known_photos: int
    rows: int
    rejected: int
    statuses: dict[str, int]
    models: list[ModelRecord]
    embeddings: NotRequired[MomentsRecord]
    seconds: float
    shards: int
    skipped_shards: int
    price_per_hour: float | None
    this_run: ThroughputRecord
    all_runs: ThroughputRecord
    settings: dict[str, Any]
    configuration: NotRequired[dict[str, Any]]
    cpu: NotRequired[str]
    packages: dict[str, str]
    changes: NotRequired[dict[str, Any] | None]


def _upgrade_from_1(record: dict[str, Any]) -> dict[str, Any]:
    """Convert a run record of the first layout: one model, without a run id or duplicate photos."""
    photos = record["photos"]
    throughput = {
        name: {**part, "photos": part["rows_written"], "photos_per_second": part["rows_per_second"]}
        for name, part in record.items()
        if name in ("this_run", "all_runs")
    }
    model = {**record["model"], "labels": record["labels"], "abstained": record["abstained"]}
    added = {"run_id": "", "lines": photos, "known_photos": 0, "rows": photos, "models": [model]}
    return {**record, **throughput, **added}


FORMAT = RecordFormat(RunRecord, SCHEMA, InputError, {1: _upgrade_from_1}, ignored=None)
"""Format of run.json."""


@dataclass
class Summary:
    """Result of a run, which is counted as its shards finish; `run.json` contains the same figures.

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
    total: Stats = field(default_factory=Stats)
    this_run: Stats = field(default_factory=Stats)
    of_id: Stats = field(default_factory=Stats)
    skipped_shards: int = 0
    worked_shards: int = 0
    seconds: float = 0.0
    run_id: str = ""
    lines: int = 0
    known: int = 0
    price_per_hour: float | None = None

    def add_skipped(self, stats: Stats, run_id: str) -> None:
        """Count a shard that was finished before, under the given run id."""
        self.total += stats
        self.skipped_shards += 1
        if run_id == self.run_id:
            self.of_id += stats

    def add_worked(self, stats: Stats, shards: int = 1) -> None:
        """Count shards that were processed now."""
        self.total += stats
        self.of_id += stats
        self.this_run += stats
        self.worked_shards += shards

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
        """Photos per second of the job, without loading the model; None if there was nothing to do."""
        return self._get_rate(self.this_run)

    def _get_rate(self, stats: Stats) -> float | None:
        # Shards that several workers process at a time take more seconds together than the whole run.
        is_whole = stats.photos == self.this_run.photos
        return _ratio(stats.photos, min(stats.elapsed, self.seconds) if is_whole else stats.elapsed)

    def throughput(self, stats: Stats) -> ThroughputRecord:
        """Return the part of run.json with throughput and cost.

        The time is that of the shards without loading the model, which does not grow with the number
        of photos; for the photos per second, at most that of the run. The cost assumes that a machine
        works on one shard at a time.

        Args:
            stats: statistics of the shards to include.
        """
        hours = _ratio(stats.elapsed / 3600 * _MILLION, stats.photos)
        price = self.price_per_hour
        return {
            "rows_written": stats.rows,
            "photos": stats.photos,
            "photos_per_second": self._get_rate(stats),
            "photos_embedded": stats.embedded,
            "photos_embedded_per_second": _ratio(stats.embedded, stats.seconds.get("embed", 0.0)),
            "engines": stats.list_engines(),
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
    settings: dict[str, Any],
) -> RunRecord:
    """Return the content of run.json.

    Args:
        summary: result of the run.
        started: start of the run, with its time zone.
        models: name, version, digest and fingerprint of each model.
        settings: settings of the run as JSON values; secrets in addresses are left out.
    """
    return {
        "schema": SCHEMA,
        "run_id": summary.run_id,
        "started": started.isoformat(timespec="seconds"),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "lines": summary.lines,
        "photos": summary.total.photos,
        "known_photos": summary.known,
        "rows": summary.total.rows,
        "rejected": summary.rejected,
        "statuses": dict(sorted(summary.total.statuses.items())),
        "models": [_describe_decisions(model, summary.total) for model in models],
        "embeddings": summary.total.embeddings.to_json(),
        "seconds": summary.seconds,
        "shards": summary.worked_shards,
        "skipped_shards": summary.skipped_shards,
        "price_per_hour": summary.price_per_hour,
        "this_run": summary.throughput(summary.of_id),
        "all_runs": summary.throughput(summary.total),  # including the runs that finished the skipped shards
        "settings": redact({name: value for name, value in settings.items() if name != "configuration"}),
        "configuration": redact(settings.get("configuration", {})),
        "cpu": get_cpu_model(),
        "packages": get_package_versions(_PACKAGES),
    }


def encode_run(run: RunRecord) -> bytes:
    """Return the content of run.json."""
    return f"{json.dumps(run, indent=2, ensure_ascii=False)}\n".encode()


def read_run(uri: str) -> RunRecord:
    """Read a run.json, or the record of a run, of this or an earlier version of hubhead.

    Raises:
        OSError: the file cannot be read.
        InputError: its content is damaged, or of a newer layout.
    """
    return FORMAT.parse(files.read(uri), uri, remedy="Delete it if its run was interrupted.")


def _describe_decisions(model: Mapping[str, Any], stats: Stats) -> ModelRecord:
    counts = stats.models.get(f"{model['name']}/{model['version']}", DecisionCounts())
    return cast("ModelRecord", {**model, **counts.to_json()})


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None
