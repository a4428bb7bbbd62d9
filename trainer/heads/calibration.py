"""Temperatures, and how the logits of two classifiers are mixed: by log-loss on held-out photos."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainer.heads.head import Floats, Ints, Linear, log_loss, softmax

ENOUGH_TO_WEIGH = 2000
"""Held-out photos that can tell how much each of two classifiers is to count; below, both count alike.

On the sample photos, out of five folds, free weights do what equal ones do: log-loss .7596 and .7602.
"""


@dataclass(frozen=True)
class Mixture:
    """Logits of held-out photos by one classifier or more, mixed.

    Attributes:
        weights: what the logits of each are multiplied by.
        temperature: of the mixture.
        probabilities: float32 [N,K], calibrated.
        loss: their log-loss.
    """

    weights: tuple[np.float32, ...]
    temperature: float
    probabilities: Floats
    loss: float

    def of(self, linears: Sequence[Linear]) -> Linear:
        """The classifiers mixed into one, before the temperature."""
        kernels, biases = zip(*linears, strict=True)
        return sum_of(self.weights, kernels), sum_of(self.weights, biases)


def sum_of(factors: Iterable[np.float32], arrays: Iterable[Floats]) -> Floats:
    """Of arrays of one shape, each times its factor."""
    return np.asarray(sum(factor * array for factor, array in zip(factors, arrays, strict=True)), np.float32)


def mix(logits: Sequence[Floats], targets: Ints, weights: Floats | None = None) -> Mixture:
    """The mixture of these logits [N,K] and its temperature, by log-loss.

    Args:
        logits: of each classifier.
        targets: int64 [N].
        weights: float32 [N], of the photos in the log-loss; None for equal ones.
    """
    if len(logits) > 1 and len(targets) >= ENOUGH_TO_WEIGH:
        factors = _weigh(logits, targets, weights)
    else:
        # The mean, each at its own best temperature.
        factors = [1.0 / (len(logits) * fit_temperature(part, targets, weights)) for part in logits]
    halves = tuple(np.float32(factor) for factor in factors)
    mixed = sum_of(halves, logits)
    temperature = fit_temperature(mixed, targets, weights)
    probabilities = softmax(mixed / np.float32(temperature))
    return Mixture(halves, temperature, probabilities, log_loss(probabilities, targets, weights))


def fit_temperature(logits: Floats, targets: Ints, weights: Floats | None = None) -> float:
    """The temperature that minimises the log-loss of held-out logits float32 [N,K], labels int64 [N].

    Args:
        logits: of the photos.
        targets: their classes.
        weights: float32 [N], of the photos in the log-loss; None for equal ones.
    """
    from scipy.optimize import minimize_scalar

    def loss(log_temperature: float) -> float:
        return log_loss(softmax(logits / np.float32(np.exp(log_temperature))), targets, weights)

    # A discriminant on few directions can be twenty times too sure, hence e**-5 to e**5.
    return float(np.exp(minimize_scalar(loss, bounds=(-5.0, 5.0), method="bounded").x))


def _weigh(logits: Sequence[Floats], targets: Ints, weights: Floats | None) -> list[float]:
    """Factors, none below zero, that minimise the log-loss of the sum of the logits times them; convex."""
    from scipy.optimize import minimize

    share = np.full(len(targets), 1.0 / len(targets)) if weights is None else weights / weights.sum()
    places = np.arange(len(targets)), targets
    sizes = [np.float32(max(float(part.std()), 1e-12)) for part in logits]
    parts = [part / size for part, size in zip(logits, sizes, strict=True)]

    def value(factors: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        halves = factors.astype(np.float32)
        probabilities = softmax(sum_of(halves, parts))
        loss = -(np.log(np.maximum(probabilities[places], 1e-15)) * share).sum()
        slopes = [
            (share * (np.einsum("nk,nk->n", probabilities, part) - part[places])).sum() for part in parts
        ]
        return float(loss), np.array(slopes)

    bounds = [(0.0, None)] * len(parts)
    found = minimize(value, np.ones(len(parts)), jac=True, method="L-BFGS-B", bounds=bounds).x
    return [max(float(factor), 1e-6) / float(size) for factor, size in zip(found, sizes, strict=True)]
