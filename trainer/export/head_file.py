"""The head's weights in a NumPy file beside the graph, from which an export with other settings starts."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

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


def load_head(path: Path) -> tuple[Head, Novelty | None]:
    """Read what `save_head` wrote.

    Raises:
        BundleError: the file does not exist or is damaged.
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
            if "novelty_centre" not in file:
                return head, None
            arrays = {name: file[f"novelty_{name}"] for name in _NOVELTY}
            score: dict[str, Any] = {name: v if v.ndim else float(v) for name, v in arrays.items()}
            return head, Novelty(head, **score)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise BundleError(
            f"The head file {path} cannot be read: {error}.",
            remedy="Give a bundle that hubhead train exported.",
        ) from error
