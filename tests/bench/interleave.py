"""Interleaved measurement: variants run in turns, so that whatever slows the machine slows all of them.

TensorFlow's thread pools are fixed for a process, so each thread setting has a process of its own, which
waits while the others are measured. Each figure is the median over the rounds. On a shared machine only
the ratios are reliable.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from tests.bench.worker import Prepare, Worker

DEFAULT_THREADS = "default threads"
ONE_THREAD_PER_OP = "one thread per op"

Result = TypeVar("Result")


@dataclass(frozen=True)
class Variant:
    """One way to do the work.

    Attributes:
        name: name in the table.
        setting: thread setting of TensorFlow, DEFAULT_THREADS or ONE_THREAD_PER_OP.
    """

    name: str
    setting: str


@dataclass(frozen=True)
class Throughput:
    """One row of the table.

    Attributes:
        name: name of the variant.
        photos_per_second: median over the rounds.
        lowest: slowest round, in photos/s.
        highest: fastest round, in photos/s.
        ratio: median divided by that of the base variant.
    """

    name: str
    photos_per_second: float
    lowest: float
    highest: float
    ratio: float


class Rate(float):
    """Photos/s of one round."""

    def __str__(self) -> str:
        return f"{float(self):8.1f} photos/s"


def take_turns(
    names: Sequence[str], rounds: int, run: Callable[[str], Result], *, warm_up: bool = True
) -> dict[str, list[Result]]:
    """Run each of several things once per round, and print each result; return the results by name.

    Args:
        names: the things to run, in order.
        rounds: number of counted rounds.
        run: runs the thing of a name.
        warm_up: whether to run another round before, which does not count.
    """
    results: dict[str, list[Result]] = {name: [] for name in names}
    for number in range(0 if warm_up else 1, rounds + 1):
        for name in names:
            result = run(name)
            print(f"round {number} of {rounds}: {result}  {name}", flush=True)
            if number:
                results[name].append(result)
    return results


def measure(variants: Sequence[Variant], rounds: int, base: str, prepare: Prepare) -> list[Throughput]:
    """Run the variants in turns; the first round is a warm-up and does not count."""
    workers = {setting: Worker(setting, prepare) for setting in {variant.setting for variant in variants}}
    settings = {variant.name: variant.setting for variant in variants}
    rates = take_turns(list(settings), rounds, lambda name: Rate(workers[settings[name]].run(name)))
    for worker in workers.values():
        worker.stop()
    unit = statistics.median(rates[base])
    return [
        Throughput(name, statistics.median(found), min(found), max(found), statistics.median(found) / unit)
        for name, found in rates.items()
    ]


def print_table(rows: Sequence[Throughput]) -> None:
    """Print one line per variant."""
    print(f"\n{'photos/s':>9} {'lowest':>8} {'highest':>8} {'ratio':>6}  variant ({os.cpu_count()} cores)")
    for row in rows:
        print(
            f"{row.photos_per_second:9.1f} {row.lowest:8.1f} {row.highest:8.1f} {row.ratio:6.2f}  {row.name}"
        )
