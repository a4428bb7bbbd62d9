"""The pipeline around Beam's RunInference, which the peers with different model handlers share."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.io import fileio
from apache_beam.ml.inference.base import KeyedModelHandler, PredictionResult, RunInference

from tests.bench.peers.scripts.photo import decode, read_labels

SCHEMA = pa.schema([("uri", pa.string()), ("label", pa.string()), ("score", pa.float32())])


def read(file: Any) -> tuple[str, Any]:
    """Read and decode a photo; return its path and its pixels."""
    return file.metadata.path, decode(file.read())


def make_row(result: tuple[str, PredictionResult], labels: list[str]) -> dict[str, Any]:
    """Return the row of a photo."""
    path, prediction = result
    scores = np.asarray(prediction.inference)
    best = int(scores.argmax())
    return {"uri": path, "label": labels[best], "score": float(scores[best])}


def run(handler: Any) -> None:
    """Classify the photos of a directory with a model handler, and write them to Parquet."""
    model, directory, output = map(Path, sys.argv[1:])
    start = time.perf_counter()
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        _ = (
            pipeline
            | fileio.MatchFiles(str(directory / "*"))
            | fileio.ReadMatches()
            | beam.Map(read)
            | RunInference(KeyedModelHandler(handler))
            | beam.Map(make_row, read_labels(model))
            | beam.io.WriteToParquet(str(output), SCHEMA, num_shards=1, shard_name_template="")
        )
    count = len(list(directory.iterdir()))
    print(f"{count / (time.perf_counter() - start):.2f} photos/s")
