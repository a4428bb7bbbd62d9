"""How fast, how faithful and how frugal the preprocessing is: `python -m tests.bench.decoding`.

    speed      decoding of 4000 x 3000 JPEGs, and of the sample photos, against plain decoders
    agreement  embeddings of camera photos against those of a full decode, area-resized
    memory     the process after thousands of calls with broken photos mixed in, and its peak
               for photos at the limits

`speed` is in milliseconds of processor time a photo on one thread, since that is what a busy
machine leaves comparable; the ways take turns, and each figure is the median of the rounds.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.bench import camera
from trainer import preprocessing
from trainer.dataset.download import cache_directory
from trainer.preprocessing import Preprocessing

SIZE = [224, 224]
BATCH = 4


def _mapped(decode: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A decoder of one photo for a batch, in the plain way: a bad photo fails all."""
    import tensorflow as tf

    spec = tf.TensorSpec([*SIZE, 3], tf.float32)
    return lambda contents: tf.map_fn(decode, contents, fn_output_signature=spec)


def _resize(pixels: Any, method: str) -> Any:
    import tensorflow as tf

    return tf.image.resize(tf.ensure_shape(pixels, [None, None, 3]), SIZE, method=method, antialias=True)


def _ways() -> dict[str, Callable[[Any], Any]]:
    import tensorflow as tf

    def decoded(content: Any, dtype: Any) -> Any:
        return tf.io.decode_image(content, channels=3, expand_animations=False, dtype=dtype)

    settings = Preprocessing()
    return {
        "decode_image to floats in [0,1], antialiased": _mapped(
            lambda content: _resize(decoded(content, tf.float32), "bilinear")
        ),
        "decode_image to bytes, antialiased": _mapped(
            lambda content: _resize(decoded(content, tf.uint8), "bilinear")
        ),
        "decode_jpeg, bicubic, antialiased": _mapped(
            lambda content: _resize(tf.io.decode_jpeg(content, channels=3), "bicubic")
        ),
        "hubhead's graph": lambda contents: preprocessing.decode_photos(contents, settings)[0],
    }


def speed(place: Path, rounds: int) -> None:
    """Print the table of milliseconds."""
    import tensorflow as tf

    from trainer.dataset.samples import fetch_sample_photos

    samples = sorted(fetch_sample_photos(cache_directory()).directory.glob("*/*"))[:64]
    sets = {
        "4000 x 3000": camera.resized(place, 4000, 3000, 8),
        "sample photos": [path.read_bytes() for path in samples],
    }
    ways = {
        name: tf.function(way, input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)
        for name, way in _ways().items()
    }
    for title, contents in sets.items():
        batches = [tf.constant(contents[at : at + BATCH]) for at in range(0, len(contents), BATCH)]
        spent: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(rounds + 1):
            for name, way in ways.items():
                start = time.process_time()
                for batch in batches:
                    way(batch)
                if turn:  # the first one warms up
                    spent[name].append((time.process_time() - start) / len(contents) * 1000)
        base = statistics.median(spent["hubhead's graph"])
        print(
            f"\n{title}: {len(contents)} photos, {sum(map(len, contents)) / len(contents) / 1e3:.0f} kB each"
        )
        for name, found in spent.items():
            middle = statistics.median(found)
            print(f"{middle:9.2f} ms {middle / base:6.2f} x  {name}")


def agreement(place: Path) -> None:
    """Print how close embeddings come to those of a full decode, area-resized."""
    import tensorflow as tf

    from trainer import backbones

    network = backbones.load(backbones.DEFAULT, cache_directory())
    contents = camera.photos(place)
    decode = tf.function(
        lambda batch: preprocessing.decode_photos(batch, Preprocessing())[0],
        input_signature=[tf.TensorSpec([None], tf.string)],
        autograph=False,
    )

    def whole(content: bytes) -> Any:
        return tf.io.decode_jpeg(content, channels=3, dct_method="INTEGER_ACCURATE")

    ways: dict[str, Callable[[bytes], Any]] = {
        "full decode, area (the reference)": lambda content: tf.image.resize(
            whole(content), SIZE, method="area"
        ),
        "full decode, bilinear, antialiased": lambda content: _resize(whole(content), "bilinear"),
        "full decode, bilinear, not antialiased (retrain.py)": lambda content: tf.image.resize(
            whole(content), SIZE
        ),
        "hubhead's graph": lambda content: tf.cast(decode(tf.constant([content]))[0], tf.float32),
    }
    embeddings = {}
    for name, way in ways.items():
        pixels = [tf.clip_by_value(tf.round(way(content)), 0, 255) / 255 for content in contents]
        embeddings[name] = np.concatenate(
            [network.apply(tf.stack(pixels[at : at + 8])).numpy() for at in range(0, len(pixels), 8)]
        )
    print(f"\n{len(contents)} photos; cosine with the embedding of the reference: mean, worst of 20, worst")
    reference = _of_length_one(next(iter(embeddings.values())))
    for name, found in embeddings.items():
        cosine = (_of_length_one(found) * reference).sum(axis=1)
        print(f"{cosine.mean():9.4f} {np.quantile(cosine, 0.05):9.4f} {cosine.min():9.4f}  {name}")


