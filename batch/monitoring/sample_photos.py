"""Sample photos of each label and of each reason for rejection, the same in every run.

For each label, the photos whose content has the lowest hash are chosen; for each status of rejected
photos, the first ones by uri. So the choice does not depend on how photos are split into shards, can
be merged, and never contains two copies of a photo.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import groupby, islice
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import numpy as np

from batch.monitoring.json_record import JsonRecord
from serving.contract import Status

if TYPE_CHECKING:
    import pyarrow as pa

MAX_PER_LABEL = 4
"""Sample photos of each label."""

MAX_PER_STATUS = 5
"""Sample photos of each status of rejected photos."""

MAX_LABELS = 32
"""Labels of a shard that get sample photos, most frequent first; a model may have thousands."""

_KEY_DIGITS = 16


@dataclass(frozen=True, order=True)
class Example:
    """A sample photo, ordered by key and uri.

    Attributes:
        key: first digits of the sha256 of the content; "" if the photo was rejected.
        uri: address of the photo.
        score: score of its label; None if the photo was rejected.
        detail: reason for the rejection; None if the photo was accepted or no reason is known.
    """

    key: str
    uri: str
    score: float | None = field(default=None, compare=False)
    detail: str | None = field(default=None, compare=False)


ExamplesByName = Mapping[str, tuple[Example, ...]]
"""Sample photos by label, or by status."""


@dataclass(frozen=True)
class Examples(JsonRecord):
    """Sample photos of a shard or a run, mergeable by addition.

    Attributes:
        models: sample photos of each label, by the model's `name/version`.
        rejected: sample photos of each status of rejected photos.
    """

    models: Mapping[str, ExamplesByName] = field(default_factory=dict)
    rejected: ExamplesByName = field(default_factory=dict)

    def __add__(self, other: Examples) -> Examples:
        names = {**self.models, **other.models}
        return Examples(
            {
                name: _merge(self.models.get(name, {}), other.models.get(name, {}), MAX_PER_LABEL)
                for name in names
            },
            _merge(self.rejected, other.rejected, MAX_PER_STATUS),
        )


def choose_examples(tables: Mapping[str, pa.Table]) -> Examples:
    """Choose the sample photos of a shard.

    Args:
        tables: rows of the shard, by the model's `name/version`.
    """
    rejected = [Examples({}, _choose_rejected(table)) for table in tables.values()]
    return sum(rejected, Examples({name: _choose_by_label(table) for name, table in tables.items()}))


def _choose_by_label(table: Any) -> dict[str, tuple[Example, ...]]:
    import pyarrow.compute as pc

    table = table.select(["uri", "sha256", "label", "score"]).filter(pc.is_valid(table["label"]))
    order = table.take(pc.sort_indices(table, [("sha256", "ascending"), ("uri", "ascending")]))
    labels: Any = order["label"].combine_chunks().dictionary_encode()
    names, codes = labels.dictionary.to_pylist(), labels.indices.to_numpy()
    contents = order["sha256"].combine_chunks()
    # Sorted by digest, copies of a photo are adjacent: only the first of each is eligible.
    is_first = np.ones(len(contents), bool)
    is_first[1:] = pc.not_equal(contents[1:], contents[:-1]).to_numpy(zero_copy_only=False)
    counts = np.bincount(codes, minlength=len(names))
    frequent = sorted(range(len(names)), key=lambda code: (-counts[code], names[code]))[:MAX_LABELS]
    found = {}
    for code in sorted(frequent, key=names.__getitem__):
        rows = order.take(np.flatnonzero((codes == code) & is_first)[:MAX_PER_LABEL])
        found[names[code]] = tuple(
            Example(row["sha256"][:_KEY_DIGITS], row["uri"], row["score"]) for row in rows.to_pylist()
        )
    return found


def _choose_rejected(table: Any) -> dict[str, tuple[Example, ...]]:
    import pyarrow as pa
    import pyarrow.compute as pc

    usable = pa.array([status.value for status in Status if status.usable])
    columns = table.select(["uri", "status", "detail"])
    rejected = columns.filter(pc.invert(pc.is_in(table["status"], value_set=usable)))
    rows = rejected.sort_by([("status", "ascending"), ("uri", "ascending")]).to_pylist()
    return {
        status: tuple(Example("", row["uri"], None, row["detail"]) for row in islice(group, MAX_PER_STATUS))
        for status, group in groupby(rows, key=itemgetter("status"))
    }


def _merge(one: ExamplesByName, other: ExamplesByName, limit: int) -> dict[str, tuple[Example, ...]]:
    """Return the first `limit` distinct photos of each name; of several copies one is kept."""
    found = {}
    for name in sorted({*one, *other}):
        distinct: dict[str, Example] = {}
        for example in sorted((*one.get(name, ()), *other.get(name, ()))):
            distinct.setdefault(example.key or example.uri, example)
        found[name] = tuple(distinct.values())[:limit]
    return found
