"""OpenVINO and Pillow: a thread for each core, each with its own infer request and stream."""

from __future__ import annotations

import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import openvino

from tests.bench.peers.scripts.photo import CORES, decode, list_photos, write_scores


def main() -> None:
    """Run the command."""
    model, directory, output = map(Path, sys.argv[1:])
    # Without the last one it calculates in bfloat16 where the CPU can, with other results.
    hints = {"NUM_STREAMS": CORES, "INFERENCE_NUM_THREADS": CORES, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(model / "classifier.onnx", "CPU", hints)
    local = threading.local()

    def classify(photo: Path) -> Any:
        if not hasattr(local, "request"):
            local.request = compiled.create_infer_request()
        results = local.request.infer({0: decode(photo.read_bytes())[None]})
        return results[0][0].copy()

    start = time.perf_counter()
    photos = list_photos(directory)
    with ThreadPoolExecutor(CORES) as pool:
        scores = np.stack(list(pool.map(classify, photos)))
    write_scores(output, photos, scores, model)
    print(f"{len(photos) / (time.perf_counter() - start):.2f} photos/s")


if __name__ == "__main__":
    main()
