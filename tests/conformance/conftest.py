"""Fixtures with servers for the conformance tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serving.server.config.settings import BatchingParameters
from tests.conformance.conformance_model import write_conformance_model
from tests.conformance.conformance_server import ConformanceServer, start_conformance_server


@pytest.fixture(scope="session")
def conformance_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("conformance") / "toy"
    write_conformance_model(base / "3")
    return base


@pytest.fixture(scope="session")
def plain_server(conformance_base: Path) -> Iterator[ConformanceServer]:
    with start_conformance_server(("toy", conformance_base)) as server:
        yield server


@pytest.fixture(scope="session")
def batched_server(conformance_base: Path) -> Iterator[ConformanceServer]:
    """A server with a batching file."""
    with start_conformance_server(
        ("toy", conformance_base), batching=BatchingParameters(max_batch_size=4, num_batch_threads=1)
    ) as server:
        yield server


@pytest.fixture(scope="session")
def graph_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConformanceServer]:
    """A server of a real SavedModel: a matrix product, and a Classify signature that parses Examples."""
    base = tmp_path_factory.mktemp("conformance") / "graph"
    export_graph(base / "1")
    with start_conformance_server(("graph", base), tensorflow=True) as server:
        yield server


def export_graph(directory: Path) -> None:
    import tensorflow as tf

    module = tf.Module()
    module.w = tf.Variable(tf.reshape(tf.range(12, dtype=tf.float32), [3, 4]))

    @tf.function(input_signature=[tf.TensorSpec([None, None], tf.float32)])
    def product(x: Any) -> Any:
        return {"y": tf.matmul(x, module.w)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
    def classify(inputs: Any) -> Any:
        x = tf.io.parse_example(inputs, {"x": tf.io.FixedLenFeature([], tf.float32)})["x"]
        classes = tf.repeat(tf.constant([["a", "b"]]), tf.size(x), axis=0)
        return {"classes": classes, "scores": tf.stack([x, -x], axis=1)}

    tf.saved_model.save(module, str(directory), signatures={"serving_default": product, "classify": classify})
