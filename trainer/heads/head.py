"""What a head is: how features are made of embeddings, the weights on them, and probabilities."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Vectors = NDArray[np.float16] | NDArray[np.float32]
"""Embeddings as the store has them, or widened."""
Linear = tuple[Floats, Floats]
"""Kernel [D,K] and bias [K]."""

_FLOOR = 0.25
"""Of the mean deviation, added to each: an embedding's nearly constant entries are not to be blown up."""

_ROWS = 4096
"""Rows that a head with a hidden layer answers at once."""


@dataclass(frozen=True)
class Scaling:
    """What makes features of embeddings.

    Attributes:
        mean: float32 [D].
        scale: float32 [D].
    """

    mean: Floats
    scale: Floats

    @classmethod
    def of(cls, embeddings: Floats) -> Scaling:
        """The scaling that standardises these embeddings float32 [N,D]."""
        return cls.from_moments(embeddings.mean(axis=0), embeddings.std(axis=0))

    @classmethod
    def from_moments(cls, mean: Floats, deviation: Floats) -> Scaling:
        """The scaling for embeddings of this mean and standard deviation, float32 [D] each."""
        floor = _FLOOR * deviation.mean() + 1e-12
        return cls(mean, np.asarray(1.0 / (deviation + floor), np.float32))

    def features(self, embeddings: Vectors) -> Floats:
        """Standardised, each row then of length one; float32 [N,D]."""
        rows = np.subtract(embeddings, self.mean, dtype=np.float32)
        rows *= self.scale
        lengths = np.sqrt(np.einsum("nd,nd->n", rows, rows))
        rows /= np.maximum(lengths, 1e-12)[:, None]
        return rows


@dataclass(frozen=True)
class HiddenLayer:
    """What a head of kind "hidden" adds to the linear one.

    Attributes:
        kernel: float32 [D,H].
        bias: float32 [H].
        output: float32 [H,K], from the layer to the logits.
    """

    kernel: Floats
    bias: Floats
    output: Floats

    def lifted(self, basis: Floats | None) -> HiddenLayer:
        """For the features, of one for their coordinates in a basis [D,N]; None is none."""
        return self if basis is None else replace(self, kernel=basis @ self.kernel)

    def logits(self, features: Floats) -> Floats:
        """Its part of the logits float32 [N,K] of features float32 [N,D]."""
        parts = [
            np.maximum(features[start : start + _ROWS] @ self.kernel + self.bias, 0) @ self.output
            for start in range(0, len(features), _ROWS)
        ]
        return np.concatenate(parts) if parts else np.zeros((0, self.output.shape[1]), np.float32)


@dataclass(frozen=True)
class Head:
    """A trained head.

    The probabilities of features f are
    softmax((f kernel + relu(f hidden.kernel + hidden.bias) hidden.output + bias) / temperature).
    Without a hidden layer its term is missing. In a head of kind "cosine" all columns of the kernel
    have one length, the scale.

    Attributes:
        scaling: how features are made of embeddings.
        kernel: float32 [D,K].
        bias: float32 [K].
        temperature: logits are divided by it before the softmax (Guo et al. 2017, "On
            Calibration of Modern Neural Networks").
        hidden: of kind "hidden" alone.
    """

    scaling: Scaling
    kernel: Floats
    bias: Floats
    temperature: float
    hidden: HiddenLayer | None = None

    def logits(self, embeddings: Vectors) -> Floats:
        """Logits float32 [N,K], divided by the temperature, of embeddings float32 or float16 [N,D]."""
        features = self.scaling.features(embeddings)
        logits = features @ self.kernel + self.bias
        if self.hidden is not None:
            logits += self.hidden.logits(features)
        logits /= np.float32(self.temperature)
        return logits

    def probabilities(self, embeddings: Vectors) -> Floats:
        """Calibrated probabilities float32 [N,K] of embeddings float32 or float16 [N,D]."""
        return softmax(self.logits(embeddings))


def softmax(logits: Floats) -> Floats:
    """Rows of exp(logits) divided by their sum."""
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=1, keepdims=True), np.float32)


def log_loss(probabilities: Floats, targets: Ints, weights: Floats | None = None) -> float:
    """Mean negative natural log-likelihood of the targets.

    Args:
        probabilities: float32 [N,K].
        targets: int64 [N].
        weights: float32 [N] of the mean; None for equal ones.
    """
    picked = probabilities[np.arange(len(targets)), targets]
    losses = -np.log(np.maximum(picked, 1e-15))
    if weights is None:
        return float(losses.mean(dtype=np.float64))
    return float(np.average(losses.astype(np.float64), weights=weights))
