"""Labelling among a million photos: `python -m tests.bench.labelling.million`.

Embeddings are random and mapped from a file, as those of so many photos are. Measured are the ranking of all,
with its memory beside the pages of that file, and the time from an answer to the next photo while the
background fits and ranks: without a browser, which test_labelling_page.py measures.
"""

from __future__ import annotations

import argparse
import re
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from tests.bench import results
from trainer.evaluation.features import HalfFloats
from trainer.heads import Head, Scaling
from trainer.labelling.candidates import Candidates
from trainer.labelling.classifier import Model
from trainer.labelling.ranking import predict, rank
from trainer.labelling.session import LabellingSession
from trainer.labelling.settings import SessionSettings
from trainer.labelling.types import Answer, Strategy

DIMENSION = 1280
LABELS = tuple(f"label {number}" for number in range(20))
ANSWERS = 200
BROWSER = "browser-1"
THINKING = 0.1
"""Seconds between two answers of a fast person with the grid or a held key."""


def write_embeddings(path: Path, count: int) -> HalfFloats:
    """Write random embeddings, not negative as those of most backbones, and map the file."""
    random = np.random.default_rng(0)
    centres = random.random((len(LABELS), DIMENSION), np.float32)
    found = np.memmap(path, np.float16, "w+", shape=(count, DIMENSION))
    for start in range(0, count, 8192):
        size = min(8192, count - start)
        labels = random.integers(0, len(LABELS), size)
        found[start : start + size] = centres[labels] + random.random((size, DIMENSION), np.float32)
    found.flush()
    return np.memmap(path, np.float16, "r", shape=(count, DIMENSION))


def make_head(embeddings: HalfFloats) -> Head:
    """Return a head with random weights."""
    sample = np.asarray(embeddings[:4096], np.float32)
    kernel = np.random.default_rng(1).normal(size=(DIMENSION, len(LABELS))).astype(np.float32)
    return Head(Scaling.from_embeddings(sample), 5 * kernel, np.zeros(len(LABELS), np.float32), 1.0)


@contextmanager
def record_memory() -> Iterator[list[float]]:
    """Provide a list that gets the memory in MiB that is not mapped from files, every 20 ms."""
    values = [_read_anonymous()]
    done = threading.Event()

    def record() -> None:
        while not done.wait(0.02):
            values.append(_read_anonymous())

    thread = threading.Thread(target=record)
    thread.start()
    try:
        yield values
    finally:
        done.set()
        thread.join()


def _read_anonymous() -> float:
    found = re.search(r"RssAnon:\s*(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) / 1024 if found else 0.0


def measure_ranking(embeddings: HalfFloats, head: Head) -> None:
    """Print and record the seconds and memory of each strategy, predictions included."""
    for strategy in (Strategy.MIXED, Strategy.UNCERTAIN, Strategy.DIVERSE):
        with record_memory() as memory:
            start = time.perf_counter()
            predictions = predict(embeddings, head.probabilities)
            predicted = time.perf_counter() - start
            rank(strategy, embeddings, predictions=predictions)
            total = time.perf_counter() - start
        row: dict[str, results.Value] = {
            "photos": len(embeddings),
            "strategy": str(strategy),
            "seconds": round(total, 1),
            "of these predictions": round(predicted, 1),
            "peak memory, MiB": round(max(memory)),
        }
        print(row, flush=True)
        results.add_row("Ranking", row)


def measure_answers(embeddings: HalfFloats, head: Head, output: Path) -> None:
    """Print and record the time from an answer to the next photo, answer after answer."""
    count = len(embeddings)
    digests = np.random.default_rng(2).bytes(32 * count)
    uris = [f"/photos/{number}.jpg" for number in range(count)]
    candidates = Candidates(uris, np.frombuffer(digests, "S32"), embeddings)
    session = LabellingSession(candidates, output, SessionSettings(), model=Model(LABELS, head))
    session.next_photos(BROWSER)
    seconds = []
    for number in range(ANSWERS):
        time.sleep(THINKING)
        shown = session.next_photos(BROWSER).photos[0]
        start = time.perf_counter()
        session.answer(BROWSER, [Answer(shown.id, LABELS[number % len(LABELS)], 1.0)])
        session.next_photos(BROWSER)
        seconds.append(time.perf_counter() - start)
    fitted = session.state().fitted_answers
    session.close()
    median, late = np.percentile(seconds, [50, 95])
    row: dict[str, results.Value] = {
        "photos": count,
        "answers": ANSWERS,
        "median, ms": round(1000 * median, 1),
        "95th percentile, ms": round(1000 * late, 1),
        "slowest, ms": round(1000 * max(seconds), 1),
        "answers in the last fit": fitted,
    }
    print(row, flush=True)
    results.add_row("From an answer to the next photo", row)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.labelling.million", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument(
        "--photos", type=int, nargs="+", default=[100_000, 1_000_000], help="numbers of photos"
    )
    parser.add_argument("--directory", type=Path, help="directory for the file, 2.6 GB per million photos")
    results.add_output_option(parser)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="hubhead-bench-", dir=options.directory) as directory:
        for count in options.photos:
            embeddings = write_embeddings(Path(directory) / "embeddings", count)
            head = make_head(embeddings)
            measure_ranking(embeddings, head)
            measure_answers(embeddings, head, Path(directory) / f"{count}.csv")
    results.write(options.output, "labelling-million")


if __name__ == "__main__":
    main()
