"""Check of a written bundle by its answers, before it is published.

The bundles of a template differ in the values of variables alone. So TensorFlow runs the whole graph once for
each set of photos and shapes of variables, and the engines are compared. The template keeps a list of what
has passed. A later export with the same photos, such as that of a training with other settings, is checked
with the backbone in ONNX Runtime, as `hubhead score` and `hubhead serve` run it, in less than half the time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from serving import contract, runtime
from serving.bundle import Bundle
from serving.process import get_cpu_model, get_package_versions
from serving.runtime import subgraph
from trainer.export import onnx_backbone
from trainer.export.checks import check_answers
from trainer.heads import Floats

PASSED_FILE = "passed_checks.txt"
"""File in a template's directory: a line for each check that has passed, `_identify_check` of it."""

_PACKAGES = ("tensorflow", "onnxruntime")


def check_bundle(
    directory: Path,
    source: Bundle,
    values: Mapping[str, Any],
    labels: Sequence[str],
    photos: Sequence[bytes],
    probabilities: Floats | None,
) -> None:
    """Check the answers of a written bundle, and delete its ONNX file if the engines differ.

    Args:
        directory: directory of the bundle.
        source: bundle whose graph was copied.
        values: values of the head's variables, by name.
        labels: class labels in the order of the columns.
        photos: N encoded photos.
        probabilities: float32 [N,K], their probabilities in training; None to check only statuses.

    Raises:
        BundleError: it does not load, or an answer is wrong.
    """
    onnx = directory / contract.ONNX_FILE
    passed = source.path / PASSED_FILE
    # A published bundle is never written to.
    check = _identify_check(values, photos) if photos and not source.metadata.labels else None
    if check and onnx.is_file() and check in _read_lines(passed):
        check_answers(runtime.load(directory, engine="onnx").run, labels, photos, probabilities)
        return
    graph = subgraph.read_graph(directory)
    names = {contract.SERVING_DEFAULT, contract.DECODE, contract.EMBED} & graph.signature_def.keys()
    model = subgraph.Subgraph(directory, names, graph=graph)
    check_answers(model.run, labels, photos, probabilities)
    onnx_backbone.check_photos(directory, model, photos)
    if check and onnx.is_file():
        with suppress(OSError), passed.open("a", encoding="ascii") as file:  # the cache may be read-only
            file.write(f"{check}\n")


def _identify_check(values: Mapping[str, NDArray[Any]], photos: Sequence[bytes]) -> str:
    """Return the SHA-256, in hex, of what a check depends on besides the values of the variables."""
    shapes = {name: [str(value.dtype), list(value.shape)] for name, value in values.items()}
    digests = [hashlib.sha256(photo).hexdigest() for photo in photos]
    depends = [shapes, digests, get_package_versions(_PACKAGES), get_cpu_model()]
    return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()


def _read_lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii").splitlines()
    except OSError:
        return []
