"""Training and scoring at the size of Food-101: `python -m tests.bench.food_101`.

    rates   `hubhead train` and `hubhead score` with an empty embedding store, on JPEGs whose longer side has
            512 pixels and that have 50 kB on average, as the photos of Food-101: camera photos, resized
    train   `hubhead train` with 101,000 files in train.txt and test.txt whose embeddings are in the store:
            time and memory of everything but decoding and embedding. The embeddings are synthetic, those of
            tests.bench.head, and the files are tiny JPEGs, of which the checks and the report read a few

Each is a command of its own, as a separate process. Searching near-duplicates is left out: identical pictures
would all be found.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from serving.process import get_cpu_model
from tests.bench import camera, results
from tests.bench.head import DIMENSION, LABELS, fill_embeddings
from tests.bench.processes import Cost, run_command

PHOTOS, TESTED = 101_000, 0.25
"""Photos of Food-101, and the fraction that its test.txt lists."""

LONGER_SIDE, MEAN_BYTES = 512, 50_000

_SHAPES = ((512, 512), (512, 384), (384, 512), (512, 341))
"""Widths and heights, by turns."""

_FEW_LABELS = 4
_ROWS_PER_FILE = 8192
_HUBHEAD = (sys.executable, "-c", "import hubhead; hubhead.main()")
_QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3"}


def read_photos(directory: Path) -> list[bytes]:
    """Return camera photos of the size of those of Food-101, each in several crops.

    The quality of the JPEGs is the one at which they come closest to MEAN_BYTES.

    Args:
        directory: directory with camera photos.
    """
    pictures = []
    for number, content in enumerate(camera.read_photos(directory)):
        with Image.open(io.BytesIO(content)) as image:
            width, height = _SHAPES[number % len(_SHAPES)]
            pictures.append(image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS))

    def encode(quality: int) -> list[bytes]:
        return [_encode(picture, quality) for picture in pictures]

    candidates = (encode(quality) for quality in range(40, 96, 5))
    return min(candidates, key=lambda contents: abs(statistics.mean(map(len, contents)) - MEAN_BYTES))


def _encode(picture: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def write_photos(contents: Sequence[bytes], count: int, images: Path) -> None:
    """Write distinct photos in a few directories: the time of the fit is measured elsewhere."""
    for number in range(count):
        directory = images / f"label {number % _FEW_LABELS}"
        directory.mkdir(parents=True, exist_ok=True)
        # Bytes after the end of a JPEG do not change the picture, but make its content distinct.
        content = contents[number % len(contents)] + number.to_bytes(4, "big")
        (directory / f"{number:06}.jpg").write_bytes(content)


def run_hubhead(*arguments: str) -> Cost:
    """Run a command that prints JSON."""
    return run_command([*_HUBHEAD, *arguments, "--json"], _QUIET)


def measure_rates(count: int, rounds: int, top: Path) -> list[str]:
    """Train and score that many photos with an empty store in turns; return the lines to print."""
    contents = read_photos(camera.find_directory())
    write_photos(contents, count, top / "images")
    trained, scored = [], []
    for number in range(rounds):
        work = top / f"round {number}"
        options = ("--embedding_store", f"{work}/store")
        model = work / "model"
        train = ("train", "--image_dir", f"{top}/images", "--saved_model_dir", str(model))
        cost = run_hubhead(*train, *options, "--near_duplicates", "ignore")
        trained.append((count / json.loads(cost.output)["seconds"]["embed"], cost))
        score = ("score", "--photos", f"{top}/images", "--model", str(model), "--output", f"{work}/scores")
        cost = run_hubhead(*score, "--embedding_store", f"{work}/other store")
        scored.append((json.loads(cost.output)["this_run"]["photos_per_second"], cost))
    size = statistics.mean(map(len, contents)) / 1000
    lines = [f"{count} JPEGs of {size:.0f} kB on average, made of {len(contents)}, {rounds} rounds"]
    for name, runs in (("train, decode and embed", trained), ("score", scored)):
        rate = statistics.median(rate for rate, _ in runs)
        figures = {
            "photos/s": rate,
            "minutes for 101,000": PHOTOS / rate / 60,
            "processor ms per photo, whole command": statistics.median(
                1000 * cost.processor_seconds / count for _, cost in runs
            ),
            "peak MB": max(cost.peak_mib for _, cost in runs) * 2**20 / 1e6,
        }
        results.add_row(f"{count} photos of {size:.0f} kB", {"command": name} | figures)
        lines.append(f"{name}: " + ", ".join(f"{key} {value:.1f}" for key, value in figures.items()))
    return lines


def embed_photo(bundle: Path, photo: bytes) -> NDArray[np.float32]:
    """Return the embedding [D] of a photo."""
    from serving import contract, runtime

    (outputs,) = runtime.load(bundle).imap(contract.EMBED, contract.IMAGE_BYTES, [photo])
    found: NDArray[np.float32] = outputs[contract.EMBEDDING]
    return found


def write_embedded_files(count: int, top: Path) -> None:
    """Write Food-101's directories and lists with tiny photos, and a store of synthetic embeddings."""
    from batch.embeddings import Embeddings, EmbeddingStore, hash_photo
    from batch.inputs.listing import Photo
    from serving.contract import Status
    from tests.bench.variants import load_template
    from trainer.training.outputs import PARITY_PHOTOS

    template = load_template()
    metadata = template.metadata
    photo = _encode(Image.new("RGB", (8, 8), "white"), 75)
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        embedded = pool.submit(embed_photo, template.path, photo).result()
    store = EmbeddingStore(str(top / "store"), metadata.fingerprint, metadata.dimension)
    vectors = np.empty((count, DIMENSION), np.float16)
    targets = fill_embeddings(count, 1, vectors)
    tested = np.arange(count) % round(1 / TESTED) == 0
    # The bundle is checked on the first test photos: those have the embedding that the model computes.
    by_path = np.argsort(targets, kind="stable")
    vectors[by_path[tested[by_path]][:PARITY_PHOTOS]] = embedded
    lists: dict[str, list[str]] = {"train": [], "test": []}
    for label in range(LABELS):
        (top / f"food-101/images/label {label:03}").mkdir(parents=True)
    for start in range(0, count, _ROWS_PER_FILE):
        rows = range(start, min(start + _ROWS_PER_FILE, count))
        index = {}
        for row in rows:
            name = f"label {targets[row]:03}/{row:06}"
            path = top / f"food-101/images/{name}.jpg"
            content = photo + row.to_bytes(4, "big")
            path.write_bytes(content)
            found = path.stat()
            index[Photo(str(path), found.st_size, found.st_mtime_ns)] = hash_photo(content)
            lists["test" if tested[row] else "train"].append(name)
        sides = np.full(len(rows), LONGER_SIDE, np.int32)
        statuses, details = [Status.OK] * len(rows), [None] * len(rows)
        part = vectors[rows.start : rows.stop]
        store.append(index, Embeddings(list(index.values()), part, statuses, details, sides, sides))
    (top / "food-101/meta").mkdir()
    for name, lines in lists.items():
        (top / f"food-101/meta/{name}.txt").write_text("\n".join(lines) + "\n")


