"""Run the benchmark and print its table; `--output FILE` keeps the figures as JSON.

TensorFlow's thread pools are fixed for a process, so each setting has a process of its own,
which waits while the others are measured. The variants take turns, round by round, and each
figure is the median over the rounds: a shared machine slows all of them alike, so it is the
ratios that can be trusted.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
from dataclasses import dataclass
from pathlib import Path

from tests.bench.variants import BASE, VARIANTS, Variant
from tests.bench.worker import Worker


@dataclass(frozen=True)
class Figure:
    """One row of the table: photos/s, the median of `rounds`."""

    name: str
    photos_per_second: float
    lowest: float
    highest: float
    ratio: float


def measure(variants: tuple[Variant, ...], rounds: int) -> list[Figure]:
    """Let the variants take turns; the first round warms up and does not count."""
    workers = {setting: Worker(setting) for setting in {variant.setting for variant in variants}}
    rates: dict[str, list[float]] = {variant.name: [] for variant in variants}
    for turn in range(rounds + 1):
        for variant in variants:
            rate = workers[variant.setting].run(variant.name)
            print(f"round {turn} of {rounds}: {rate:8.1f} photos/s  {variant.name}", flush=True)
            if turn:
                rates[variant.name].append(rate)
    for worker in workers.values():
        worker.stop()
    base = statistics.median(rates[BASE])
    return [
        Figure(name, statistics.median(found), min(found), max(found), statistics.median(found) / base)
        for name, found in rates.items()
    ]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds (default 5)")
    parser.add_argument("--only", default="", help="variants whose name contains this")
    parser.add_argument("--output", type=Path, help="write the figures here, as JSON")
    options = parser.parse_args()
    chosen = tuple(v for v in VARIANTS if options.only in v.name or v.name == BASE)
    figures = measure(chosen, options.rounds)
    print(f"\n{'photos/s':>9} {'lowest':>8} {'highest':>8} {'ratio':>6}  variant ({os.cpu_count()} cores)")
    for figure in figures:
        print(
            f"{figure.photos_per_second:9.1f} {figure.lowest:8.1f} {figure.highest:8.1f} "
            f"{figure.ratio:6.2f}  {figure.name}"
        )
    if options.output:
        record = {
            "machine": platform.machine(),
            "cores": os.cpu_count(),
            "rounds": options.rounds,
            "figures": [vars(figure) for figure in figures],
        }
        options.output.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
