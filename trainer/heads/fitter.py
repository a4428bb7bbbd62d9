"""Fits of the linear classifiers of a head, and the statistics of rows that every fit needs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module

import numpy as np

from trainer.heads.calibration import weighted_sum
from trainer.heads.head import Floats, Ints, Linear, Scaling
from trainer.heads.linear import (
    SHRINKAGE,
    LogisticRegression,
    Moments,
    compute_span,
    lift_linear,
)
from trainer.heads.streaming import Blocks

TOLERANCE = 1e-5
"""Relative decrease of the log-loss by one step at which a minimum counts as found.

It is used to compare candidates, and for fits on many photos; `linear.EXACT_TOLERANCE` for others.
"""


@dataclass(frozen=True, slots=True)
class FitOptions:
    """Options of a `Fitter`.

    Attributes:
        tolerance: decrease of the loss by one step at which the minimum counts as found.
        shrinkage: shrinkage of the discriminant's covariance.
        copies: rows per photo. C multiplies the sum over rows, so it is divided by the copies to
            keep its meaning.
    """

    tolerance: float = TOLERANCE
    shrinkage: float = SHRINKAGE
    copies: int = 1


class Fitter:
    """Fits the linear classifiers of a head: one for each C, and the discriminant.

    Args:
        features: rows to fit on.
        moments: moments of these rows, or of a superset.
        weights: label weights, float32 [K].
        start: classifier at which the first descent begins; None for the default.
        basis: float32 [D,N] if the rows are coordinates in it.
        options: tolerance, shrinkage and copies.
    """

    def __init__(
        self,
        features: Blocks,
        moments: Moments,
        weights: Floats,
        *,
        start: Linear | None = None,
        basis: Floats | None = None,
        options: FitOptions | None = None,
    ) -> None:
        options = options or FitOptions()
        self._basis = basis
        self._copies = options.copies
        self._regression = LogisticRegression(
            features, moments, weights, start=start, tolerance=options.tolerance
        )
        # The discriminant does not depend on the strength, so it is computed once.
        dimension = None if basis is None else len(basis)
        self._discriminant = lift_linear(basis, moments.discriminant(options.shrinkage, dimension))

    @classmethod
    def from_array(
        cls, features: Floats, targets: Ints, weights: Floats, options: FitOptions | None = None
    ) -> Fitter:
        """Fit on few rows, float32 [N,D] and int64 [N], as coordinates in their span."""
        basis, coordinates = compute_span(features)
        blocks = Blocks.from_array(coordinates, targets)
        moments = Moments.from_blocks(blocks, weights)
        return cls(blocks, moments, weights, basis=basis, options=options)

    def fit(self, strength: float) -> list[Linear]:
        """Return the classifiers for a C; the descent begins at the previous result."""
        return [
            lift_linear(self._basis, self._regression.fit(strength * (1.0 / self._copies))),
            self._discriminant,
        ]


@contextmanager
def single_blas_thread() -> Iterator[None]:
    """Limit BLAS to one thread within the block.

    On small matrices the threads of BLAS wait for each other longer than they compute: on two cores a
    fit took 3 s of processor time with one thread and 39 s with two. Blocks of rows are processed in
    parallel instead (`Blocks.map`).
    """
    from threadpoolctl import threadpool_limits

    # SciPy has a BLAS of its own, which can be limited only after it was loaded.
    import_module("scipy.linalg")
    with threadpool_limits(1, user_api="blas"):
        yield


def count_rows_by_label(blocks: Blocks, classes: int) -> Ints:
    """Return the number of rows of each label, int64 [K]."""
    counts = np.zeros(classes, np.int64)
    for _, targets in blocks.read():
        counts += np.bincount(targets, minlength=classes)
    return counts


def compute_scaling(blocks: Blocks) -> Scaling:
    """Return the scaling as `Scaling.from_embeddings` does, in one pass.

    Means and variances of blocks are merged pairwise (Chan, Golub and LeVeque 1983, "Algorithms for
    computing the sample variance"), which is numerically stable.
    """

    def summarise(rows: Floats, _: Ints) -> tuple[int, Floats, Floats]:
        mean = rows.mean(axis=0)
        rows = rows - mean
        return len(rows), mean, np.einsum("nd,nd->d", rows, rows)

    count, mean, squares = 0, np.zeros(blocks.dimension), np.zeros(blocks.dimension)
    for block_count, block_mean, block_squares in blocks.map(summarise):
        gap = block_mean - mean
        total = count + block_count
        squares += block_squares + gap**2 * (count * block_count / total)
        mean += gap * (block_count / total)
        count = total
    deviation = np.sqrt(squares / count)
    return Scaling.from_moments(mean.astype(np.float32), deviation.astype(np.float32))


def combine_calibrated(
    factors: Sequence[float | np.float32], temperature: float, linears: Sequence[Linear]
) -> Linear:
    """Return the weighted sum of classifiers, divided by the temperature, as one classifier."""
    single = [np.float32(factor) for factor in factors]
    kernels, biases = zip(*linears, strict=True)
    kernel, bias = weighted_sum(single, kernels), weighted_sum(single, biases)
    return kernel / np.float32(temperature), bias / np.float32(temperature)
