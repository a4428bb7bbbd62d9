"""Start-up cost of the client, and effect of downscaling: `python -m tests.bench.client --model models/food`.

    start      seconds and memory until a first request is built, compared with TensorFlow Serving's own API
    downscale  results for photos that are downscaled before sending, compared with those for whole photos

The variants of `start` run in new processes, in turns, and each figure is the median. For `downscale` the
sample photos are also enlarged to 12 megapixels, with the noise of a sensor, since the original photos are
small. No server is involved: the bundle classifies the bytes that would be sent.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from serving import contract
from serving.client.photos import DOWNSCALE_FACTOR, PhotoLoader
from serving.photos.converter import Converter
from tests.bench import results
from trainer.dataset.download import cache_directory

WIDTH, HEIGHT = 4000, 3000
NOISE = 6.0
"""Standard deviation of the noise, on the scale 0 to 255."""

_BUILD = """
request.model_spec.name = "food"
request.inputs["image_bytes"].dtype = 7
request.inputs["image_bytes"].string_val.append(b"photo")
"""

START_CODE = {
    "hubhead's client": "from serving import protos\nfrom serving.client import Client\n"
    "client = Client('localhost:1', model='food')\nrequest = protos.PredictRequest()" + _BUILD,
    "grpc and numpy alone": "import grpc, numpy\nchannel = grpc.insecure_channel('localhost:1')",
    "tensorflow_serving.apis": "import grpc\nfrom tensorflow_serving.apis import predict_pb2, "
    "prediction_service_pb2_grpc\nchannel = grpc.insecure_channel('localhost:1')\n"
    "stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)\n"
    "request = predict_pb2.PredictRequest()" + _BUILD,
}

_MEASURE = """
import json, resource, sys, time
begin, cpu = time.perf_counter(), time.process_time()
{code}
done = time.perf_counter() - begin, time.process_time() - cpu
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps([*done, peak, "tensorflow" in sys.modules]))
"""


def measure_start(rounds: int) -> None:
    """Print wall seconds, processor seconds and peak memory until each variant has built a request."""
    found: dict[str, list[list[float]]] = {name: [] for name in START_CODE}
    for number in range(rounds + 1):
        for name, code in START_CODE.items():
            done = subprocess.run(
                [sys.executable, "-c", _MEASURE.format(code=code)], capture_output=True, text=True, check=True
            )
            if number:  # the first round fills the file cache
                found[name].append(json.loads(done.stdout.splitlines()[-1]))
    medians = {
        name: [statistics.median(column) for column in zip(*rows, strict=True)]
        for name, rows in found.items()
    }
    base = medians["hubhead's client"]
    print(f"\n{'seconds':>8} {'cpu':>6} {'MB':>6} {'ratio':>7}  until a first request (median of {rounds})")
    for name, (seconds, cpu, megabytes, _) in medians.items():
        print(f"{seconds:8.2f} {cpu:6.2f} {megabytes:6.0f} {cpu / base[1]:7.2f}  {name}")
        row = {"imported": name, "wall s": seconds, "processor s": cpu, "ratio": cpu / base[1]}
        results.add_row("Until a first request is built", row | {"peak MB": megabytes})


def enlarge(content: bytes, draw: np.random.Generator) -> bytes:
    """Enlarge a photo to 12 megapixels, add noise, and encode it as a camera would."""
    with Image.open(io.BytesIO(content)) as image:
        pixels = np.asarray(
            image.convert("RGB").resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS), np.float32
        )
    noisy = pixels + draw.normal(0, NOISE, pixels.shape).astype(np.float32)
    buffer = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def measure_downscaling(model: Path, samples: int, large: int) -> None:
    """Print how well the results for downscaled and whole photos agree."""
    from serving import bundle, runtime
    from trainer.dataset.samples import fetch_sample_photos

    loaded = runtime.load(bundle.resolve(model))
    shape = loaded.signatures[contract.CLASSIFY_PIXELS].inputs[contract.PIXELS].shape
    assert shape is not None
    side = DOWNSCALE_FACTOR * max(size for size in shape[1:3] if size)
    paths = sorted(fetch_sample_photos(cache_directory()).directory.glob("*/*"))
    draw = np.random.default_rng(1)
    step = max(1, len(paths) // samples)
    # Unchanged, and at a size that is worth downscaling.
    small = [path.read_bytes() for path in paths[::step][:samples]]
    sets = {
        "sample photos": small,
        f"the same at {WIDTH} x {HEIGHT}": [enlarge(content, draw) for content in small[:large]],
    }
    print(f"\nshorter side at most {side} pixels")
    with Converter() as converter:
        loader = PhotoLoader(converter, target_side=side)
        for title, contents in sets.items():
            ready = [loader(content) for content in contents]
            _compare_results(
                loaded, title, contents, [content for content in ready if isinstance(content, bytes)]
            )


def _compare_results(model: Any, title: str, whole: Sequence[bytes], sent: Sequence[bytes]) -> None:
    """Print agreement of embeddings, best labels and probabilities, and the bytes saved."""
    before, after = (_run_model(model, contents) for contents in (whole, sent))
    cosine = np.sum(before[0] * after[0], axis=1) / (
        np.linalg.norm(before[0], axis=1) * np.linalg.norm(after[0], axis=1)
    )
    same = float(np.mean([a == b for a, b in zip(before[1], after[1], strict=True)]))
    change = np.abs(before[2] - after[2])
    bytes_before, bytes_after = (sum(map(len, contents)) / len(whole) / 1000 for contents in (whole, sent))
    print(
        f"{title}: {len(whole)} photos, {bytes_before:.0f} kB each, sent as {bytes_after:.0f} kB; "
        f"cosine of embeddings: mean {cosine.mean():.4f}, worst {cosine.min():.4f}; "
        f"same best label: {same:.1%}; its probability changes by {change.mean():.3f} on average, "
        f"{change.max():.3f} at most",
        flush=True,
    )
    row: dict[str, results.Value] = {"photos": title, "number": len(whole), "kB": bytes_before}
    row |= {"kB sent": bytes_after, "cosine, mean": round(float(cosine.mean()), 4)}
    row |= {"cosine, worst": round(float(cosine.min()), 4), "same best label": f"{same:.1%}"}
    row |= {"change of its probability, mean": float(change.mean()), "largest": float(change.max())}
    results.add_row("Downscaled before sending, beside whole photos", row)


def _run_model(model: Any, contents: Sequence[bytes]) -> tuple[Any, list[bytes], Any]:
    """Return embeddings, best labels and their probabilities."""
    embeddings, labels, scores = [], [], []
    for outputs in model.imap(contract.EMBED, contract.IMAGE_BYTES, contents):
        embeddings.append(outputs[contract.EMBEDDING])
    for outputs in model.imap(contract.SERVING_DEFAULT, contract.IMAGE_BYTES, contents):
        labels += [row[0] for row in outputs[contract.CLASSES]]
        scores += [row[0] for row in outputs[contract.SCORES]]
    return np.concatenate(embeddings), labels, np.array(scores)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.client", description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="?", choices=["start", "downscale"], help="measurement (default: both)")
    parser.add_argument("--rounds", type=int, default=5, help="number of counted rounds of start (default 5)")
    parser.add_argument(
        "--model", type=Path, default=Path("demo/models/food"), help="bundle (default demo/models/food)"
    )
    parser.add_argument("--samples", type=int, default=200, help="number of sample photos (default 200)")
    parser.add_argument(
        "--large", type=int, default=60, help="number of them that are enlarged to 12 megapixels (default 60)"
    )
    results.add_output_option(parser)
    options = parser.parse_args()
    if options.what != "downscale":
        measure_start(options.rounds)
    if options.what != "start":
        measure_downscaling(options.model, options.samples, options.large)
    results.write(options.output, "client")


if __name__ == "__main__":
    main()
