"""Graph of near-duplicates, whose memory does not grow with the number of pairs."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

_Floats = NDArray[np.float32]
_Ints = NDArray[np.int64]

_MAX_LINKS = 1 << 20
"""Links that are collected before they are reduced to one per row."""


class SimilarityGraph:
    """Links between similar rows, and each row's highest cosine with another one.

    Args:
        count: number of rows.
    """

    def __init__(self, count: int) -> None:
        self.nearest: _Floats = np.zeros(count, np.float32)
        self._count = count
        self._pairs: list[_Ints] = []
        self._held = 0

    def add(self, left: _Ints, right: _Ints, cosines: _Floats, threshold: float) -> None:
        """Add links for the cosines [L,R] of some rows with others that reach the threshold."""
        hits = cosines >= threshold
        hits &= left[:, None] != right[None, :]
        at, to = np.nonzero(hits)
        if not len(at):
            return
        np.maximum.at(self.nearest, left[at], cosines[at, to])
        np.maximum.at(self.nearest, right[to], cosines[at, to])
        # A block full of near-duplicates is reduced to a spanning tree: one link per row instead of one
        # per pair, so that memory does not grow with the number of pairs.
        parts = find_components(len(left) + len(right), at, to + len(left))
        rows = np.concatenate([left, right])
        touched = np.unique(np.concatenate([at, to + len(left)]))
        self._append(np.stack([rows[touched], rows[touched[_first_row(parts[touched])]]]))
        if self._held > max(_MAX_LINKS, 2 * self._count):
            parts = self._components()
            pairs, self._pairs, self._held = np.stack([np.arange(self._count), _first_row(parts)]), [], 0
            self._append(pairs)

    def groups(self) -> Iterator[_Ints]:
        """Yield the rows of each group of two or more, in the order of their first rows."""
        first = _first_row(self._components())
        joined = np.flatnonzero(np.bincount(first, minlength=self._count)[first] > 1)
        order = joined[np.argsort(first[joined], kind="stable")]
        yield from np.split(order, np.flatnonzero(np.diff(first[order])) + 1) if len(order) else ()

    def _append(self, pairs: _Ints) -> None:
        pairs = pairs[:, pairs[0] != pairs[1]]
        self._pairs.append(pairs)
        self._held += pairs.shape[1]

    def _components(self) -> _Ints:
        at, to = np.concatenate([np.empty((2, 0), np.int64), *self._pairs], axis=1)
        return find_components(self._count, at, to)


def find_components(count: int, at: _Ints, to: _Ints) -> _Ints:
    """Return the number of each node's connected component, int64 [count].

    Args:
        count: number of nodes.
        at: int64 [L], first node of each link.
        to: int64 [L], second node of each link.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(at), np.int8), (at, to)), shape=(count, count))
    return connected_components(graph, directed=False)[1].astype(np.int64)


def _first_row(parts: _Ints) -> _Ints:
    """Return for each node the lowest node of its component."""
    _, first, part = np.unique(parts, return_index=True, return_inverse=True)
    return first[part]
