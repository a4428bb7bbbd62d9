"""Checks that the SavedModel of a bundle must pass before it is published."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving import contract, protos
from serving.contract import Status
from serving.errors import BundleError
from serving.runtime.c_api import GraphSession
from serving.runtime.session import PARITY_TOLERANCE


def check_answers(
    run: Callable[[str, Mapping[str, Any]], Mapping[str, NDArray[Any]]],
    labels: Sequence[str],
    photos: Sequence[bytes] = (),
    probabilities: NDArray[np.float32] | None = None,
    tolerance: float = PARITY_TOLERANCE,
) -> None:
    """Check the model's responses to valid photos, a text and an empty file, and to no photos.

    Args:
        run: function that runs a signature of the loaded model, by name and inputs.
        labels: class labels in the order of the columns.
        photos: N photos used in training; if there are none, a generated photo.
        probabilities: float32 [N,K], their probabilities in training; None to check only statuses.
        tolerance: largest allowed difference of a probability.

    Raises:
        BundleError: a status is wrong, or a probability differs from that in training.
    """
    # Valid and invalid photos share a batch, so that this also shows that they do not affect each other.
    valid = list(photos) or [sample_jpeg()]
    outputs = run(contract.SERVING_DEFAULT, {contract.IMAGE_BYTES: [*valid, b"no photo", b""]})
    statuses = [status.decode() for status in outputs[contract.STATUS]]
    usable = [Status(status).usable for status in statuses[:-2]]
    if not all(usable) or statuses[-2:] != [Status.NOT_AN_IMAGE, Status.EMPTY]:
        raise BundleError(f"The model returns {statuses} for valid photos, a text and an empty file.")
    empty = run(contract.SERVING_DEFAULT, {contract.IMAGE_BYTES: []})
    if any(len(output) for output in empty.values()):
        raise BundleError("The model returns rows for a request without photos.")
    if probabilities is None:
        return
    column = {label.encode(): index for index, label in enumerate(labels)}
    columns = np.vectorize(column.get, otypes=[np.intp])(outputs[contract.CLASSES][: len(photos)])
    expected = np.take_along_axis(probabilities, columns, axis=1)
    difference = float(np.abs(outputs[contract.SCORES][: len(photos)] - expected).max(initial=0.0))
    if difference > tolerance:
        raise BundleError(
            f"The model's probabilities differ from those in training by up to {difference:.2g}, "
            f"more than the {tolerance:g} that rounding explains.",
            remedy="Nothing was published. If files of the embedding store were modified, delete the store.",
        )


def sample_jpeg() -> bytes:
    """Return a small generated photo, for warm-up and checks."""
    graph = protos.GraphDef()
    graph.node.add(name="pixels", op="Placeholder").attr["dtype"].type = protos.DataType.DT_UINT8
    graph.node.add(name="jpeg", op="EncodeJpeg", input=["pixels"])
    ramp = np.arange(256, dtype=np.uint8)
    pixels = np.stack([*np.meshgrid(ramp, ramp), np.full((256, 256), 128, np.uint8)], axis=-1)
    [content] = GraphSession(graph.SerializeToString(), threads=1).run({"pixels": pixels}, ["jpeg"])
    return bytes(content.item())
