"""Fits of the linear classifiers of a head, and the statistics of rows that every fit needs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import numpy as np

from trainer.heads.head import Doubles, Floats, Ints, Linear, Scaling
from trainer.heads.linear import SHRINKAGE, Moments, Whitening, compute_span, lift_linear, loss_and_gradient
from trainer.heads.streaming import Blocks

TOLERANCE = 1e-5
"""Relative decrease of the log-loss by one step at which a minimum counts as found.

It is used to compare candidates, and for fits on many photos; EXACT_TOLERANCE for others.
"""

EXACT_TOLERANCE = 1e-8

_LBFGS_OPTIONS = {"maxiter": 500, "maxcor": 20, "gtol": 1e-6}
"""Maximum of steps, steps that approximate the inverse Hessian, and largest entry of the gradient at which
the minimum counts as found."""


class Fitter:
    """Fits the linear classifiers of a head: logistic regression for each C, and the discriminant.

    The objective of the multinomial logistic regression is the mean log-loss plus half the squared kernel
    divided by C N. The bias is not regularised. Each fit begins at the result of the previous one.

    Args:
        features: rows to fit on.
        moments: moments of these rows, or of a superset.
        weights: label weights, float32 [K].
        start: classifier at which the first descent begins; None for zeros.
        basis: float32 [D,N] if the rows are coordinates in it.
        tolerance: relative decrease of the loss by one step at which the minimum counts as found.
        shrinkage: shrinkage of the discriminant's covariance.
        copies: rows per photo. C multiplies the sum over rows, so it is divided by the copies to
            keep its meaning.
    """

    def __init__(
        self,
        features: Blocks,
        moments: Moments,
        weights: Floats,
        *,
        start: Linear | None = None,
        basis: Floats | None = None,
        tolerance: float = TOLERANCE,
        shrinkage: float = SHRINKAGE,
        copies: int = 1,
    ) -> None:
        self.features, self.basis = features, basis
        self._moments, self._weights = moments, weights
        self._tolerance, self._copies = tolerance, copies
        classes = len(weights)
        nothing = np.zeros((features.dimension, classes), np.float32), np.zeros(classes, np.float32)
        self._last = start or nothing
        # The discriminant does not depend on the strength, so it is computed once.
        dimension = None if basis is None else len(basis)
        self._discriminant = lift_linear(basis, moments.discriminant(shrinkage, dimension))

    @classmethod
    def from_array(cls, features: Floats, targets: Ints, weights: Floats, **options: Any) -> Fitter:
        """Fit on few rows, float32 [N,D] and int64 [N], as coordinates in their span."""
        basis, coordinates = compute_span(features)
        blocks = Blocks.from_array(coordinates, targets)
        return cls(blocks, Moments.from_blocks(blocks, weights), weights, basis=basis, **options)

    def fit(self, strength: float) -> list[Linear]:
        """Return the classifiers for a C, regression and discriminant."""
        from scipy.optimize import minimize

        decay = self._copies / (strength * self.features.count)
        white = Whitening(self._moments, decay)
        start = white.to_unknowns(self._last)

        def objective(unknowns: Doubles) -> tuple[float, Doubles]:
            linear = white.to_linear(unknowns.reshape(start.shape))
            value, of_kernel, of_bias = loss_and_gradient(self.features, linear, self._weights)
            kernel = linear[0].astype(np.float64)
            gradient = white.to_gradient(of_kernel + decay * kernel, of_bias)
            return value + 0.5 * decay * float((kernel**2).sum()), gradient.ravel()

        options: Any = _LBFGS_OPTIONS | {"ftol": self._tolerance}
        found: Any = minimize(objective, start.ravel(), jac=True, method="L-BFGS-B", options=options)
        self._last = white.to_linear(found.x.reshape(start.shape))
        return [lift_linear(self.basis, self._last), self._discriminant]


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
    counts = (np.bincount(targets, minlength=classes) for _, targets in blocks.read())
    return sum(counts, np.zeros(classes, np.int64))


def compute_scaling(blocks: Blocks) -> Scaling:
    """Return the scaling as `Scaling.from_embeddings` does, in one pass.

    The sums of squares are exact enough: the square of a float32 number has no more bits than a float64.
    """

    def sum_block(rows: Floats, _: Ints) -> tuple[Any, ...]:
        doubles = rows.astype(np.float64)
        return len(doubles), doubles.sum(axis=0), np.einsum("nd,nd->d", doubles, doubles)

    count, total, squares = blocks.sum(sum_block)
    mean = total / count
    deviation = np.sqrt(np.maximum(squares / count - mean**2, 0))
    return Scaling.from_moments(mean.astype(np.float32), deviation.astype(np.float32))
