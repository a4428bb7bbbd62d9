"""What `hubhead train` takes on the sample photos: `python -m tests.bench.training`.

The whole command, imports and report included, in a process of its own: first with an empty
embedding store and an empty cache of graphs, then from the store. Downloads are not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.fetch import cache_directory
from trainer.samples import sample_photos

ORIGINAL = 258.0
"""Seconds of the original retrain.py on these photos as they come, duplicates included: measured once,
on a machine of 2 cores."""

_COMMAND = "import hubhead; hubhead.main()"


@dataclass(frozen=True)
class Run:
    """One run of the command.

    Attributes:
        wall: seconds from the process's start to its end.
        processor: seconds of all its threads.
        steps: wall seconds by step, as the command tells them.
    """

    wall: float
    processor: float
    steps: Mapping[str, float]


def run(photos: Path, top: Path, cache: Path) -> Run:
    """Train once, with the store and models below `top`."""
    command = [sys.executable, "-c", _COMMAND, "train", "--json", "--image_dir", str(photos)]
    command += ["--saved_model_dir", str(top / "models" / "food"), "--embedding_store", str(top / "store")]
    before, start = os.times(), time.perf_counter()
    done = subprocess.run(
        command,
        env=os.environ | {"HUBHEAD_CACHE_DIR": str(cache)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=True,
    )
    wall, after = time.perf_counter() - start, os.times()
    processor = after.children_user + after.children_system - before.children_user - before.children_system
    return Run(wall, processor, json.loads(done.stdout)["seconds"])


def row(name: str, runs: Sequence[Run]) -> str:
    """A line of the table, of medians."""
    wall = statistics.median(run.wall for run in runs)
    processor = statistics.median(run.processor for run in runs)
    fit = statistics.median(run.steps["fit"] for run in runs)
    return (
        f"| {name} | {len(runs)} | {wall:.1f} s | {processor:.1f} s | {fit:.1f} s | {ORIGINAL / wall:.0f} x |"
    )


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.training", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--runs", type=int, default=5, help="from the store (default 5)")
    options = parser.parse_args()
    kept = cache_directory()
    photos = sample_photos(kept).directory
    print(f"Beside the {ORIGINAL:.0f} s that the original retrain.py took once on a machine of 2 cores")
    print("| | runs | wall | processor | of it the fit, wall | retrain.py took |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as directory:
        top = Path(directory)
        cache = top / "cache"
        cache.mkdir()
        (kept / "downloads").mkdir(exist_ok=True)
        (cache / "downloads").symlink_to(kept / "downloads")
        first = run(photos, top, cache)
        print(row("first run: backbone, graphs and embeddings made", [first]), flush=True)
        again = [run(photos, top, cache) for _ in range(options.runs)]
        print(row("from the store", again))
        steps = {name: statistics.median(run.steps[name] for run in again) for name in again[0].steps}
        print("\nSeconds by step:", ", ".join(f"{name} {value:.1f}" for name, value in steps.items()))


if __name__ == "__main__":
    main()
