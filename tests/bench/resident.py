"""A process per photo beside a resident model: `python -m tests.bench.resident`.

    a process per photo           `hubhead predict PHOTO --model`, as with label_image.py: each process loads
                                  the model and ends
    one process for all photos    `hubhead predict PHOTOS --model`
    ... with a server             `hubhead predict PHOTOS --server`: the model stays loaded in `hubhead serve`
    a call per photo, one client  serving.client.Client and the same server, one photo after another

The ways take turns on the sample photos. Seconds are those of whole processes, except in the last row.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from serving.process import get_cpu_model
from tests.bench import results
from tests.bench.callers import MODEL
from tests.bench.interleave import take_turns
from tests.bench.processes import read_serve_port, run_command, start_process
from tests.bench.rescore import export_bundle
from trainer.dataset.download import cache_directory
from trainer.dataset.samples import fetch_sample_photos

PER_PHOTO = "a process per photo"
_HUBHEAD = ("-c", "import hubhead; hubhead.main()")
_QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3"}


def _predict(*arguments: str) -> float:
    return run_command([sys.executable, *_HUBHEAD, "predict", *arguments], _QUIET).seconds


def make_ways(photos: Sequence[str], single: int, model: Path, port: int) -> dict[str, Callable[[], float]]:
    """Return each way to classify photos, as a function that returns the seconds per photo.

    Args:
        photos: paths of photos.
        single: number of them that get a process of their own.
        model: bundle.
        port: gRPC port of the server.
    """
    from serving.client import Client

    client = Client(f"localhost:{port}", model=MODEL)
    server = ("--server", f"localhost:{port}", "--model_name", MODEL)

    def call_one_by_one() -> float:
        start = time.perf_counter()
        for photo in photos:
            (found,) = client.classify([photo])
            assert found.label, found
        return (time.perf_counter() - start) / len(photos)

    return {
        PER_PHOTO: lambda: statistics.mean(_predict(p, "--model", str(model)) for p in photos[:single]),
        "one process for all photos": lambda: _predict(*photos, "--model", str(model)) / len(photos),
        "one process for all photos, with a server": lambda: _predict(*photos, *server) / len(photos),
        "a call per photo, one client of the server": call_one_by_one,
    }


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.resident", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--photos", type=int, default=100, help="photos of a turn (default 100)")
    parser.add_argument(
        "--single", type=int, default=5, help="photos with a process of their own (default 5)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="number of rounds (default 3)")
    results.add_output_option(parser)
    options = parser.parse_args()
    directory = fetch_sample_photos(cache_directory()).directory
    photos = [str(path) for path in sorted(directory.rglob("*")) if path.is_file()][: options.photos]
    with tempfile.TemporaryDirectory(prefix="hubhead-bench-") as top:
        base = Path(top) / MODEL
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:  # TensorFlow ends with it
            pool.submit(export_bundle, base).result()
        serve = ("--model_base_path", str(base), "--model_name", MODEL, "--port", "0", "--rest_api_port", "0")
        with start_process(*_HUBHEAD, "serve", *serve) as process:
            ways = make_ways(photos, options.single, base, read_serve_port(process))
            turns = take_turns(list(ways), options.rounds, lambda name: ways[name]())
    print(f"{get_cpu_model()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}\n")
    print("| way | seconds per photo | ratio |\n|---|---|---|")
    for name, seconds in turns.items():
        each = statistics.median(seconds)
        ratio = statistics.median(base / other for base, other in zip(turns[PER_PHOTO], seconds, strict=True))
        print(f"| {name} | {each:.3f} | {ratio:.0f} |")
        results.add_row(
            f"Classifying {len(photos)} photos",
            {"way": name, "seconds per photo": each, "times as fast as a process per photo": ratio},
        )
    results.add_note(f"Medians of {options.rounds} rounds, in which the ways took turns.")
    results.write(options.output, "resident")


if __name__ == "__main__":
    main()
