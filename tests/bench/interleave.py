"""Variants that take turns, so that what slows the machine slows all of them alike.

TensorFlow's thread pools are fixed for a process, so each setting has a process of its own,
which waits while the others are measured. Each figure is the median over the rounds; on a shared
machine it is the ratios that can be trusted.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from tests.bench.worker import Prepare, Worker

DEFAULT_THREADS = "default threads"
ONE_THREAD_AN_OP = "one thread an op"


@dataclass(frozen=True)
class Variant:
    """A name for the table, and the setting of TensorFlow's threads that it needs."""

    name: str
    setting: str


@dataclass(frozen=True)
class Figure:
    """One row of the table: photos/s, the median of the rounds."""

    name: str
    photos_per_second: float
    lowest: float
    highest: float
    ratio: float


def measure(variants: Sequence[Variant], rounds: int, base: str, prepare: Prepare) -> list[Figure]:
    """Let the variants take turns; the first round warms up and does not count."""
    workers = {setting: Worker(setting, prepare) for setting in {variant.setting for variant in variants}}
    rates: dict[str, list[float]] = {variant.name: [] for variant in variants}
    for turn in range(rounds + 1):
        for variant in variants:
            rate = workers[variant.setting].run(variant.name)
            print(f"round {turn} of {rounds}: {rate:8.1f} photos/s  {variant.name}", flush=True)
            if turn:
                rates[variant.name].append(rate)
    for worker in workers.values():
        worker.stop()
    unit = statistics.median(rates[base])
    return [
        Figure(name, statistics.median(found), min(found), max(found), statistics.median(found) / unit)
        for name, found in rates.items()
    ]


def show(figures: Sequence[Figure]) -> None:
    """Print the table."""
    print(f"\n{'photos/s':>9} {'lowest':>8} {'highest':>8} {'ratio':>6}  variant ({os.cpu_count()} cores)")
    for figure in figures:
        print(
            f"{figure.photos_per_second:9.1f} {figure.lowest:8.1f} {figure.highest:8.1f} "
            f"{figure.ratio:6.2f}  {figure.name}"
        )
