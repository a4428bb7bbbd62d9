"""Settings of a head, and the record of what was selected for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from trainer.heads.head import Floats, Ints

Kind = Literal["linear", "hidden"]
ClassWeight = Literal["none", "balanced"]

LARGE_DATASET = 5000
"""Photos from which on one part is held out instead of five folds, and `fit_blocks` does the fit."""

MEMORY = 2 << 30
"""Default memory of the features in bytes: 420,000 photos of 1280 dimensions as float32.

It is a constant rather than a share of the free memory, so that the same photos give the same head
on every machine.
"""


@dataclass(frozen=True)
class HeadSettings:
    """Settings of a head.

    Attributes:
        kind: "linear": mean of logistic regression and linear discriminant analysis. "hidden": linear
            plus one hidden layer, for classes that are not linearly separable.
        class_weight: "none": every photo has the same weight, and probabilities are calibrated for
            the label frequencies of the training photos. This is the default, since probabilities
            stay correct as long as new photos have these frequencies. "balanced": every label has
            the same weight in the fit and the calibration; rare labels are found more often, and
            probabilities hold for equally frequent labels.
        width: units of the hidden layer; None to select it by held-out log-loss.
        memory: maximum memory of the features in bytes; larger ones are computed in every pass.
        directory: directory for rows of a hidden layer that do not fit in memory; None for the
            system's temporary directory.
    """

    kind: Kind = "linear"
    class_weight: ClassWeight = "none"
    width: int | None = None
    memory: int = MEMORY
    directory: Path | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("linear", "hidden"):
            raise ValueError(f"kind {self.kind!r} is unknown; expected linear or hidden")
        if self.class_weight not in ("none", "balanced"):
            raise ValueError(f"class_weight {self.class_weight!r} is unknown; expected none or balanced")


@dataclass(frozen=True)
class Selection:
    """Record of how the settings of a head were selected.

    Attributes:
        method: "validation" or "cross-validation".
        strength: selected C.
        losses: candidate C or scale -> held-out log-loss, with the class weights of the settings.
        probabilities: calibrated probabilities of the held-out photos, float32 [N,K].
        targets: labels of these photos, int64 [N].
        settings: values for the record and for `refit`: kind, class_weight, strength, shrinkage,
            shares of the classifiers in the logits, temperature, width, epochs and seed; number of
            photos held out, and whether the features were streamed.
    """

    method: str
    strength: float
    losses: dict[float, float]
    probabilities: Floats
    targets: Ints
    settings: dict[str, Any] = field(default_factory=dict)


def class_weights(counts: Ints, how: ClassWeight) -> Floats:
    """Return the weight of each label, float32 [K].

    Args:
        counts: number of photos of each label, int64 [K].
        how: "none" for ones; "balanced" for weights by which all labels with photos have the same
            total weight and the total of all photos is N.
    """
    if how == "none":
        return np.ones(len(counts), np.float32)
    present = counts > 0
    weights = counts.sum() / (max(int(present.sum()), 1) * np.maximum(counts, 1))
    return np.asarray(np.where(present, weights, 1.0), np.float32)
