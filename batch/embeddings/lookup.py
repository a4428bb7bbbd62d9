"""Lookup table from fixed-width keys to values, in bounded memory whatever the number of keys.

The table is a log-structured merge tree (O'Neil et al., The log-structured merge-tree, 1996): a list of
sorted runs, of which the older ones are longer. Runs of more than `SPILL_KEYS` keys are kept in
memory-mapped temporary files.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Keys = NDArray[np.bytes_]
Values = NDArray[Any]

SPILL_KEYS = 1 << 19
"""Number of keys from which a run is kept in a memory-mapped file."""

_BLOCK_KEYS = 1 << 17
"""Keys merged at a time."""


@dataclass(frozen=True)
class _Run:
    """Sorted keys with their values; equal keys keep the order in which they were added."""

    keys: Keys
    values: Values


class Lookup:
    """Map from keys to values whose first value per key counts.

    Two numpy arrays per run take 40 bytes for a sha256 and its value, a fraction of a dict. A run is
    merged with its predecessor when it reaches half of its length. So the number of runs grows with
    the logarithm of the number of keys, and a key is copied some twenty times at most.

    Args:
        width: bytes per key.
        value: dtype of the values.
        spill: number of keys from which a run is kept in a memory-mapped file.
    """

    def __init__(self, width: int, value: Any, *, spill: int = SPILL_KEYS) -> None:
        self._key, self._value = np.dtype(f"S{width}"), np.dtype(value)
        self._spill = spill
        self._runs: list[_Run] = []  # oldest and longest first

    def __len__(self) -> int:
        return sum(len(run.keys) for run in self._runs)

    def add(self, keys: Keys, values: Values) -> None:
        """Add keys with their values. A key that exists keeps its first value."""
        if not len(keys):
            return
        # A stable sort, here and in the merges below, keeps equal keys in the order of their addition.
        order = np.argsort(keys, kind="stable")
        self._runs.append(self._build_run([(keys[order], values[order])], len(keys)))
        # Invariant: each run is more than twice as long as its successor.
        while len(self._runs) > 1 and len(self._runs[-2].keys) <= 2 * len(self._runs[-1].keys):
            newer, older = self._runs.pop(), self._runs.pop()
            merged = _merge_runs(older, newer)
            self._runs.append(self._build_run(merged, len(older.keys) + len(newer.keys)))

    def find(self, keys: Keys) -> tuple[Values, NDArray[np.bool_]]:
        """Return the first value of each key, and a mask of the keys that exist.

        Values of keys that do not exist are zero.
        """
        values, found = np.zeros(len(keys), self._value), np.zeros(len(keys), bool)
        for run in self._runs:  # oldest first, so that the first value of a key is found first
            # searchsorted returns the leftmost of equal keys, which was added first. A position past
            # the end is clipped to the last key, which then differs from the key searched for.
            at = np.minimum(np.searchsorted(run.keys, keys), len(run.keys) - 1)
            here = (run.keys[at] == keys) & ~found
            values[here] = run.values[at[here]]
            found |= here
        return values, found

    def filter(self, wanted: Callable[[Values], NDArray[np.bool_]]) -> None:
        """Remove every entry whose value is not wanted.

        Args:
            wanted: returns a mask for an array of values.
        """
        runs = []
        for run in self._runs:
            count = sum(int(wanted(values).sum()) for _, values in _iter_blocks(run))
            if count == len(run.keys):
                runs.append(run)
            elif count:
                blocks = ((keys, values, wanted(values)) for keys, values in _iter_blocks(run))
                runs.append(self._build_run(((k[kept], v[kept]) for k, v, kept in blocks), count))
        self._runs = runs

    def _build_run(self, parts: Iterable[tuple[Keys, Values]], length: int) -> _Run:
        """Return a run of consecutive sorted parts, in memory or memory-mapped.

        Args:
            parts: keys and values; the keys are sorted across all parts.
            length: number of keys in all parts.
        """
        if length < self._spill:
            keys, values = zip(*parts, strict=True)
            return _Run(np.concatenate(keys), np.concatenate(values))
        with tempfile.TemporaryFile() as key_file, tempfile.TemporaryFile() as value_file:
            for keys_part, values_part in parts:
                key_file.write(keys_part.tobytes())
                value_file.write(values_part.tobytes())
            key_file.flush()
            value_file.flush()
            # The files have no name. Their mappings stay valid after the handles are closed, and the
            # space is freed with the mappings. The system may evict mapped pages under memory pressure.
            return _Run(
                np.asarray(np.memmap(key_file, self._key, "r", shape=(length,))),
                np.asarray(np.memmap(value_file, self._value, "r", shape=(length,))),
            )


def _iter_blocks(run: _Run) -> Iterator[tuple[Keys, Values]]:
    for start in range(0, len(run.keys), _BLOCK_KEYS):
        yield run.keys[start : start + _BLOCK_KEYS], run.values[start : start + _BLOCK_KEYS]


def _merge_runs(older: _Run, newer: _Run) -> Iterator[tuple[Keys, Values]]:
    """Yield two runs merged into sorted parts, one for each block of the older run.

    Equal keys of the older run come first, so that their values win in `Lookup.find`.
    """
    done = 0  # keys of the newer run merged so far
    for keys, values in _iter_blocks(older):
        # All keys of the newer run up to the last key of this block belong to this part; the stable
        # sort puts them behind equal keys of the block.
        end = int(np.searchsorted(newer.keys, keys[-1], side="right"))
        both = np.concatenate([keys, newer.keys[done:end]])
        order = np.argsort(both, kind="stable")
        yield both[order], np.concatenate([values, newer.values[done:end]])[order]
        done = end
    yield newer.keys[done:], newer.values[done:]
