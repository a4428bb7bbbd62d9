"""The output of a scoring run: `scores/*.parquet`, and `run.json` beside it when all is done.

The rows stand in a directory of their own because Parquet readers that are given a
directory open every file in it. `_hubhead/` keeps what a later run needs to go on.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from batch import files, scoring
from batch.shards import Shard
from batch.stats import Stats
from serving.errors import OutputError

_log = logging.getLogger(__name__)

SCHEMA = 1
RUN_FILE = "run.json"
WORK_DIRECTORY = "_hubhead"
"""Parquet readers leave names with a leading underscore out."""

_SCORES_DIRECTORY = "scores"
_IDENTITY_FILE = "input.json"
_PACKAGES = ("hubhead", "tensorflow", "apache-beam", "pyarrow", "numpy")
_MILLION = 1_000_000


@dataclass(frozen=True)
class Output:
    """An output directory, local or remote."""

    directory: str

    @property
    def scores(self) -> str:
        """The Parquet dataset."""
        return files.join(self.directory, _SCORES_DIRECTORY)

    @property
    def work(self) -> str:
        """What is between runs; no reader looks at it."""
        return files.join(self.directory, WORK_DIRECTORY)

    @property
    def plan(self) -> str:
        """The open shards of a run."""
        return files.join(self.work, "plan")

    def shard_file(self, shard_id: str) -> str:
        """The file of a shard's rows."""
        return files.join(self.scores, _shard_name(shard_id))

    def claim(self, identity: dict[str, Any], *, overwrite: bool) -> None:
        """Make sure that the directory is empty or holds this very job, and can be written.

        Args:
            identity: photos and model of the job, as JSON values.
            overwrite: take it over from another job; files that are not hubhead's stay.

        Raises:
            OutputError: it holds another job or something else, or cannot be written.
        """
        path = files.join(self.work, _IDENTITY_FILE)
        found = _read_json(path)
        if found is None and set(files.names(self.directory)) - {WORK_DIRECTORY}:
            raise OutputError(
                f"{self.directory} is not empty and holds no scores of hubhead.",
                remedy="Give another --output.",
            )
        if found not in (None, identity) and not overwrite:
            raise OutputError(
                f"{self.directory} holds other scores: {_difference(found, identity)}.",
                remedy="Give another --output, or replace them with --overwrite.",
            )
        files.check_writable(self.work)
        # Until this run is through, no run.json may say that the rows are complete.
        files.remove(files.join(self.directory, RUN_FILE))
        files.write(path, json.dumps(identity, indent=2, ensure_ascii=False).encode())

    def finished(self, shards: Sequence[Shard]) -> dict[str, Stats]:
        """The shards that are done; files of no shard of this plan, and torn ones, are removed."""
        names = {_shard_name(shard.id): shard.id for shard in shards}
        done = {}
        for name in files.names(self.scores):
            uri = files.join(self.scores, name)
            if name not in names:
                if _is_ours(name):
                    files.remove(uri)
            elif (stats := scoring.read_stats(uri)) is not None:
                done[names[name]] = stats
            else:
                _log.warning("%s is torn; its photos are scored again.", uri)
                files.remove(uri)
        return done


@dataclass(frozen=True)
class Summary:
    """What a run did; `run.json` says the same.

    Attributes:
        path: the output directory, or the store where only embeddings were made.
        total: all photos of the input.
        this_run: the photos of the shards that this run worked on.
        skipped_shards: how many shards were done before.
        worked_shards: how many were done now.
        seconds: wall time.
        price_per_hour: of one machine, in the currency of the user; None where not given.
    """

    path: str
    total: Stats
    this_run: Stats
    skipped_shards: int
    worked_shards: int
    seconds: float
    price_per_hour: float | None = None

    @property
    def run_file(self) -> str:
        """Where run.json is."""
        return files.join(self.path, RUN_FILE)

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
            "photos": self.total.photos,
            "rejected": self.rejected,
            "statuses": dict(sorted(self.total.statuses.items())),
            "labels": dict(sorted(self.total.labels.items())),
            "abstained": self.total.abstained,
        }

    def figures(self, stats: Stats) -> dict[str, Any]:
        """A part of run.json that is about time and money.

        What is counted is the time inside the shards without loading the model, which does not
        grow with the number of photos; the cost takes one machine to work on one shard at a time.
        """
        hours = _ratio(stats.elapsed / 3600 * _MILLION, stats.photos)
        price = self.price_per_hour
        return {
            "rows_written": stats.photos,
            "rows_per_second": _ratio(stats.photos, stats.elapsed),
            "photos_embedded": stats.embedded,
            "photos_embedded_per_second": _ratio(stats.embedded, stats.seconds.get("embed", 0.0)),
            "reused_embeddings": stats.reused,
            "bytes_read": stats.read_bytes,
            "seconds_by_stage": stats.seconds,
            "core_seconds_per_million": _ratio(stats.core_seconds * _MILLION, stats.photos),
            "cost_per_million": None if hours is None or price is None else hours * price,
        }


def check_complete(shards: Sequence[Shard], finished: dict[str, Stats]) -> None:
    """Hold the rows that are there against the input.

    Raises:
        OutputError: a shard has no file, or not a row for each of its photos.
    """
    lacking = [
        shard.id
        for shard in shards
        if shard.id not in finished
        or not len(shard.photos) == finished[shard.id].photos == finished[shard.id].statuses.total()
    ]
    if lacking:
        raise OutputError(
            f"{len(lacking)} of {len(shards)} shards are not complete although the Beam job ended"
            f" (first: {lacking[0]}).",
            remedy="Run the same command again: what is finished is kept.",
        )


def write_run(
    summary: Summary, *, started: datetime, model: dict[str, Any], settings: dict[str, Any]
) -> None:
    """Write run.json, which says that the scores are complete."""
    run = {
        "schema": SCHEMA,
        "started": started.isoformat(timespec="seconds"),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        **summary.counts(),
        "seconds": summary.seconds,
        "shards": summary.worked_shards,
        "skipped_shards": summary.skipped_shards,
        "price_per_hour": summary.price_per_hour,
        "this_run": summary.figures(summary.this_run),
        "all_runs": summary.figures(summary.total),  # this one and those that made the skipped shards
        "model": model,
        "settings": settings,
        "packages": _package_versions(),
    }
    text = json.dumps(run, indent=2, ensure_ascii=False) + "\n"
    files.write(summary.run_file, text.encode())


def _shard_name(shard_id: str) -> str:
    return f"scores-{shard_id}.parquet"


def _is_ours(name: str) -> bool:
    return name.startswith(("scores-", files.TEMPORARY_PREFIX))


def _read_json(uri: str) -> Any:
    """The content, None where there is no file or not a whole one."""
    try:
        return json.loads(files.read(uri))
    except (OSError, ValueError):
        return None


def _difference(found: Any, wanted: dict[str, Any]) -> str:
    if not isinstance(found, dict):
        return "of an unknown kind"
    return "; ".join(
        f"{key} was {found.get(key)}, now {value}" for key, value in wanted.items() if found.get(key) != value
    )


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
