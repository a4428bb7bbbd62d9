"""One signature of a SavedModel, loaded without the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving import runtime
from serving.errors import BundleError
from serving.runtime import single_signature
from tests.support.trained import Trained

pytestmark = pytest.mark.tf


def test_it_answers_as_the_whole_model_does_to_the_last_bit(trained: Trained) -> None:
    path = trained.result.bundle.path
    whole, one = runtime.load(path), single_signature.load(path, "classify_embedding")
    embeddings = np.abs(np.random.default_rng(0).standard_normal((64, 1280))).astype(np.float32)
    expected = whole.run("classify_embedding", {"embedding": embeddings})
    found = one({"embedding": embeddings})
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert np.array_equal(found[name], values), name


def test_what_cannot_be_loaded_is_said(trained: Trained, tmp_path: Path) -> None:
    path = trained.result.bundle.path

    def error(place: Any, name: str = "classify_embedding") -> str:
        with pytest.raises(BundleError) as raised:
            single_signature.load(place, name)
        return str(raised.value)

    assert "has no signature 'nothing'" in error(path, "nothing")
    assert "cannot be loaded" in error(tmp_path)
    (tmp_path / "saved_model.pb").write_bytes(b"torn")
    assert "cannot be loaded" in error(tmp_path)
    (tmp_path / "saved_model.pb").write_bytes((path / "saved_model.pb").read_bytes())
    assert "cannot be loaded" in error(tmp_path), "it has no variables"
