"""The head: scaling of embeddings to features, weights, and calibrated probabilities."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Doubles = NDArray[np.float64]
Vectors = NDArray[np.float16] | NDArray[np.float32]
"""Embeddings as the store has them (float16), or as float32."""
Linear = tuple[Floats, Floats]
"""Kernel [D,K] and bias [K]."""

_FLOOR = 0.25
"""Share of the mean deviation added to each deviation, so that nearly constant entries stay small."""

_ROWS = 4096
"""Rows that a hidden layer processes at a time, which bounds its memory."""


@dataclass(frozen=True)
class Scaling:
    """Standardisation of embeddings to features of length one.

    Attributes:
        mean: mean of the embeddings, float32 [D].
        scale: factors after the mean is subtracted, float32 [D].
    """

    mean: Floats
    scale: Floats

    @classmethod
    def from_embeddings(cls, embeddings: Floats) -> Scaling:
        """Return the scaling that standardises these embeddings, float32 [N,D]."""
        return cls.from_moments(embeddings.mean(axis=0), embeddings.std(axis=0))

    @classmethod
    def from_moments(cls, mean: Floats, deviation: Floats) -> Scaling:
        """Return the scaling for embeddings with this mean and standard deviation, float32 [D] each."""
        floor = _FLOOR * deviation.mean() + 1e-12
        return cls(mean, np.asarray(1.0 / (deviation + floor), np.float32))

    def features(self, embeddings: Vectors) -> Floats:
        """Return features float32 [N,D]: standardised embeddings, each row divided by its length."""
        rows = np.subtract(embeddings, self.mean, dtype=np.float32)
        rows *= self.scale
        lengths = np.sqrt(np.einsum("nd,nd->n", rows, rows))
        rows /= np.maximum(lengths, 1e-12)[:, None]
        return rows


@dataclass(frozen=True)
class HiddenLayer:
    """Hidden layer with ReLU, whose output a head of kind "hidden" adds to the linear logits.

    Attributes:
        kernel: weights from the features to the layer, float32 [D,H].
        bias: bias of the layer, float32 [H].
        output: weights from the layer to the logits, float32 [H,K].
    """

    kernel: Floats
    bias: Floats
    output: Floats

    def lift(self, basis: Floats | None) -> HiddenLayer:
        """Return the layer for features, given one for their coordinates in a basis [D,N] (or None)."""
        return self if basis is None else replace(self, kernel=basis @ self.kernel)

    def logits(self, features: Floats) -> Floats:
        """Return the layer's part of the logits, float32 [N,K], of features float32 [N,D]."""
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
    Without a hidden layer its term is missing.

    Attributes:
        scaling: scaling of embeddings to features.
        kernel: weights of the features, float32 [D,K].
        bias: bias of the logits, float32 [K].
        temperature: divisor of the logits before the softmax (Guo et al. 2017, "On Calibration of
            Modern Neural Networks").
        hidden: hidden layer of a head of kind "hidden", else None.
    """

    scaling: Scaling
    kernel: Floats
    bias: Floats
    temperature: float
    hidden: HiddenLayer | None = None

    def logits(self, embeddings: Vectors) -> Floats:
        """Return logits float32 [N,K], divided by the temperature, of embeddings float32 or float16 [N,D]."""
        features = self.scaling.features(embeddings)
        logits = features @ self.kernel + self.bias
        if self.hidden is not None:
            logits += self.hidden.logits(features)
        logits /= np.float32(self.temperature)
        return logits

    def probabilities(self, embeddings: Vectors) -> Floats:
        """Return calibrated probabilities float32 [N,K] of embeddings float32 or float16 [N,D]."""
        return softmax(self.logits(embeddings))


def softmax(logits: Floats) -> Floats:
    """Return exp(logits) with each row divided by its sum."""
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=1, keepdims=True), np.float32)


def log_loss(probabilities: Floats, targets: Ints, weights: Floats | None = None) -> float:
    """Return the mean negative natural log-likelihood of the targets.

    Args:
        probabilities: predicted probabilities, float32 [N,K].
        targets: true classes, int64 [N].
        weights: weights of the photos in the mean, float32 [N]; None for equal ones.
    """
    return float(np.average(log_losses(probabilities, targets), weights=weights))


def log_losses(probabilities: Floats, targets: Ints) -> Doubles:
    """Return the log-loss of each photo, float64 [N]; a probability of 0 costs 34.5, not infinity."""
    picked = probabilities[np.arange(len(targets)), targets]
    return -np.log(np.maximum(picked, 1e-15)).astype(np.float64)
