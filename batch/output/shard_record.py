"""Record of a finished shard, the keys of its photos, and the names of both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from batch.monitoring.json_record import JsonRecord
from batch.monitoring.stats import Stats
from batch.shards.scored_index import SUFFIX

WORK_DIRECTORY = "_hubhead"
"""Directory for everything but rows and results; Parquet readers ignore names with a leading underscore."""

UNREADABLE = "~unreadable"
"""Suffix of key files of photos that the next run retries; `~` cannot occur in the id of a run."""


@dataclass(frozen=True)
class ScoredKeys:
    """Keys (batch.shards.scored_index) of the photos of a shard.

    Attributes:
        keys: keys of photos with a final result.
        retryable: keys of photos that the next run tries again, such as those that could not be read.
    """

    keys: Sequence[bytes]
    retryable: Sequence[bytes] = ()


@dataclass(frozen=True)
class ShardRecord(JsonRecord):
    """Record of a finished shard.

    Attributes:
        files: size in bytes of each of its files, by path below `scores/`.
        stats: statistics of the shard.
    """

    files: Mapping[str, int]
    stats: Stats


def run_name(run_id: str) -> str:
    """Return the name of the record of a run."""
    return f"{WORK_DIRECTORY}/runs/{run_id}.json"


def record_name(shard_id: str, run_id: str) -> str:
    """Return the name of the record of a shard."""
    return f"{WORK_DIRECTORY}/shards/{shard_id}.{run_id}.json"


def key_names(model: str, shard_id: str, run_id: str) -> tuple[str, str]:
    """Return the names of a shard's key files: of scored photos, and of those that the next run retries."""
    name = f"{WORK_DIRECTORY}/keys/{model}/{shard_id}.{run_id}"
    return f"{name}{SUFFIX}", f"{name}{UNREADABLE}{SUFFIX}"
