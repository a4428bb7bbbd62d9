"""Calibration by log-loss on held-out photos: temperatures, and the mixture of two classifiers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainer.heads.head import Floats, Ints, Linear, log_loss, softmax

MIN_PHOTOS_FOR_WEIGHTS = 2000
"""Held-out photos that suffice to fit the weights of two classifiers; with fewer, both count alike.

On the sample photos, by five-fold cross-validation, fitted and equal weights perform alike: their
log-loss is .7596 and .7602.
"""


@dataclass(frozen=True)
class Mixture:
    """Weighted sum of the held-out logits of one or more classifiers, calibrated.

    Attributes:
        weights: factor of each classifier's logits.
        temperature: temperature of the sum.
        probabilities: calibrated probabilities of the held-out photos, float32 [N,K].
        loss: log-loss of these probabilities.
    """

    weights: tuple[np.float32, ...]
    temperature: float
    probabilities: Floats
    loss: float

    def calibrate(self, linears: Sequence[Linear]) -> Linear:
        """Return the mixture of classifiers as one classifier with calibrated logits."""
        return combine_linears(self.weights, linears, self.temperature)


def combine_linears(
    factors: Sequence[float | np.float32], linears: Sequence[Linear], temperature: float = 1.0
) -> Linear:
    """Return the weighted sum of classifiers, divided by the temperature, as one classifier."""
    single = [np.float32(factor) for factor in factors]
    kernel, bias = (weighted_sum(single, arrays) for arrays in zip(*linears, strict=True))
    return kernel / np.float32(temperature), bias / np.float32(temperature)


def weighted_sum(factors: Iterable[np.float32], arrays: Iterable[Floats]) -> Floats:
    """Return the sum of arrays of one shape, each multiplied by its factor."""
    return np.asarray(sum(factor * array for factor, array in zip(factors, arrays, strict=True)), np.float32)


def fit_mixture(logits: Sequence[Floats], targets: Ints, weights: Floats | None = None) -> Mixture:
    """Return the mixture of logits with the lowest log-loss, and its temperature.

    Args:
        logits: held-out logits of each classifier, float32 [N,K].
        targets: labels of the photos, int64 [N].
        weights: weights of the photos in the log-loss, float32 [N]; None for equal ones.
    """
    if len(logits) > 1 and len(targets) >= MIN_PHOTOS_FOR_WEIGHTS:
        factors = _fit_weights(logits, targets, weights)
    else:
        # The mean of the logits, each divided by its own best temperature.
        factors = [1.0 / (len(logits) * fit_temperature(part, targets, weights)) for part in logits]
    single = tuple(np.float32(factor) for factor in factors)
    mixed = weighted_sum(single, logits)
    temperature = fit_temperature(mixed, targets, weights)
    probabilities = softmax(mixed / np.float32(temperature))
    return Mixture(single, temperature, probabilities, log_loss(probabilities, targets, weights))


def fit_temperature(logits: Floats, targets: Ints, weights: Floats | None = None) -> float:
    """Return the temperature that minimises the log-loss of held-out logits.

    Args:
        logits: logits of the photos, float32 [N,K].
        targets: labels of the photos, int64 [N].
        weights: weights of the photos in the log-loss, float32 [N]; None for equal ones.
    """
    from scipy.optimize import minimize_scalar

    def loss(log_temperature: float) -> float:
        return log_loss(softmax(logits / np.float32(np.exp(log_temperature))), targets, weights)

    # A discriminant on few dimensions can be twenty times overconfident, hence the range e**-5 to e**5.
    # It moves up for larger logits, such as those of labels without any variance within.
    shift = np.log(max(float(logits.std()) / 20, 1.0))
    return float(np.exp(minimize_scalar(loss, bounds=(shift - 5, shift + 5), method="bounded").x))


def _fit_weights(logits: Sequence[Floats], targets: Ints, weights: Floats | None) -> list[float]:
    """Return the non-negative factors of the logits that minimise the log-loss of their sum; it is convex."""
    from scipy.optimize import minimize

    share = np.full(len(targets), 1.0 / len(targets)) if weights is None else weights / weights.sum()
    places = np.arange(len(targets)), targets
    # Logits are divided by their standard deviation, so that all factors have the same magnitude.
    sizes = [np.float32(max(float(part.std()), 1e-12)) for part in logits]
    parts = [part / size for part, size in zip(logits, sizes, strict=True)]

    def value(factors: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        single = factors.astype(np.float32)
        probabilities = softmax(weighted_sum(single, parts))
        loss = -(np.log(np.maximum(probabilities[places], 1e-15)) * share).sum()
        gradient = [
            (share * (np.einsum("nk,nk->n", probabilities, part) - part[places])).sum() for part in parts
        ]
        return float(loss), np.array(gradient)

    bounds = [(0.0, None)] * len(parts)
    found = minimize(value, np.ones(len(parts)), jac=True, method="L-BFGS-B", bounds=bounds).x
    return [max(float(factor), 1e-6) / float(size) for factor, size in zip(found, sizes, strict=True)]
