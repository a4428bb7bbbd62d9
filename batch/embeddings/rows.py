"""Rows of the embedding store in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from serving.contract import ENGINE_TOLERANCE, Status

T = TypeVar("T")


@dataclass(frozen=True)
class Embeddings:
    """Output of the backbone for N distinct photo contents, one row each.

    Attributes:
        shas: N sha256 digests of 32 bytes.
        vectors: embeddings, float16 [N,D]; zeros where the status is not usable.
        statuses: N statuses.
        details: N reasons for rejection; None for accepted photos.
        heights, widths: size of the upright photo in pixels, int32 [N]; 0 where unknown.
    """

    shas: Sequence[bytes]
    vectors: NDArray[np.float16]
    statuses: Sequence[Status]
    details: Sequence[str | None]
    heights: NDArray[np.int32]
    widths: NDArray[np.int32]

    def row_by_digest(self) -> dict[bytes, int]:
        """Return the row number of each sha256."""
        return {sha: row for row, sha in enumerate(self.shas)}


def group_by_rows(items: Iterable[T], count: Callable[[T], int], rows: int) -> Iterator[list[T]]:
    """Yield groups of consecutive items that have at least `rows` rows together; the last may have fewer.

    Args:
        items: items such as files.
        count: returns the number of rows of an item.
        rows: rows per group.
    """
    group: list[T] = []
    total = 0
    for item in items:
        group.append(item)
        total += count(item)
        if total >= rows:
            yield group
            group, total = [], 0
    if group:
        yield group


def hash_photo(content: bytes) -> bytes:
    """Return the sha256 of a photo's content, which is its key in the store."""
    return hashlib.sha256(content).digest()


def bound_difference(one: NDArray[np.float16], other: NDArray[np.float16]) -> NDArray[np.float64]:
    """Return the differences float64 [D] that two engines may have in an embedding float16 [D].

    Before rounding they differ by at most ENGINE_TOLERANCE of the largest entry; rounding to float16 adds a
    unit in the last place.
    """
    sizes = np.nan_to_num(np.maximum(np.abs(one), np.abs(other)), posinf=0.0)
    tolerance = ENGINE_TOLERANCE * max(1.0, float(sizes.max(initial=0.0)))
    return np.spacing(sizes).astype(np.float64) + tolerance
