"""Whole processes from their start to their end, beside TensorFlow's import: `python -m tests.bench.start`.

`hubhead predict` of one photo and `hubhead train` on the sample photos, all of them in the embedding store,
take turns with `python -c "import tensorflow"`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from serving.process import get_cpu_model
from tests.bench import results
from tests.bench.training import run_train
from trainer.dataset.download import cache_directory
from trainer.dataset.samples import fetch_sample_photos

BASE = "python -c 'import tensorflow'"
_HUBHEAD = "import hubhead; hubhead.main()"


def measure(code: str, *arguments: str) -> tuple[float, float, float]:
    """Run Python code as a process; return wall and processor seconds, and its peak memory in MB."""
    command = [sys.executable, "-c", code, *arguments]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    if status:
        raise RuntimeError(f"{command} ended with status {status}.")
    return wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.start", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="number of rounds (default 5)")
    results.add_output_option(parser)
    options = parser.parse_args()
    photos = fetch_sample_photos(cache_directory()).directory
    photo = next(path for path in sorted(photos.rglob("*")) if path.is_file())
    with tempfile.TemporaryDirectory() as directory:
        top = Path(directory)
        run_train(photos, top, cache_directory())  # fills the store
        bundle = str(top / "models" / "food")
        train = ["train", "--image_dir", str(photos), "--embedding_store", str(top / "store")]
        variants = {
            BASE: ("import tensorflow",),
            "hubhead predict, one photo": (_HUBHEAD, "predict", str(photo), "--model", bundle),
            "hubhead train, from the store": (_HUBHEAD, *train, "--saved_model_dir", bundle),
        }
        for variant in variants.values():
            measure(*variant)  # warm up
        rounds = [
            {name: measure(*variant) for name, variant in variants.items()} for _ in range(options.rounds)
        ]
    print(f"{get_cpu_model()}, {os.cpu_count()} cores, median of {options.rounds} rounds\n")
    print("| process | wall | ratio | processor | ratio | peak memory |\n|---|---|---|---|---|---|")
    for name in variants:
        wall, processor, memory = np.median([found[name] for found in rounds], axis=0)
        ratios = np.median([np.divide(found[name], found[BASE]) for found in rounds], axis=0)
        cells = f"{wall:.1f} s | {ratios[0]:.2f} | {processor:.1f} s | {ratios[1]:.2f} | {memory:.0f} MB"
        print(f"| {name} | {cells} |")
        figures = {"wall s": wall, "ratio": ratios[0], "processor s": processor, "ratio of these": ratios[1]}
        results.add_row("Whole processes", {"process": name} | figures | {"peak MB": memory})
    results.add_note(f"Median of {options.rounds} rounds; ratios to the import of TensorFlow.")
    results.write(options.output, "start")


if __name__ == "__main__":
    main()
