"""`hubhead similar` among a million photos: `python -m tests.bench.similar`.

The store and the scores are those of `tests.bench.rescore`, with random embeddings. The first search writes
the index; the following ones are warm. Seconds and memory are those of the whole command, as a separate process.
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
from tests.bench.rescore import export_bundle, run_hubhead, write_previous_scores
from tests.bench.variants import read_sample_photos

ROUNDS = 5


def measure_search(directory: str, dimension: int) -> float:
    """Return the median seconds of the cosines with all embeddings of an index, in this process."""
    from batch.embeddings.nearest import NearestIndex, iter_ranked

    index = NearestIndex(directory, dimension)
    index.update()
    query = np.abs(np.random.default_rng(3).standard_normal(dimension)).astype(np.float32)
    seconds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        next(iter_ranked(index.compute_similarities(query)))
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds))


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
        model = export_bundle(top / "models" / "bench")
        write_previous_scores(top, model, options.photos, shuffled=False)
        photo = top / "photo.jpeg"
        photo.write_bytes(read_sample_photos()[0])
        words = ["similar", str(photo), "--scores", str(top / "scores"), "--model", str(model.path)]
        words += ["--embedding_store", str(top / "store"), "--output", str(top / "similar.csv")]
        runs = [run_hubhead(*words) for _ in range(1 + ROUNDS)]
        directory = str(top / "store" / model.metadata.fingerprint)
        search = measure_search(directory, model.metadata.dimension)
        for name, (seconds, peak) in (
            ("first, which writes the index", runs[0]),
            ("warm, median", sorted(runs[1:])[ROUNDS // 2]),
        ):
            row = {"search": name, "photos": options.photos, "seconds": seconds, "peak MiB": peak}
            print(row)
            results.add_row("`hubhead similar` of a photo without an embedding, the whole command", row)
        row = {"photos": options.photos, "dimension": model.metadata.dimension, "seconds": search}
        print(row)
        results.add_row("The search alone, warm", row)
        results.write(options.output, "similar")
    finally:
        shutil.rmtree(top)


if __name__ == "__main__":
    main()
