"""`hubhead similar` among a million photos: `python -m tests.bench.similar`.

The store and the scores are those of `tests.bench.rescore`, with random embeddings. The first search writes
the index; the following ones are warm. Seconds and memory are those of the whole command, as a separate
process.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tests.bench import results
from tests.bench.rescore import prepare, run_hubhead
from tests.support.drawings import draw_fruit

ROUNDS = 5

PIXELS = (4032, 3024)
"""Size of the photo that is not stored, that of a phone."""


def measure_search(directory: str, dimension: int) -> tuple[float, float]:
    """Return the median seconds and core seconds of a search among all embeddings of an index."""
    from batch.embeddings.nearest import NearestIndex, iter_ranked

    index = NearestIndex(directory, dimension)
    index.update()
    query = np.abs(np.random.default_rng(3).standard_normal(dimension)).astype(np.float32)
    found = []
    for _ in range(ROUNDS):
        start, used = time.perf_counter(), time.process_time()
        next(iter_ranked(index.compute_similarities(query)))
        found.append((time.perf_counter() - start, time.process_time() - used))
    seconds, core_seconds = np.median(found, axis=0).tolist()
    return seconds, core_seconds


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.similar", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--photos", type=int, default=1_000_000, help="number of photos (default a million)")
    parser.add_argument(
        "--directory",
        type=Path,
        help="directory for the store and the index, 5.2 GB per million photos (default: a temporary one)",
    )
    results.add_output_option(parser)
    options = parser.parse_args(arguments)
    top = Path(tempfile.mkdtemp(prefix="hubhead-bench-", dir=options.directory))
    try:
        model = prepare(top, options.photos, shuffled=False)
        # The digests of the store are those of the addresses of its photos.
        photo = top / "photo.jpeg"
        photo.write_bytes(b"/photos/uploads/2026/05/00000000.jpg")
        new = top / "new.jpeg"
        draw_fruit("apple", 0).resize(PIXELS).save(new, quality=90)
        words = ["--scores", str(top / "scores"), "--model", str(model.path)]
        words += ["--embedding_store", str(top / "store"), "--output", str(top / "similar.csv")]
        runs = [run_hubhead("similar", str(photo), *words) for _ in range(1 + ROUNDS)]
        others = [run_hubhead("similar", str(new), *words) for _ in range(ROUNDS)]
        directory = str(top / "store" / model.metadata.fingerprint)
        seconds, core_seconds = measure_search(directory, model.metadata.dimension)
        for name, (whole, peak) in (
            ("first, which writes the index", runs[0]),
            ("warm, median", sorted(runs[1:])[ROUNDS // 2]),
            ("warm, median, for a photo that is not stored", sorted(others)[ROUNDS // 2]),
        ):
            row = {"search": name, "photos": options.photos, "seconds": whole, "peak MiB": peak}
            print(row)
            results.add_row("`hubhead similar`, the whole command", row)
        row = {"photos": options.photos, "dimension": model.metadata.dimension}
        row |= {"seconds": seconds, "core seconds": core_seconds}
        print(row)
        results.add_row("The search alone, warm", row)
        results.write(options.output, "similar")
    finally:
        shutil.rmtree(top)


if __name__ == "__main__":
    main()
