"""tf.data around a SavedModel: photos are decoded and resized in parallel, in batches of 32."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tests.bench.peers.scripts.photo import SIDE, list_photos, write_scores


def decode(path: Any) -> Any:
    """Read and decode a JPEG; return pixels uint8 [224,224,3]."""
    pixels = tf.io.decode_jpeg(tf.io.read_file(path), channels=3)
    pixels = tf.image.resize(pixels, [SIDE, SIDE], method="bicubic", antialias=True)
    return tf.saturate_cast(tf.round(pixels), tf.uint8)


def main() -> None:
    """Run the command."""
    model, directory, output = map(Path, sys.argv[1:])
    classifier = tf.saved_model.load(str(model / "classifier"))
    start = time.perf_counter()
    photos = list_photos(directory)
    dataset = tf.data.Dataset.from_tensor_slices([str(photo) for photo in photos])
    dataset = dataset.map(decode, num_parallel_calls=tf.data.AUTOTUNE).batch(32).prefetch(2)
    scores = np.concatenate([classifier(pixels).numpy() for pixels in dataset])
    write_scores(output, photos, scores, model)
    print(f"{len(photos) / (time.perf_counter() - start):.2f} photos/s")


if __name__ == "__main__":
    main()
