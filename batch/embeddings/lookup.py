"""Fixed-width keys with a value each, in bounded memory whatever their number."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Keys = NDArray[np.bytes_]
Values = NDArray[Any]

SPILL = 1 << 19
"""Keys from which on a run stands in a mapped file instead of memory."""

_BLOCK = 1 << 17
"""Keys that are merged at a time."""


@dataclass(frozen=True)
class _Run:
    """Sorted keys with their values; equal keys in the order in which they came."""

    keys: Keys
    values: Values


class Lookup:
    """Sorted runs of keys, merged as they grow, as in a log-structured merge tree.

    numpy instead of a dict: 40 bytes a sha256 and its place. A run is merged with the one before
    it once it has half its length, so there are few of them, and a key is moved some twenty times
    at most. Long runs are mapped from a file without a name, whose pages the system may take back.

    Args:
        width: bytes a key.
        value: dtype of the values.
        spill: keys from which on a run stands in a mapped file.
    """

    def __init__(self, width: int, value: Any, *, spill: int = SPILL) -> None:
        self._key, self._value = np.dtype(f"S{width}"), np.dtype(value)
        self._spill = spill
        self._runs: list[_Run] = []

    def __len__(self) -> int:
        return sum(len(run.keys) for run in self._runs)

    def add(self, keys: Keys, values: Values) -> None:
        """Add keys, behind those that are equal to them and came earlier."""
        if not len(keys):
            return
        order = np.argsort(keys, kind="stable")
        self._runs.append(self._made([(keys[order], values[order])], len(keys)))
        while len(self._runs) > 1 and len(self._runs[-2].keys) <= 2 * len(self._runs[-1].keys):
            second, first = self._runs.pop(), self._runs.pop()
            self._runs.append(self._made(_merged(first, second), len(first.keys) + len(second.keys)))

    def find(self, keys: Keys) -> tuple[Values, NDArray[np.bool_]]:
        """The value of each key, the one that came first, and whether there is one."""
        values, found = np.zeros(len(keys), self._value), np.zeros(len(keys), bool)
        for run in self._runs:
            at = np.minimum(np.searchsorted(run.keys, keys), len(run.keys) - 1)
            here = (run.keys[at] == keys) & ~found
            values[here] = run.values[at[here]]
            found |= here
        return values, found

    def keep(self, wanted: Callable[[Values], NDArray[np.bool_]]) -> None:
        """Forget every key whose value is not wanted."""
        runs = []
        for run in self._runs:
            kept = np.concatenate([wanted(values) for _, values in _blocks(run)])
            if kept.all():
                runs.append(run)
            elif kept.any():
                parts = (
                    (keys[kept[start : start + len(keys)]], values[kept[start : start + len(keys)]])
                    for start, (keys, values) in zip(range(0, len(kept), _BLOCK), _blocks(run), strict=True)
                )
                runs.append(self._made(parts, int(kept.sum())))
        self._runs = runs

    def items(self) -> Iterator[tuple[Keys, Values]]:
        """All keys and values in blocks, sorted within each."""
        for run in self._runs:
            yield from _blocks(run)

    def _made(self, parts: Iterable[tuple[Keys, Values]], length: int) -> _Run:
        """A run of sorted parts, in memory or mapped."""
        if length < self._spill:
            keys, values = zip(*parts, strict=True)
            return _Run(np.concatenate(keys), np.concatenate(values))
        with tempfile.TemporaryFile() as key_file, tempfile.TemporaryFile() as value_file:
            for keys_part, values_part in parts:
                key_file.write(keys_part.tobytes())
                value_file.write(values_part.tobytes())
            key_file.flush()
            value_file.flush()
            # The maps outlive the files' handles, and the files go with the maps.
            return _Run(
                np.asarray(np.memmap(key_file, self._key, "r", shape=(length,))),
                np.asarray(np.memmap(value_file, self._value, "r", shape=(length,))),
            )


def _blocks(run: _Run) -> Iterator[tuple[Keys, Values]]:
    for start in range(0, len(run.keys), _BLOCK):
        yield run.keys[start : start + _BLOCK], run.values[start : start + _BLOCK]


def _merged(first: _Run, second: _Run) -> Iterator[tuple[Keys, Values]]:
    """The parts of two runs as one; the keys of `first` come before equal ones of `second`."""
    done = 0
    for keys, values in _blocks(first):
        end = int(np.searchsorted(second.keys, keys[-1], side="right"))
        both = np.concatenate([keys, second.keys[done:end]])
        order = np.argsort(both, kind="stable")
        yield both[order], np.concatenate([values, second.values[done:end]])[order]
        done = end
    yield second.keys[done:], second.values[done:]
