"""Servers for the conformance tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serving.server.config.settings import Batching
from tests.conformance.conformance_model import write_toy
from tests.conformance.conformance_server import World, world


@pytest.fixture(scope="session")
def toy_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("conformance") / "toy"
    write_toy(base / "3")
    return base


@pytest.fixture(scope="session")
def plain(toy_base: Path) -> Iterator[World]:
    with world(("toy", toy_base)) as served:
        yield served


@pytest.fixture(scope="session")
def batched(toy_base: Path) -> Iterator[World]:
    """With a batching file."""
    with world(("toy", toy_base), batching=Batching(max_batch_size=4, num_batch_threads=1)) as served:
        yield served


@pytest.fixture(scope="session")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A real SavedModel: a product of matrices, and Examples that are parsed."""
    base = tmp_path_factory.mktemp("conformance") / "graph"
    export(base / "1")
    with world(("graph", base), tensorflow=True) as served:
        yield served


def export(directory: Path) -> None:
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
