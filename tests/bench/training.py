"""Duration of `hubhead train` on the sample photos: `python -m tests.bench.training`.

The whole command, imports and report included, runs in a separate process: first with an empty embedding
store and without cached graphs, then from the store. Downloads are excluded.

It is compared with the work of the original retrain.py (`retrain_baseline`) in the same run: all text
files, and `--retrain_steps` of the 4,000 steps, from which the duration of all steps is extrapolated. This
is a lower bound: retrain.py itself took longer where it was measured (ORIGINAL_SECONDS).
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

from tests.bench import results
from tests.bench.retrain_baseline import STEPS, Durations, measure_baseline
from trainer.backbones import DEFAULT
from trainer.backbones.hub import load
from trainer.dataset.download import cache_directory
from trainer.dataset.samples import fetch_sample_photos

ORIGINAL_SECONDS = 258.0, 231.0
"""Seconds of the original retrain.py: the first run, and a run from its text files.

Measured once, on a machine with 2 cores that runs the default backbone as loaded at 90 photos/s
(tests.bench), with 505 files: the sample photos before copies and rare labels are left out. All but about
27 s are spent in the steps, whose number does not depend on the photos.
"""

_COMMAND = "import hubhead; hubhead.main()"


@dataclass(frozen=True)
class Run:
    """One run of the command.

    Attributes:
        wall: wall seconds from the start of the process to its end.
        processor: processor seconds of all threads.
        steps: wall seconds by step, as the command reports them.
    """

    wall: float
    processor: float
    steps: Mapping[str, float]


def run_train(photos: Path, top: Path, cache: Path) -> Run:
    """Run `hubhead train` once, with the store and the models below `top`."""
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


def run_baseline(photos: Path, steps: int) -> Durations:
    """Measure retrain.py's way in a separate process."""
    module = load(DEFAULT, cache_directory()).path
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(measure_baseline, photos, Path(module), steps).result()


def make_cache(top: Path, kept: Path) -> Path:
    """Create a cache directory that contains only the downloads."""
    cache = top / "cache"
    cache.mkdir(parents=True)
    (kept / "downloads").mkdir(exist_ok=True)
    (cache / "downloads").symlink_to(kept / "downloads")
    return cache


def format_row(name: str, runs: Sequence[Run], baseline: float, original: float) -> str:
    """Format a row of the table, with medians.

    Args:
        name: name of the row.
        runs: runs of `hubhead train`.
        baseline: seconds of retrain.py's way in this run of the benchmark.
        original: seconds of the original retrain.py where it was measured.
    """
    wall = statistics.median(run.wall for run in runs)
    processor = statistics.median(run.processor for run in runs)
    fit = statistics.median(run.steps["fit"] for run in runs)
    figures = {"runs": len(runs), "wall s": wall, "processor s": processor, "fit, wall s": fit}
    ratios = {"retrain.py's way": baseline / wall, "original retrain.py": original / wall}
    results.add_row("`hubhead train` on the sample photos", {"run": name} | figures | ratios)
    return (
        f"| {name} | {len(runs)} | {wall:.1f} s | {processor:.1f} s | {fit:.1f} s "
        f"| {baseline / wall:.1f} x | {original / wall:.1f} x |"
    )


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.training", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--first_runs", type=int, default=3, help="number of runs with an empty cache (default 3)"
    )
    parser.add_argument("--runs", type=int, default=5, help="number of runs from the store (default 5)")
    parser.add_argument(
        "--retrain_steps", type=int, default=200, help="number of retrain.py's steps to run (default 200)"
    )
    results.add_output_option(parser)
    options = parser.parse_args()
    kept = cache_directory()
    photos = fetch_sample_photos(kept).directory
    baseline = run_baseline(photos, options.retrain_steps)
    print(
        f"retrain.py's way: start {baseline.start:.1f} s, features {baseline.features:.1f} s, one step"
        f" {baseline.step * 1000:.0f} ms ({options.retrain_steps} measured); with {STEPS} steps"
        f" {baseline.first_run:.0f} s, and {baseline.cached_run:.0f} s from its text files\n"
    )
    print("| hubhead train | runs | wall | processor | fit, wall | retrain.py's way | original retrain.py |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as directory:
        tops = [Path(directory) / str(number) for number in range(options.first_runs)]
        first = [run_train(photos, top, make_cache(top, kept)) for top in tops]
        name = "first run: builds backbone, graphs and embeddings"
        print(format_row(name, first, baseline.first_run, ORIGINAL_SECONDS[0]), flush=True)
        again = [run_train(photos, tops[-1], tops[-1] / "cache") for _ in range(options.runs)]
        print(format_row("from the store", again, baseline.cached_run, ORIGINAL_SECONDS[1]))
        print("\nSeconds by step:")
        for name, runs in {"first run": first, "from the store": again}.items():
            steps = {step: statistics.median(run.steps[step] for run in runs) for step in runs[0].steps}
            print(f"{name}:", ", ".join(f"{step} {seconds:.1f}" for step, seconds in steps.items()))
            results.add_row("Seconds by step", {"run": name} | steps)
    results.add_note(
        "Medians. The last two columns are ratios: seconds of retrain.py's work to those of hubhead."
    )
    results.write(options.output, "training")


if __name__ == "__main__":
    main()
