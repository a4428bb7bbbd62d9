"""OpenVINO and Pillow: a stream for each core, its queue of requests, and photos decoded ahead."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import openvino

from serving.process import map_ahead
from tests.bench.peers.scripts.photo import CORES, decode, list_photos, read_labels, write_scores


def main() -> None:
    """Run the command."""
    model, directory, output = map(Path, sys.argv[1:])
    # Without the last one it calculates in bfloat16 where the CPU can, with other results.
    hints = {"NUM_STREAMS": CORES, "INFERENCE_NUM_THREADS": CORES, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(model / "classifier.onnx", "CPU", hints)
    start = time.perf_counter()
    photos = list_photos(directory)
    scores = np.empty((len(photos), len(read_labels(model))), np.float32)

    def keep(request: Any, number: int) -> None:
        scores[number] = request.get_output_tensor(0).data[0]

    # Requests of its own in several threads wait for each other for ever now and then (OpenVINO 2026.4).
    queue = openvino.AsyncInferQueue(compiled, 2 * CORES)
    queue.set_callback(keep)
    pixels = map_ahead(lambda photo: decode(photo.read_bytes())[None], photos, CORES, 4 * CORES)
    for number, photo in enumerate(pixels):
        queue.start_async({0: photo}, number)
    queue.wait_all()
    write_scores(output, photos, scores, model)
    print(f"{len(photos) / (time.perf_counter() - start):.2f} photos/s")


if __name__ == "__main__":
    main()
