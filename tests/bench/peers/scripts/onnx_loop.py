"""ONNX Runtime and Pillow: a thread for each core, one photo per call, which is its fastest batch on CPUs."""

from __future__ import annotations

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from tests.bench.peers.scripts.photo import CORES, decode, list_photos, open_session, write_scores


def main() -> None:
    """Run the command."""
    model, directory, output = map(Path, sys.argv[1:])
    session = open_session(model)

    def classify(photo: Path) -> Any:
        return session.run(None, {"pixels": decode(photo.read_bytes())[None]})[0][0]

    start = time.perf_counter()
    photos = list_photos(directory)
    with ThreadPoolExecutor(CORES) as pool:
        scores = np.stack(list(pool.map(classify, photos)))
    write_scores(output, photos, scores, model)
    print(f"{len(photos) / (time.perf_counter() - start):.2f} photos/s")


if __name__ == "__main__":
    main()
