"""Seconds and memory of the fit of a head: `python -m tests.bench.head`.

    sizes     the linear head on 1,000 to 100,000 synthetic embeddings in memory
    streamed  the same on 100,000 to 1,000,000 embeddings in a file, which is never in memory as a whole
    kinds     linear and hidden on 10,000 embeddings

Each fit runs in a separate process. Measured are the processor and wall time of the fit, and the peak of the
anonymous resident memory. That includes embeddings in memory, but not the pages mapped from a file, which the
system reclaims when it needs them. The ratio of processor time per photo refers to the row above.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.bench import results

DIMENSION, LABELS, LATENT = 1280, 101, 64
SEED = 12345
TEST = 5000
_CHUNK = 4096


def fill_embeddings(count: int, seed: int, out: NDArray[np.float16]) -> NDArray[np.int64]:
    """Fill `out` [count,1280] with synthetic embeddings, and return their classes, int64 [count].

    Like pooled activations of a network, they have few factors, noise, and no negative values.
    """
    random = np.random.default_rng(SEED)
    centres = (0.45 * random.standard_normal((LABELS, LATENT))).astype(np.float32)
    decay = np.exp(-np.arange(LATENT) / 40)[:, None] / 4
    factors = (random.standard_normal((LATENT, DIMENSION)) * decay).astype(np.float32)
    shift = (0.3 * random.standard_normal(DIMENSION) - 0.5).astype(np.float32)
    random = np.random.default_rng(seed)
    targets = random.integers(0, LABELS, count)
    noise = 0.35 * random.standard_normal((2 * _CHUNK, DIMENSION), np.float32)
    for start in range(0, count, _CHUNK):
        labels = targets[start : start + _CHUNK]
        latent = centres[labels] + random.standard_normal((len(labels), LATENT), np.float32)
        # New noise for each chunk would take most of the time, so a random part of one array is used.
        offset = int(random.integers(_CHUNK))
        rows = latent @ factors + shift + noise[offset : offset + len(labels)]
        out[start : start + _CHUNK] = np.maximum(rows, 0)
    return targets


def write_embeddings(path: Path, count: int) -> None:
    """Write a file of float16 embeddings, and one of their classes beside it."""
    rows = np.lib.format.open_memmap(path, "w+", np.float16, (count, DIMENSION))
    np.save(path.with_suffix(".labels.npy"), fill_embeddings(count, 1, rows))


def print_fit(path: str, count: int, kind: Any, streamed: bool) -> None:
    """Fit a head and print its seconds, memory and accuracy as JSON; runs in a separate process."""
    from trainer import heads

    targets = np.load(Path(path).with_suffix(".labels.npy"))[:count]
    mapped = np.load(path, mmap_mode="r")[:count]
    rows: Any = mapped if streamed else mapped.astype(np.float32)
    settings = heads.HeadSettings(kind=kind, memory=0 if streamed else heads.HeadSettings().memory)
    with _PeakMemory() as peak:
        start, spent = time.perf_counter(), time.process_time()
        fitted, selection = heads.fit(rows, targets, LABELS, settings=settings)
        wall, processor = time.perf_counter() - start, time.process_time() - spent
    test = np.empty((TEST, DIMENSION), np.float16)
    test_targets = fill_embeddings(TEST, 2, test)
    probabilities = fitted.probabilities(test.astype(np.float32))
    found = {
        "processor": processor,
        "wall": wall,
        "peak": peak.bytes,
        "accuracy": float((probabilities.argmax(1) == test_targets).mean()),
        "loss": heads.log_loss(probabilities, test_targets),
        "chosen": selection.settings | {"method": selection.method},
    }
    print(json.dumps(found))


class _PeakMemory:
    """Context manager that records the peak anonymous memory of this process in `bytes`."""

    def __enter__(self) -> _PeakMemory:
        self.bytes = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.01):
            lines = Path("/proc/self/status").read_text().splitlines()
            line = next(line for line in lines if line.startswith("RssAnon"))
            self.bytes = max(self.bytes, int(line.split()[1]) * 1024)


def print_table(path: Path, title: str, rows: Sequence[tuple[int, str, bool]]) -> None:
    """Run fits one after another and print a row for each.

    Args:
        path: file of the embeddings.
        title: heading of the table.
        rows: number of photos, kind of head, and True to stream the file, for each fit.
    """
    print(f"\n{title}, {DIMENSION} dimensions, {LABELS} labels")
    print(
        "   photos    kind  processor     wall  per photo   peak MB  accuracy  log-loss  selected", flush=True
    )
    previous = 0.0
    for count, kind, streamed in rows:
        code = f"from tests.bench import head; head.print_fit({str(path)!r}, {count}, {kind!r}, {streamed})"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        found = json.loads(done.stdout)
        each = found["processor"] / count
        ratio = f"{each / previous:9.2f}x" if previous else f"{'1':>10}"
        chosen = {
            key: found["chosen"].get(key) for key in ("method", "strength", "shrinkage", "width", "epochs")
        }
        print(
            f"{count:9} {kind:>7} {found['processor']:8.1f} s {found['wall']:6.1f} s {ratio}"
            f" {found['peak'] / 1e6:9.0f} {found['accuracy']:9.1%} {found['loss']:9.3f}  "
            + ", ".join(f"{key} {value}" for key, value in chosen.items() if value is not None),
            flush=True,
        )
        row = {"photos": count, "head": kind, "processor s": found["processor"], "wall s": found["wall"]}
        row |= {"peak MB": found["peak"] / 1e6, "accuracy": found["accuracy"], "log-loss": found["loss"]}
        results.add_row(f"{title}: {DIMENSION} dimensions, {LABELS} labels", row)
        previous = each


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.head", description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="*", help="measurements: sizes, streamed, kinds (default: all)")
    parser.add_argument(
        "--most", type=int, default=1_000_000, help="largest number of photos of streamed (default 1000000)"
    )
    parser.add_argument(
        "--directory", type=Path, help="directory for the file of embeddings (default: a temporary one)"
    )
    results.add_output_option(parser)
    options = parser.parse_args()
    chosen = options.what or ["sizes", "streamed", "kinds"]
    count = options.most if "streamed" in chosen else 100_000
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        needed = 2 * DIMENSION * count
        if shutil.disk_usage(directory).free < 2 * needed:
            parser.error(
                f"{directory} has less than {2 * needed / 1e9:.0f} GB free; give another --directory"
            )
        path = Path(directory) / "embeddings.npy"
        write_embeddings(path, count)
        if "sizes" in chosen:
            print_table(path, "In memory", [(size, "linear", False) for size in (1_000, 10_000, 100_000)])
        if "streamed" in chosen:
            sizes = sorted({min(100_000, count), min(300_000, count), count})
            print_table(path, "Streamed", [(size, "linear", True) for size in sizes])
        if "kinds" in chosen:
            print_table(path, "Kinds", [(10_000, kind, False) for kind in ("linear", "hidden")])
    results.write(options.output, "head")


if __name__ == "__main__":
    main()
