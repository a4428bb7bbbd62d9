"""What `hubhead train` takes on the sample photos: `python -m tests.bench.training`.

The whole command, imports and report included, in a process of its own: first with an empty
embedding store and an empty cache of graphs, then from the store. Downloads are not counted.

Beside it the way of the original retrain.py (`retrain_way`), in the same run: all its text files,
and as many of its 4,000 steps as `--retrain_steps` says, from which the others are reckoned. That
is the least it can take: retrain.py itself took longer where it was measured (ORIGINAL).
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
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from tests.bench import retrain_way
from tests.bench.retrain_way import STEPS, Took
from trainer import backbones
from trainer.dataset.download import cache_directory
from trainer.dataset.samples import fetch_sample_photos

ORIGINAL = 258.0, 231.0
"""Seconds of the original retrain.py, first and from its text files: measured once, on a machine of 2 cores
that runs the default backbone as loaded at 90 photos/s (tests.bench), with 505 files: these photos before
copies and rare labels are left out. All but some 27 s are its steps, of as many whatever the photos."""

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


def retrain(photos: Path, steps: int) -> Took:
    """The other way, in a process of its own."""
    module = backbones.load(backbones.DEFAULT, cache_directory()).path
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(retrain_way.run, photos, Path(module), steps).result()


def fresh_cache(top: Path, kept: Path) -> Path:
    """A cache with nothing in it but the downloads."""
    cache = top / "cache"
    cache.mkdir(parents=True)
    (kept / "downloads").mkdir(exist_ok=True)
    (cache / "downloads").symlink_to(kept / "downloads")
    return cache


def row(name: str, runs: Sequence[Run], peer: float, original: float) -> str:
    """A line of the table, of medians; `peer` are the seconds of the other way, then and once."""
    wall = statistics.median(run.wall for run in runs)
    processor = statistics.median(run.processor for run in runs)
    fit = statistics.median(run.steps["fit"] for run in runs)
    return (
        f"| {name} | {len(runs)} | {wall:.1f} s | {processor:.1f} s | {fit:.1f} s "
        f"| {peer / wall:.1f} x | {original / wall:.1f} x |"
    )


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.training", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--first_runs", type=int, default=3, help="with nothing cached (default 3)")
    parser.add_argument("--runs", type=int, default=5, help="from the store (default 5)")
    parser.add_argument("--retrain_steps", type=int, default=200, help="of the other way (default 200)")
    options = parser.parse_args()
    kept = cache_directory()
    photos = fetch_sample_photos(kept).directory
    took = retrain(photos, options.retrain_steps)
    print(
        f"retrain.py's way: start {took.start:.1f} s, features {took.features:.1f} s, a step"
        f" {took.step * 1000:.0f} ms ({options.retrain_steps} measured), so with {STEPS} steps"
        f" {took.first_run:.0f} s, and {took.cached_run:.0f} s from its text files\n"
    )
    print("| | runs | wall | processor | of it the fit, wall | its way takes | it took once |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as directory:
        tops = [Path(directory) / str(number) for number in range(options.first_runs)]
        first = [run(photos, top, fresh_cache(top, kept)) for top in tops]
        name = "first run: backbone, graphs and embeddings made"
        print(row(name, first, took.first_run, ORIGINAL[0]), flush=True)
        again = [run(photos, tops[-1], tops[-1] / "cache") for _ in range(options.runs)]
        print(row("from the store", again, took.cached_run, ORIGINAL[1]))
        print("\nSeconds by step:")
        for name, runs in {"first": first, "from the store": again}.items():
            steps = {step: statistics.median(run.steps[step] for run in runs) for step in runs[0].steps}
            print(f"{name}:", ", ".join(f"{step} {seconds:.1f}" for step, seconds in steps.items()))


if __name__ == "__main__":
    main()
