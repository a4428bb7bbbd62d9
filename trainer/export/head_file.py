"""The head's weights in a NumPy file beside the graph, from which an export with other settings starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from serving.bundle import BundleMetadata
from serving.errors import BundleError
from trainer.evaluation.novelty import Novelty
from trainer.heads import Head, HiddenLayer, Scaling

# Names of attributes, and with their prefix those of the arrays in the file.
_HIDDEN = ("kernel", "bias", "output")
_NOVELTY = ("centre", "directions", "residual_weight", "energy_weight", "threshold", "known")


def save_head(path: Path, head: Head, novelty: Novelty | None = None) -> None:
    """Write the weights of a head, and of its novelty score if it has one."""
    hidden = {f"hidden_{name}": getattr(head.hidden, name) for name in _HIDDEN} if head.hidden else {}
    score = {f"novelty_{name}": getattr(novelty, name) for name in _NOVELTY} if novelty else {}
    np.savez(
        path,
        mean=head.scaling.mean,
        scale=head.scaling.scale,
        kernel=head.kernel,
        bias=head.bias,
        temperature=head.temperature,
        **hidden,
        **score,
    )


def load_head(path: Path, metadata: BundleMetadata | None = None) -> tuple[Head, Novelty | None]:
    """Read what `save_head` wrote; with the metadata of its bundle, check that it is the head of that bundle.

    Raises:
        BundleError: the file does not exist, is damaged, or has arrays of other shapes.
    """
    try:
        with path.open("rb") as opened, np.load(opened) as file:
            scaling = Scaling(file["mean"], file["scale"])
            hidden = (
                HiddenLayer(*(file[f"hidden_{name}"] for name in _HIDDEN))
                if "hidden_kernel" in file
                else None
            )
            head = Head(scaling, file["kernel"], file["bias"], float(file["temperature"]), hidden)
            novelty = None
            if "novelty_centre" in file:
                arrays = {name: file[f"novelty_{name}"] for name in _NOVELTY}
                score: dict[str, Any] = {name: v if v.ndim else float(v) for name, v in arrays.items()}
                novelty = Novelty(head, **score)
            _check_shapes(head, novelty, metadata)
            return head, novelty
    except Exception as error:  # NumPy and zipfile raise many classes for damaged files
        raise BundleError(
            f"The head file {path} cannot be read: {error}.",
            remedy="Give a bundle that hubhead train exported.",
        ) from error


def _check_shapes(head: Head, novelty: Novelty | None, metadata: BundleMetadata | None) -> None:
    """Check that the arrays of a head fit together, and are those of a bundle.

    Raises:
        ValueError: an array has another type or shape.
    """
    dimension, classes = head.kernel.shape
    if metadata is not None:
        dimension, classes = metadata.dimension, len(metadata.labels)
    expected = [
        (head.scaling.mean, (dimension,)),
        (head.scaling.scale, (dimension,)),
        (head.kernel, (dimension, classes)),
        (head.bias, (classes,)),
    ]
    if head.hidden:
        units = len(head.hidden.bias)
        expected += [(head.hidden.kernel, (dimension, units)), (head.hidden.output, (units, classes))]
    if novelty:
        rank = novelty.directions.shape[1]
        expected += [(novelty.centre, (dimension,)), (novelty.directions, (dimension, rank))]
    for array, shape in expected:
        if array.shape != shape or array.dtype != np.float32:
            raise ValueError(f"an array is {array.dtype} {array.shape}, not float32 {shape}")
