"""A photo as the peers read it, and the table that they write."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SIDE = 224
CORES = len(os.sched_getaffinity(0))


def decode(content: bytes) -> NDArray[np.uint8]:
    """Decode a JPEG with Pillow; return pixels uint8 [224,224,3]."""
    from PIL import Image

    image = Image.open(io.BytesIO(content))
    # libjpeg then decodes a large photo at 1/2, 1/4 or 1/8 of its size, but at twice the target at least.
    image.draft("RGB", (2 * SIDE, 2 * SIDE))
    return np.asarray(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def open_session(model: Path, threads: int = 1) -> Any:
    """Load the classifier in ONNX Runtime, with a number of threads for each call."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(model / "classifier.onnx", options, ["CPUExecutionProvider"])


def list_photos(directory: Path) -> list[Path]:
    """Return the photos of a directory."""
    return sorted(directory.iterdir())


def read_labels(model: Path) -> list[str]:
    """Return the labels in the order of the classifier's columns."""
    return (model / "labels.txt").read_text().splitlines()


def write_scores(output: Path, photos: Sequence[Path], scores: NDArray[np.float32], model: Path) -> None:
    """Write path, best label and its score of each photo, given probabilities [N,K]."""
    import pyarrow as pa
    from pyarrow import parquet

    labels = read_labels(model)
    columns = {
        "uri": [str(photo) for photo in photos],
        "label": [labels[best] for best in scores.argmax(axis=1)],
        "score": scores.max(axis=1),
    }
    parquet.write_table(pa.table(columns), output)
