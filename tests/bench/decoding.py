"""Speed, accuracy and memory of the preprocessing: `python -m tests.bench.decoding`.

    speed      decoding of JPEGs of 12 and 2 megapixels and of the sample photos, compared with plain
               decoders and with Pillow
    agreement  embeddings of camera photos, compared with those of a full decode with area resizing
    memory     resident memory over thousands of calls with broken photos among them, and peak memory
               for photos at the limits

`speed` is in milliseconds of processor time per photo on one thread, which stays comparable on a busy
machine. The decoders run in turns, and each figure is the median of the rounds.
"""

from __future__ import annotations

import argparse
import io
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

from tests.bench import camera, results
from trainer import preprocessing
from trainer.dataset.download import cache_directory
from trainer.preprocessing import Preprocessing

SIZE = [224, 224]
HUBHEAD = "hubhead's graph"
BATCH = 8
"""Photos per call, as in serving.runtime."""


def _map_over_batch(decode: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return a plain decoder of batches, which fails as a whole if one photo is bad."""
    import tensorflow as tf

    spec = tf.TensorSpec([*SIZE, 3], tf.float32)
    return lambda contents: tf.map_fn(decode, contents, fn_output_signature=spec)


def _resize(pixels: Any, method: str) -> Any:
    import tensorflow as tf

    return tf.image.resize(tf.ensure_shape(pixels, [None, None, 3]), SIZE, method=method, antialias=True)


def _make_decoders() -> dict[str, Callable[[Sequence[bytes]], Any]]:
    import tensorflow as tf

    def decode_image(content: Any, dtype: Any) -> Any:
        return tf.io.decode_image(content, channels=3, expand_animations=False, dtype=dtype)

    settings = Preprocessing()
    graphs = {
        "decode_image to floats in [0,1], antialiased": _map_over_batch(
            lambda content: _resize(decode_image(content, tf.float32), "bilinear")
        ),
        "decode_image to bytes, antialiased": _map_over_batch(
            lambda content: _resize(decode_image(content, tf.uint8), "bilinear")
        ),
        "decode_jpeg, bicubic, antialiased": _map_over_batch(
            lambda content: _resize(tf.io.decode_jpeg(content, channels=3), "bicubic")
        ),
        HUBHEAD: lambda contents: preprocessing.decode_photos(contents, settings)[0],
    }
    return {name: _trace(graph) for name, graph in graphs.items()} | {
        "Pillow in draft mode, bicubic, antialiased": _decode_with_pillow
    }


def _trace(graph: Callable[[Any], Any]) -> Callable[[Sequence[bytes]], Any]:
    """Return a graph as a function of a batch of encoded photos."""
    import tensorflow as tf

    traced = tf.function(graph, input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)
    return lambda contents: traced(tf.constant(contents))


def _decode_with_pillow(contents: Sequence[bytes]) -> Any:
    """Decode as a careful script does: JPEGs at a reduced scale, resized with antialiasing, not upright."""
    from PIL import Image

    pixels = np.empty((len(contents), *SIZE, 3), np.uint8)
    for row, content in zip(pixels, contents, strict=True):
        with Image.open(io.BytesIO(content)) as image:
            image.draft("RGB", (SIZE[1], SIZE[0]))
            row[:] = image.convert("RGB").resize((SIZE[1], SIZE[0]), Image.Resampling.BICUBIC)
    return pixels


def measure_speed(directory: Path, rounds: int) -> None:
    """Print milliseconds per photo of each decoder."""
    from trainer.dataset.samples import fetch_sample_photos

    samples = sorted(fetch_sample_photos(cache_directory()).directory.glob("*/*"))[:64]
    sets = {
        "4000 x 3000": camera.read_resized_photos(directory, 4000, 3000, 8),
        "1632 x 1224": camera.read_resized_photos(directory, 1632, 1224, 16),
        "sample photos": [path.read_bytes() for path in samples],
    }
    decoders = _make_decoders()
    for title, contents in sets.items():
        batches = [contents[at : at + BATCH] for at in range(0, len(contents), BATCH)]
        spent: dict[str, list[float]] = {name: [] for name in decoders}
        for number in range(rounds + 1):
            for name, decoder in decoders.items():
                start = time.process_time()
                for batch in batches:
                    decoder(batch)
                if number:  # the first round is a warm-up
                    spent[name].append((time.process_time() - start) / len(contents) * 1000)
        base = statistics.median(spent[HUBHEAD])
        print(
            f"\n{title}: {len(contents)} photos, {sum(map(len, contents)) / len(contents) / 1e3:.0f} kB each"
        )
        for name, found in spent.items():
            median = statistics.median(found)
            print(f"{median:9.2f} ms {median / base:6.2f} x  lowest {min(found):7.2f}  {name}")
            row = {"decoder": name, "ms per photo": median, "ratio": median / base, "lowest": min(found)}
            results.add_row(f"{title}: processor milliseconds per photo on one thread", row)


def measure_agreement(directory: Path) -> None:
    """Print the cosine of embeddings with those of a full decode with area resizing."""
    import tensorflow as tf

    from trainer.backbones import DEFAULT
    from trainer.backbones.hub import load

    network = load(DEFAULT, cache_directory())
    contents = camera.read_photos(directory)
    decode = tf.function(
        lambda batch: preprocessing.decode_photos(batch, Preprocessing())[0],
        input_signature=[tf.TensorSpec([None], tf.string)],
        autograph=False,
    )

    def decode_fully(content: bytes) -> Any:
        return tf.io.decode_jpeg(content, channels=3, dct_method="INTEGER_ACCURATE")

    decoders: dict[str, Callable[[bytes], Any]] = {
        "full decode, area (the reference)": lambda content: tf.image.resize(
            decode_fully(content), SIZE, method="area"
        ),
        "full decode, bilinear, antialiased": lambda content: _resize(decode_fully(content), "bilinear"),
        "full decode, bilinear, not antialiased (retrain.py)": lambda content: tf.image.resize(
            decode_fully(content), SIZE
        ),
        HUBHEAD: lambda content: tf.cast(decode(tf.constant([content]))[0], tf.float32),
    }
    embeddings = {}
    for name, decoder in decoders.items():
        pixels = [tf.clip_by_value(tf.round(decoder(content)), 0, 255) / 255 for content in contents]
        embeddings[name] = np.concatenate(
            [network.apply(tf.stack(pixels[at : at + 8])).numpy() for at in range(0, len(pixels), 8)]
        )
    print(
        f"\n{len(contents)} photos; cosine with the embedding of the reference: mean, 5 % quantile, minimum"
    )
    reference = _normalize(next(iter(embeddings.values())))
    for name, found in embeddings.items():
        cosine = (_normalize(found) * reference).sum(axis=1)
        print(f"{cosine.mean():9.4f} {np.quantile(cosine, 0.05):9.4f} {cosine.min():9.4f}  {name}")
        row = {"decoder": name, "mean": cosine.mean(), "5 % quantile": np.quantile(cosine, 0.05)}
        row = {key: value if isinstance(value, str) else float(value) for key, value in row.items()}
        title = f"Cosine with the embedding of the reference, {len(contents)} camera photos"
        results.add_row(title, row | {"minimum": float(cosine.min())})


def _normalize(rows: Any) -> Any:
    """Scale rows to length one."""
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def measure_memory(calls: int) -> None:
    """Print the resident memory over many calls, then the peak memory of calls at the limits."""
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
    print(f"\n{calls} calls of {BATCH} out of {len(small)} odd and broken files: calls, resident MiB")
    for call in range(calls + 1):
        traced(tf.constant([small[index] for index in random.integers(0, len(small), BATCH)]))
        if call % max(calls // 10, 1) == 0:
            print(f"{call:7} {_resident_mib():8.0f}", flush=True)
    print("\nPeak MiB of one call above the resident memory before it, each in a separate process")
    for name in make_extreme_calls():
        code = f"from tests.bench import decoding; decoding.print_peak({name!r})"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        print(done.stdout, end="", flush=True)
        peak, seconds, _, what = done.stdout.split(maxsplit=3)
        row = {"call": what.strip(), "peak MiB": float(peak), "seconds": float(seconds)}
        results.add_row("Memory of one call above that before it", row)


def make_extreme_calls() -> dict[str, Callable[[], Sequence[bytes]]]:
    """Return calls that need as much memory as photos within the limits can need, by name."""
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


def print_peak(name: str) -> None:
    """Print the peak memory of one call, its seconds, and whether all photos were decoded."""
    import tensorflow as tf

    traced = tf.function(
        lambda contents: preprocessing.decode_photos(contents, Preprocessing())[1],
        input_signature=[tf.TensorSpec([None], tf.string)],
        autograph=False,
    )
    calls = make_extreme_calls()
    contents = tf.constant(list(calls[name]()))
    traced(tf.constant(calls["32 sample-sized JPEGs"]()[:1]))  # a warm-up
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak, which was that of generating the photos
    before, start = _resident_mib(), time.perf_counter()
    statuses = traced(contents).numpy()
    seconds = time.perf_counter() - start
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
    decoded = "all decoded" if statuses.max() == 0 else "not all decoded"
    print(f"{int(peak.split()[1]) / 1024 - before:8.0f} {seconds:7.2f} s  {name}: {decoded}")


def _resident_mib() -> float:
    """Return the resident memory of this process in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def main() -> None:
    """Run the command."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.decoding", description=__doc__.splitlines()[0]
    )
    parser.add_argument("what", nargs="*", help="measurements: speed, agreement, memory (default: all)")
    parser.add_argument(
        "--photos", type=Path, help="directory of camera photos (default: those of Debian's packages)"
    )
    parser.add_argument("--rounds", type=int, default=7, help="number of counted rounds of speed (default 7)")
    parser.add_argument("--calls", type=int, default=10_000, help="number of calls of memory (default 10000)")
    results.add_output_option(parser)
    options = parser.parse_args()
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    chosen = options.what or ["speed", "agreement", "memory"]
    if "speed" in chosen:
        measure_speed(camera.find_directory(options.photos), options.rounds)
    if "agreement" in chosen:
        measure_agreement(camera.find_directory(options.photos))
    if "memory" in chosen:
        measure_memory(options.calls)
    results.write(options.output, "decoding")


if __name__ == "__main__":
    main()
