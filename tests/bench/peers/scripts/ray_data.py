"""Ray Data: an actor for each core decodes with Pillow and runs ONNX Runtime."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import ray

from tests.bench.peers.scripts.photo import CORES, decode, open_session, read_labels


class Classifier:
    """The model, loaded once per actor."""

    def __init__(self, model: Path) -> None:
        self._session, self._labels = open_session(model), np.array(read_labels(model))

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Classify a batch; one photo per call of the model, which is the fastest on CPUs."""
        pixels = (decode(content)[None] for content in batch["bytes"])
        scores = np.concatenate([self._session.run(None, {"pixels": photo})[0] for photo in pixels])
        return {
            "uri": batch["path"],
            "label": self._labels[scores.argmax(axis=1)],
            "score": scores.max(axis=1),
        }


def main() -> None:
    """Run the command."""
    model, directory, output = map(Path, sys.argv[1:])
    # Two slots per core: the actors hold one each, and reading and writing would wait for them for ever.
    ray.init(num_cpus=2 * CORES, log_to_driver=False, include_dashboard=False)
    start = time.perf_counter()
    photos = ray.data.read_binary_files(str(directory), include_paths=True)
    scores = photos.map_batches(
        Classifier, fn_constructor_args=[model], batch_size=32, compute=ray.data.ActorPoolStrategy(size=CORES)
    )
    scores.write_parquet(str(output))
    print(f"{len(list(directory.iterdir())) / (time.perf_counter() - start):.2f} photos/s")


if __name__ == "__main__":
    main()
