"""Loading signatures of a SavedModel without the rest."""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from batch.scoring.head_runner import BLOCK_ROWS, HeadRunner, check_dimension
from serving import bundle, protos, runtime
from serving.client.responses import decode_signatures
from serving.errors import BundleError
from serving.runtime.subgraph import Subgraph, read_graph
from tests.support.trained import Trained

pytestmark = pytest.mark.tf


def test_outputs_are_bitwise_equal_to_those_of_the_whole_model(trained: Trained) -> None:
    path = trained.result.bundle.path
    whole, one = runtime.load(path), Subgraph(path, ["classify_embedding"])
    embeddings = np.abs(np.random.default_rng(0).standard_normal((64, 1280))).astype(np.float32)
    expected = whole.run("classify_embedding", {"embedding": embeddings})
    found = one.run("classify_embedding", {"embedding": embeddings})
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert np.array_equal(found[name], values), name


def test_float16_embeddings_are_cast_exactly(trained: Trained) -> None:
    path = trained.result.bundle.path
    plain = Subgraph(path, ["classify_embedding"])
    casting = Subgraph(path, ["classify_embedding"], float16_inputs=["embedding"])
    embeddings = np.abs(np.random.default_rng(0).standard_normal((64, 1280))).astype(np.float16)
    embeddings[0, :4] = [6e-8, 1e-5, 65504, 0]  # subnormal numbers, the greatest one
    expected = plain.run("classify_embedding", {"embedding": embeddings.astype(np.float32)})
    found = casting.run("classify_embedding", {"embedding": embeddings})
    for name, values in expected.items():
        assert np.array_equal(found[name], values), name


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"labels": ["a", "b"]}, r"has 2 labels in .*probabilities of shape \[1024, 10\]"),
        ({"backbone": {"fingerprint": "f", "dimension": 7}}, "does not run on embeddings of 7 floats"),
    ],
)
def test_a_head_that_its_metadata_does_not_describe_is_a_bundle_error(
    trained: Trained, tmp_path: Path, change: dict[str, Any], text: str
) -> None:
    path = tmp_path / "1"
    shutil.copytree(trained.result.bundle.path, path)
    replace(bundle.read(path).metadata, **change).write(path)
    with pytest.raises(BundleError, match=text):
        HeadRunner(bundle.read(path)).run({})
    if "backbone" in change:
        signatures = decode_signatures(read_graph(path).signature_def)
        with pytest.raises(BundleError, match=r"embeddings of 7 floats in .*, and of 1280 in its graph"):
            check_dimension(signatures, bundle.read(path).metadata, path)


def test_a_head_on_its_callers_thread_gives_equal_bits(trained: Trained) -> None:
    path = trained.result.bundle.path
    pooled = Subgraph(path, ["classify_embedding"], 2, float16_inputs=["embedding"])
    head = HeadRunner(bundle.read(path))
    vectors = np.abs(np.random.default_rng(0).standard_normal((BLOCK_ROWS, 1280))).astype(np.float16)
    expected, found = (
        run({"embedding": vectors}) for run in (partial(pooled.run, "classify_embedding"), head.run)
    )
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert np.array_equal(found[name], values), name


def test_loading_errors_say_what_is_wrong(trained: Trained, tmp_path: Path) -> None:
    path = trained.result.bundle.path

    def load_error(directory: Any, name: str = "classify_embedding") -> str:
        with pytest.raises(BundleError) as raised:
            Subgraph(directory, [name])
        return str(raised.value)

    assert "has no signature 'nothing'" in load_error(path, "nothing")
    assert "cannot be loaded" in load_error(tmp_path)
    (tmp_path / "saved_model.pb").write_bytes(b"damaged")
    assert "cannot be loaded" in load_error(tmp_path)
    (tmp_path / "saved_model.pb").write_bytes((path / "saved_model.pb").read_bytes())
    assert "cannot be loaded" in load_error(tmp_path), "it has no variables"
    saved = protos.SavedModel.FromString((path / "saved_model.pb").read_bytes())
    saved.meta_graphs[0].saver_def.restore_op_name = "restore"
    (tmp_path / "saved_model.pb").write_bytes(saved.SerializeToString())
    assert "its graph has no node 'restore'. Export" in load_error(tmp_path)
    saved.meta_graphs[0].meta_info_def.tags[:] = ["train"]
    (tmp_path / "saved_model.pb").write_bytes(saved.SerializeToString())
    assert "it has no graph with the tag serve" in load_error(tmp_path)
