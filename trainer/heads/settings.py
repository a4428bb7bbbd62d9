"""What a head is to be, and what was chosen for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from trainer.heads.head import Floats, Ints

Kind = Literal["linear", "hidden", "cosine"]
ClassWeight = Literal["none", "balanced"]

MANY = 5000
"""Photos from which on a part is held out once, instead of in five folds, and `fit_blocks` fits."""

MEMORY = 2 << 30
"""Bytes that the features may take, 4 a number: 420,000 photos of 1280 dimensions.

A constant, and no share of the memory that happens to be free, so that the same photos give the
same head everywhere.
"""


@dataclass(frozen=True)
class HeadSettings:
    """What a head is to be.

    Attributes:
        kind: "linear": the mean of logistic regression and a discriminant. "hidden": that, and a
            hidden layer whose output is added to its logits. "cosine": a scale times the cosine
            with one direction a label, and a bias.
        class_weight: "none": every photo counts alike, and probabilities are calibrated for the
            labels' shares among the training photos. That is the default, since it is what a
            probability means as long as the photos to come have those shares. "balanced": every
            label counts alike, in all parts of the fit and in the calibration: rare labels are
            found more often, and probabilities are those where all labels are equally frequent.
        width: of the hidden layer; None lets the held-out log-loss choose.
        memory: bytes that the features may take; beyond, they are read anew in every pass.
        directory: for rows that a hidden layer learns from and that do not fit in memory; None for
            the system's temporary one.
    """

    kind: Kind = "linear"
    class_weight: ClassWeight = "none"
    width: int | None = None
    memory: int = MEMORY
    directory: Path | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("linear", "hidden", "cosine"):
            raise ValueError(f"kind {self.kind!r} is none of linear, hidden, cosine")
        if self.class_weight not in ("none", "balanced"):
            raise ValueError(f"class_weight {self.class_weight!r} is neither none nor balanced")


@dataclass(frozen=True)
class Selection:
    """How the head's settings were chosen.

    Attributes:
        method: "validation" or "cross-validation".
        strength: the C taken; of a cosine head the scale.
        losses: log-loss for each candidate C or scale, weighted as the settings say.
        probabilities: float32 [N,K] of the held-out photos, calibrated, at the settings taken.
        targets: int64 [N], their classes.
        settings: for the records, and for `refit`: kind, class_weight, and what was chosen: strength,
            shrinkage, shares of the classifiers in the logits, temperature, width, epochs, seed; photos
            held out, whether the features were streamed.
    """

    method: str
    strength: float
    losses: dict[float, float]
    probabilities: Floats
    targets: Ints
    settings: dict[str, Any] = field(default_factory=dict)


def class_weights(counts: Ints, how: ClassWeight) -> Floats:
    """float32 [K]: ones, or what makes every label that has photos count alike and all photos together N.

    Args:
        counts: int64 [K], photos of each label.
        how: "none" or "balanced".
    """
    if how == "none":
        return np.ones(len(counts), np.float32)
    present = counts > 0
    weights = counts.sum() / (max(int(present.sum()), 1) * np.maximum(counts, 1))
    return np.asarray(np.where(present, weights, 1.0), np.float32)
