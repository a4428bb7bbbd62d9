"""Record of a finished shard, and the keys of its photos."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from batch.monitoring.stats import Stats


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
class ShardRecord:
    """Record of a finished shard.

    Attributes:
        files: size in bytes of each of its files, by path below `scores/`.
        stats: statistics of the shard.
    """

    files: Mapping[str, int]
    stats: Stats

    def to_json(self) -> bytes:
        """Return the record as the bytes of a JSON object."""
        return json.dumps({"files": dict(self.files), "stats": json.loads(self.stats.to_json())}).encode()

    @classmethod
    def from_json(cls, content: bytes) -> ShardRecord:
        """Parse the output of `to_json`.

        Raises:
            ValueError, TypeError, KeyError, AttributeError: the content has another form.
        """
        values = json.loads(content)
        return cls(dict(values["files"]), Stats.from_json(json.dumps(values["stats"])))
