"""A tiny bundle for tests of the batch job, and reading of its rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from serving.bundle import BundleMetadata

DIMENSION = 4
LABELS = ["apple", "bread", "cheese"]
FINGERPRINT = "f1"
GOOD = b"PHOTO"
PNG = b"\x89PNG\r"


def make_bundle(
    path: Path,
    *,
    embed_fails: bool = False,
    scale: float = 1.0,
    headless: bool = False,
    max_bytes: int = 10_000,
) -> Path:
    """Save a bundle whose embeddings are hashes of the bytes and whose status depends on their beginning.

    A photo that begins with GOOD or a PNG's signature is ok, one that begins with CUT is truncated.
    """
    import tensorflow as tf

    def embed(image_bytes: Any) -> dict[str, Any]:
        if embed_fails:
            with tf.control_dependencies([tf.debugging.Assert(False, ["embed was called"])]):
                image_bytes = tf.identity(image_bytes)
        size = tf.strings.length(image_bytes)
        begins = tf.strings.substr(image_bytes + "     ", 0, 5)
        good, cut = (
            tf.equal(begins, GOOD) | tf.equal(begins, PNG),
            tf.strings.regex_full_match(begins, "CUT.."),
        )
        status = tf.where(
            good, "ok", tf.where(cut, "truncated", tf.where(tf.equal(size, 0), "empty", "not_an_image"))
        )
        buckets = [tf.strings.to_hash_bucket_fast(image_bytes + str(i), 64) for i in range(DIMENSION)]
        pixels = tf.where(good | cut, size, 0)
        return {
            "embedding": tf.cast(tf.stack(buckets, axis=1), tf.float32) / 64.0,
            "status": status,
            "height": pixels,
            "width": pixels * 2,
        }

    kernel = tf.Variable([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.3, -0.3, 0.1]])

    def classify_embedding(embedding: Any) -> dict[str, Any]:
        return {
            "probabilities": tf.nn.softmax(embedding @ kernel * scale),
            "known": embedding[:, 3] < 0.8,
        }

    module = tf.Module()
    module.kernel = kernel
    signatures = {
        "embed": tf.function(embed, input_signature=[tf.TensorSpec([None], tf.string, "image_bytes")])
    }
    if not headless:
        signatures["classify_embedding"] = tf.function(
            classify_embedding, input_signature=[tf.TensorSpec([None, DIMENSION], tf.float32, "embedding")]
        )
    tf.saved_model.save(module, str(path), signatures=signatures)
    BundleMetadata(
        labels=[] if headless else LABELS,
        backbone={"fingerprint": FINGERPRINT, "dimension": DIMENSION},
        preprocessing={"max_bytes": max_bytes},
        calibration={} if headless else {"temperature": 1.0, "threshold": 0.36},
        top_k=0 if headless else 2,
    ).write(path)
    return path


def read_rows(output: Path) -> list[dict[str, Any]]:
    """Return the rows by uri, without the column that differs between runs."""
    table = pq.read_table(output / "scores").drop_columns(["scored_at"])
    return table.sort_by("uri").to_pylist()
