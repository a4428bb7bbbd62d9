"""What fitting a head takes: `python -m tests.bench.head`.

    sizes     the linear head on 1,000 to 100,000 synthetic embeddings in memory
    streamed  the same on 100,000 to 1,000,000 in a file, which is never in memory as a whole
    kinds     linear, hidden and cosine on 10,000

Each fit runs in a process of its own: processor and wall time of the fit, and the peak of its resident
memory; of photos in memory that holds the embeddings too, of a file without the pages mapped from
it, which the system takes back when it needs them. Ratios per photo are against the row above.
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

DIMENSION, LABELS, LATENT = 1280, 101, 64
SEED = 12345
TEST = 5000
_CHUNK = 4096


def embeddings(count: int, seed: int, out: NDArray[np.float16]) -> NDArray[np.int64]:
    """Fill `out` [count,1280] like a network's pooled activations: few factors, noise, nothing below zero."""
    random = np.random.default_rng(SEED)
    centres = (0.45 * random.standard_normal((LABELS, LATENT))).astype(np.float32)
    fading = np.exp(-np.arange(LATENT) / 40)[:, None] / 4
    factors = (random.standard_normal((LATENT, DIMENSION)) * fading).astype(np.float32)
    shift = (0.3 * random.standard_normal(DIMENSION) - 0.5).astype(np.float32)
    random = np.random.default_rng(seed)
    targets = random.integers(0, LABELS, count)
    noise = 0.35 * random.standard_normal((2 * _CHUNK, DIMENSION), np.float32)
    for start in range(0, count, _CHUNK):
        labels = targets[start : start + _CHUNK]
        latent = centres[labels] + random.standard_normal((len(labels), LATENT), np.float32)
        turn = int(random.integers(_CHUNK))  # noise drawn anew for each would take most of the time
        rows = latent @ factors + shift + noise[turn : turn + len(labels)]
        out[start : start + _CHUNK] = np.maximum(rows, 0)
    return targets


def make(path: Path, count: int) -> None:
    """A file of float16 embeddings, and one of their labels beside it."""
    rows = np.lib.format.open_memmap(path, "w+", np.float16, (count, DIMENSION))
    np.save(path.with_suffix(".labels.npy"), embeddings(count, 1, rows))


def fit(path: str, count: int, kind: Any, streamed: bool) -> None:
    """Print, as JSON, what a fit takes; in a process of its own."""
    from trainer import heads

    targets = np.load(Path(path).with_suffix(".labels.npy"))[:count]
    mapped = np.load(path, mmap_mode="r")[:count]
    rows: Any = mapped if streamed else mapped.astype(np.float32)
    settings = heads.HeadSettings(kind=kind, memory=0 if streamed else heads.HeadSettings().memory)
    with _Peak() as peak:
        start, spent = time.perf_counter(), time.process_time()
        fitted, selection = heads.fit(rows, targets, LABELS, settings=settings)
        wall, processor = time.perf_counter() - start, time.process_time() - spent
    test = np.empty((TEST, DIMENSION), np.float16)
    of_test = embeddings(TEST, 2, test)
    probabilities = fitted.probabilities(test.astype(np.float32))
    found = {
        "processor": processor,
        "wall": wall,
        "peak": peak.bytes,
        "accuracy": float((probabilities.argmax(1) == of_test).mean()),
        "loss": heads.log_loss(probabilities, of_test),
        "chosen": selection.settings | {"method": selection.method},
    }
    print(json.dumps(found))


class _Peak:
    """The most anonymous memory the process has had within."""

    def __enter__(self) -> _Peak:
        self.bytes = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.01):
            lines = Path("/proc/self/status").read_text().splitlines()
            line = next(line for line in lines if line.startswith("RssAnon"))
            self.bytes = max(self.bytes, int(line.split()[1]) * 1024)


def table(path: Path, title: str, rows: Sequence[tuple[int, str, bool]]) -> None:
    """Run fits one after another and print a line for each."""
    print(f"\n{title}, {DIMENSION} dimensions, {LABELS} labels")
    print(
        "   photos    kind  processor     wall  per photo   peak MB  accuracy  log-loss  chosen", flush=True
    )
    last = 0.0
    for count, kind, streamed in rows:
        code = f"from tests.bench import head; head.fit({str(path)!r}, {count}, {kind!r}, {streamed})"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        found = json.loads(done.stdout)
        each = found["processor"] / count
        ratio = f"{each / last:9.2f}x" if last else f"{'1':>10}"
        chosen = {
            key: found["chosen"].get(key) for key in ("method", "strength", "shrinkage", "width", "epochs")
        }
        print(
            f"{count:9} {kind:>7} {found['processor']:8.1f} s {found['wall']:6.1f} s {ratio}"
            f" {found['peak'] / 1e6:9.0f} {found['accuracy']:9.1%} {found['loss']:9.3f}  "
            + ", ".join(f"{key} {value}" for key, value in chosen.items() if value is not None),
            flush=True,
        )
        last = each


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.head", description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="*", help="sizes, streamed, kinds (default: all)")
    parser.add_argument("--most", type=int, default=1_000_000, help="photos of streamed (default 1000000)")
    parser.add_argument("--directory", type=Path, help="for the file (default: the temporary directory)")
    options = parser.parse_args()
    chosen = options.what or ["sizes", "streamed", "kinds"]
    count = options.most if "streamed" in chosen else 100_000
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        needed = 2 * DIMENSION * count
        if shutil.disk_usage(directory).free < 2 * needed:
            parser.error(f"{directory} has not {2 * needed / 1e9:.0f} GB free; give another --directory")
        path = Path(directory) / "embeddings.npy"
        make(path, count)
        if "sizes" in chosen:
            table(path, "In memory", [(size, "linear", False) for size in (1_000, 10_000, 100_000)])
        if "streamed" in chosen:
            sizes = sorted({min(100_000, count), min(300_000, count), count})
            table(path, "Streamed", [(size, "linear", True) for size in sizes])
        if "kinds" in chosen:
            table(path, "Kinds", [(10_000, kind, False) for kind in ("linear", "hidden", "cosine")])


if __name__ == "__main__":
    main()
