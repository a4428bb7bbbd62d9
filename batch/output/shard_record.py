"""Record of a finished shard, the keys of its photos, and the names of both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from batch.monitoring.json_record import JsonRecord
from batch.monitoring.stats import Stats
from batch.shards.scored_index import SUFFIX

WORK_DIRECTORY = "_hubhead"
"""Directory for everything but rows and results; Parquet readers ignore names with a leading underscore."""

UNREADABLE = "~unreadable"
"""Suffix of key files of photos that the next run retries."""

_TOKEN = "~"
"""Separator of the token, which cannot occur in the id of a run."""


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


class PublishedShard(NamedTuple):
    """A shard in the dataset: the name of its record and of its keys.

    No name recurs, since it has the token of the attempt. So a process that deletes one late, after another
    run published the same shard again, deletes nothing of that run.

    Attributes:
        id: id of the shard.
        run_id: id of the run that finished it.
        token: token of the attempt that finished it; "" in outputs of earlier versions.
    """

    id: str
    run_id: str
    token: str = ""

    @classmethod
    def parse(cls, name: str) -> PublishedShard:
        """Return the shard of a name."""
        shard_id, _, rest = name.partition(".")
        run_id, _, token = rest.partition(_TOKEN)
        return cls(shard_id, run_id, token)

    @property
    def name(self) -> str:
        """The name that its record and its keys have, without suffixes."""
        return f"{self.id}.{self.run_id}" + (f"{_TOKEN}{self.token}" if self.token else "")

    @property
    def record(self) -> str:
        """Name of its record, relative to the output."""
        return f"{WORK_DIRECTORY}/shards/{self.name}.json"

    def keys(self, model: str) -> tuple[str, str]:
        """Return the names of its key files: of scored photos, and of those that the next run retries."""
        name = f"{key_directory(model)}/{self.name}"
        return f"{name}{SUFFIX}", f"{name}{UNREADABLE}{SUFFIX}"


def key_directory(model: str) -> str:
    """Return the name of the directory of the keys of what a model has scored.

    Args:
        model: digest of the model.
    """
    return f"{WORK_DIRECTORY}/keys/{model}"