def _of_length_one(rows: Any) -> Any:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def memory(calls: int) -> None:
    """Print the resident memory while calls go on, then the peak of calls at the limits."""
    import tensorflow as tf

    from tests import corpus

    cases = corpus.cases()
    traced = tf.function(
        lambda contents: preprocessing.decode_photos(contents, Preprocessing())[1],
        input_signature=[tf.TensorSpec([None], tf.string)],
        autograph=False,
    )
    random = np.random.default_rng(0)
    small = [case.content for case in cases if case.height * case.width < 1_000_000]
    print(f"\n{calls} calls of {BATCH} out of {len(small)} odd and broken files: resident MB")
    for call in range(calls + 1):
        traced(tf.constant([small[index] for index in random.integers(0, len(small), BATCH)]))
        if call % max(calls // 10, 1) == 0:
            print(f"{call:7} {_resident():8.0f}", flush=True)
    print("\nPeak MB above that, a process each")
    for name in extremes():
        code = f"from tests.bench import decoding; decoding.peak({name!r})"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        print(done.stdout, end="", flush=True)


def extremes() -> dict[str, Callable[[], Sequence[bytes]]]:
    """Calls that cost as much as photos within the limits can."""
    from PIL import Image

    from tests.corpus.images import saved, translucent
    from tests.corpus.jpeg import jpeg

    def large(width: int, height: int) -> Image.Image:
        return Image.effect_noise((width // 8, height // 8), 60).resize((width, height)).convert("RGB")

    def clear(width: int, height: int) -> Image.Image:
        return translucent().resize((width, height))

    return {
        "32 sample-sized JPEGs": lambda: [jpeg()] * 32,
        "8 JPEGs of 12 megapixels": lambda: [jpeg(large(4000, 3000))] * 8,
        "8 progressive JPEGs of 12 megapixels": lambda: [jpeg(large(4000, 3000), progressive=True)] * 8,
        "8 JPEGs of 110 megapixels": lambda: [jpeg(large(11000, 10000))] * 8,
        "8 progressive JPEGs of 49 megapixels": lambda: [jpeg(large(7000, 7000), progressive=True)] * 8,
        "8 PNGs of 12 megapixels": lambda: [saved(large(4000, 3000), "PNG")] * 8,
        "8 transparent PNGs of 49 megapixels": lambda: (
            [saved(clear(7000, 7000), "PNG", compress_level=1)] * 8
        ),
        "8 WebPs of 49 megapixels": lambda: [saved(large(7000, 7000), "WEBP", quality=50, method=0)] * 8,
        "8 GIFs of 15 megapixels": lambda: [saved(large(4000, 3900).quantize(16), "GIF")] * 8,
        "8 strips, PNGs of 1,000,000 x 1": lambda: [saved(Image.new("L", (1_000_000, 1)), "PNG")] * 8,
    }


def peak(name: str) -> None:
    """Print what one call takes at its peak, above what the process took before it."""
    import tensorflow as tf

    traced = tf.function(
        lambda contents: preprocessing.decode_photos(contents, Preprocessing())[1],
        input_signature=[tf.TensorSpec([None], tf.string)],
        autograph=False,
    )
    warm, contents = extremes()["32 sample-sized JPEGs"](), tf.constant(list(extremes()[name]()))
    traced(tf.constant(warm[:1]))
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far was that of making the photos
    before, start = _resident(), time.perf_counter()
    statuses = traced(contents).numpy()
    seconds = time.perf_counter() - start
    high = next(line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
    print(f"{int(high.split()[1]) / 1024 - before:8.0f} {seconds:7.2f} s  {name}: {statuses.max() == 0}")


def _resident() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def main() -> None:
    """The command."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.decoding", description=__doc__.splitlines()[0]
    )
    parser.add_argument("what", nargs="*", help="speed, agreement, memory (default: all)")
    parser.add_argument("--photos", type=Path, help="camera photos (default: of Debian's packages)")
    parser.add_argument("--rounds", type=int, default=7, help="of speed (default 7)")
    parser.add_argument("--calls", type=int, default=10_000, help="of memory (default 10000)")
    options = parser.parse_args()
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    chosen = options.what or ["speed", "agreement", "memory"]
    if "speed" in chosen:
        speed(camera.directory(options.photos), options.rounds)
    if "agreement" in chosen:
        agreement(camera.directory(options.photos))
    if "memory" in chosen:
        memory(options.calls)


if __name__ == "__main__":
    main()
