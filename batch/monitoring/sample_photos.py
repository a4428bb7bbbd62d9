"""A few photos that stand for each label and for each reason of a rejection, chosen alike by every run.

Chosen are those whose content has the lowest hash, and of the rejected ones the first by uri: a choice
that does not depend on how the photos were cut into shards, that can be merged, and in which no picture
is shown twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from serving.contract import Status

if TYPE_CHECKING:
    import pyarrow as pa

MAX_PER_LABEL = 4
MAX_PER_STATUS = 5
MAX_LABELS = 32
"""The most frequent labels of a shard; a model may have thousands."""

_KEY_DIGITS = 16


@dataclass(frozen=True, order=True)
class Example:
    """One photo.

    Attributes:
        key: what it was chosen by before its uri: the beginning of its content's hash, "" if rejected.
        uri: of the photo.
        score: of its label; None where it was rejected.
        detail: why it was rejected; None where it was not, or nothing more is known.
    """

    key: str
    uri: str
    score: float | None = field(default=None, compare=False)
    detail: str | None = field(default=None, compare=False)


Chosen = Mapping[str, tuple[Example, ...]]


@dataclass(frozen=True)
class Examples:
    """The photos chosen.

    Attributes:
        models: by `name/version`, then label.
        rejected: by status.
    """

    models: Mapping[str, Chosen] = field(default_factory=dict)
    rejected: Chosen = field(default_factory=dict)

    def __add__(self, other: Examples) -> Examples:
        names = {**self.models, **other.models}
        return Examples(
            {
                name: _merged(self.models.get(name, {}), other.models.get(name, {}), MAX_PER_LABEL)
                for name in names
            },
            _merged(self.rejected, other.rejected, MAX_PER_STATUS),
        )

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        models = {name: _listed(self.models[name]) for name in sorted(self.models)}
        return {"models": models, "rejected": _listed(self.rejected)}

    @classmethod
    def from_json(cls, said: Mapping[str, Any]) -> Self:
        """Read what `to_json` gave.

        Raises:
            ValueError, TypeError, KeyError, AttributeError: it is something else.
        """
        models = {name: _chosen(chosen) for name, chosen in said["models"].items()}
        return cls(models, _chosen(said["rejected"]))


def choose_examples(tables: Mapping[str, pa.Table]) -> Examples:
    """The photos that stand for a shard.

    Args:
        tables: its rows, by the `name/version` of the model.
    """
    rejected = [Examples({}, _rejected(table)) for table in tables.values()]
    return sum(rejected, Examples({name: _of_labels(table) for name, table in tables.items()}))


def _of_labels(table: Any) -> dict[str, tuple[Example, ...]]:
    import pyarrow.compute as pc

    table = table.select(["uri", "sha256", "label", "score"]).filter(pc.is_valid(table["label"]))
    order = table.take(pc.sort_indices(table, [("sha256", "ascending"), ("uri", "ascending")]))
    names, codes = _codes(order["label"])
    _, contents = _codes(order["sha256"])
    is_first = np.ones(len(contents), bool)  # of its content, since copies stand side by side
    is_first[1:] = contents[1:] != contents[:-1]
    counts = np.bincount(codes, minlength=len(names))
    frequent = sorted(range(len(names)), key=lambda code: (-counts[code], names[code]))[:MAX_LABELS]
    found = {}
    for code in sorted(frequent, key=names.__getitem__):
        rows = order.take(np.flatnonzero((codes == code) & is_first)[:MAX_PER_LABEL])
        found[names[code]] = tuple(
            Example(row["sha256"][:_KEY_DIGITS], row["uri"], row["score"]) for row in rows.to_pylist()
        )
    return found


def _codes(column: Any) -> tuple[list[str], Any]:
    """The distinct values, and which of them each row has."""
    encoded = column.combine_chunks().dictionary_encode()
    return encoded.dictionary.to_pylist(), encoded.indices.to_numpy()


def _rejected(table: Any) -> dict[str, tuple[Example, ...]]:
    import pyarrow as pa
    import pyarrow.compute as pc

    usable = pa.array([status.value for status in Status if status.usable])
    refused = table.select(["uri", "status", "detail"]).filter(
        pc.invert(pc.is_in(table["status"], value_set=usable))
    )
    found: dict[str, list[Example]] = {}
    for row in refused.sort_by("uri").to_pylist():
        chosen = found.setdefault(row["status"], [])
        if len(chosen) < MAX_PER_STATUS:
            chosen.append(Example("", row["uri"], None, row["detail"]))
    return {status: tuple(chosen) for status, chosen in sorted(found.items())}


def _merged(one: Chosen, other: Chosen, most: int) -> dict[str, tuple[Example, ...]]:
    """The first `most` of each name; of copies of a photo one."""
    found = {}
    for name in sorted({*one, *other}):
        distinct: dict[str, Example] = {}
        for example in sorted((*one.get(name, ()), *other.get(name, ()))):
            distinct.setdefault(example.key or example.uri, example)
        found[name] = tuple(distinct.values())[:most]
    return found


def _listed(chosen: Chosen) -> dict[str, Any]:
    return {name: [vars(example) for example in chosen[name]] for name in sorted(chosen)}


def _chosen(said: Mapping[str, Any]) -> dict[str, tuple[Example, ...]]:
    return {name: tuple(Example(**example) for example in examples) for name, examples in said.items()}
