"""hubhead's own runtime in a bare loop, without the job around it: it rejects, stores and resumes nothing."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np

from serving import bundle, contract, runtime
from tests.bench.peers.model import BUNDLE
from tests.bench.peers.scripts.photo import list_photos, write_scores


def main() -> None:
    """Run the command."""
    directory, photo_directory, output = map(Path, sys.argv[1:])
    model = runtime.load(bundle.resolve(directory / BUNDLE))
    start = time.perf_counter()
    photos = list_photos(photo_directory)
    contents = (photo.read_bytes() for photo in photos)
    outputs = list(model.imap(contract.PROBABILITIES, contract.IMAGE_BYTES, contents))
    scores = np.concatenate([output[contract.PROBABILITIES] for output in outputs])
    write_scores(output, photos, scores, directory)
    print(f"{len(photos) / (time.perf_counter() - start):.2f} photos/s")


if __name__ == "__main__":
    main()
