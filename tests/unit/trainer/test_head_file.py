"""The file of a head's weights: damaged files, and heads that do not belong to their bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving.bundle import BundleMetadata
from serving.errors import BundleError
from trainer.export.head_file import load_head, save_head
from trainer.heads import Head, Scaling


def make_head(dimension: int = 4, classes: int = 2, kind: Any = np.float32) -> Head:
    scaling = Scaling(np.zeros(dimension, np.float32), np.ones(dimension, np.float32))
    return Head(scaling, np.ones((dimension, classes), kind), np.zeros(classes, np.float32), 1.0)


@pytest.mark.parametrize("content", [b"", b"x", b"PK\x03\x04", b"\x93NUMPY\x01\x00", b"\x80\x04."])
def test_damaged_file_is_a_bundle_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "head.npz"
    path.write_bytes(content)
    with pytest.raises(BundleError, match=r"head\.npz cannot be read"):
        load_head(path)
    with path.open("wb") as file:
        np.save(file, np.zeros(3))  # an array instead of an archive of arrays
    with pytest.raises(BundleError, match=r"head\.npz cannot be read"):
        load_head(path)


@pytest.mark.parametrize("head", [make_head(5), make_head(classes=3), make_head(kind=np.complex64)])
def test_head_of_another_bundle_is_a_bundle_error(tmp_path: Path, head: Head) -> None:
    metadata = BundleMetadata(["a", "b"], {"fingerprint": "f", "dimension": 4}, {})
    save_head(tmp_path / "head.npz", make_head())
    assert load_head(tmp_path / "head.npz", metadata)[0].temperature == 1
    save_head(tmp_path / "head.npz", head)
    with pytest.raises(BundleError, match=r"an array is \w+ \(.*\), not float32"):
        load_head(tmp_path / "head.npz", metadata)
