"""Predictions for the tests of metrics: a small worked example, and random calibrated ones."""

from __future__ import annotations

import numpy as np

from trainer import heads

PROBABILITIES = np.array(
    [
        [0.7, 0.1, 0.1, 0.1],  # right
        [0.1, 0.2, 0.3, 0.4],  # the third best
        [0.4, 0.3, 0.2, 0.1],  # the fourth best
        [0.0, 0.0, 1.0, 0.0],  # right
        [0.25, 0.25, 0.25, 0.25],  # a tie, which the first label wins
    ],
    np.float32,
)
TARGETS = np.array([0, 1, 3, 2, 0])
LABELS = ["apple", "bread", "cheese", "dates"]


def random_answers(
    count: int, classes: int, seed: int = 0, *, scale: float = 2.0
) -> tuple[heads.Floats, heads.Ints]:
    """Return random probabilities and classes drawn from them: a perfectly calibrated model."""
    random = np.random.default_rng(seed)
    probabilities = heads.softmax(random.normal(scale=scale, size=(count, classes)).astype(np.float32))
    sums = probabilities.astype(np.float64).cumsum(axis=1)
    targets = (sums < random.random((count, 1)) * sums[:, -1:]).sum(axis=1)
    return probabilities, targets