def measure_train(count: int, top: Path) -> list[str]:
    """Train on that many stored embeddings; return the lines to print."""
    write_embedded_files(count, top)
    cost = run_hubhead(
        *("train", "--image_dir", f"{top}/food-101/images", "--split_files", f"{top}/food-101/meta"),
        *("--saved_model_dir", f"{top}/models/food-101", "--embedding_store", f"{top}/store"),
        *("--near_duplicates", "ignore"),
    )
    steps = {name: seconds for name, seconds in json.loads(cost.output)["seconds"].items() if seconds > 0.05}
    figures = {
        "files": count,
        "wall s": cost.seconds,
        "processor s": cost.processor_seconds,
        "peak MB": cost.peak_mib * 2**20 / 1e6,
        "store MB": sum(file.stat().st_size for file in (top / "store").rglob("*.parquet")) / 1e6,
    }
    title = "`hubhead train --split_files` from the embedding store, 101 labels"
    results.add_row(title, figures)
    results.add_row("Seconds by step", steps)
    return [
        ", ".join(f"{key} {value:,.0f}" for key, value in figures.items()),
        "seconds by step: " + ", ".join(f"{key} {value:.1f}" for key, value in steps.items()),
    ]


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.food_101", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("what", nargs="*", help="measurements: rates, train (default: both)")
    parser.add_argument("--photos", type=int, default=600, help="photos of rates (default 600)")
    parser.add_argument("--rounds", type=int, default=2, help="rounds of rates (default 2)")
    parser.add_argument("--files", type=int, default=PHOTOS, help="files of train (default 101000)")
    results.add_output_option(parser)
    options = parser.parse_args()
    chosen = options.what or ["rates", "train"]
    print(f"{get_cpu_model()}, {os.cpu_count()} cores, load before {os.getloadavg()[0]:.1f}", flush=True)
    with tempfile.TemporaryDirectory(prefix="hubhead-bench-") as directory:
        if "rates" in chosen:
            lines = measure_rates(options.photos, options.rounds, Path(directory) / "rates")
            print(*lines, sep="\n", flush=True)
        if "train" in chosen:
            print(*measure_train(options.files, Path(directory) / "train"), sep="\n", flush=True)
    print(f"load after {os.getloadavg()[0]:.1f}")
    results.add_note(
        f"Rates are medians of {options.rounds} rounds. The load after the measurement was"
        f" {os.getloadavg()[0]:.1f}."
    )
    results.write(options.output, "food-101")


if __name__ == "__main__":
    main()
