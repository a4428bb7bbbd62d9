"""Linear classifiers: logistic regression and cosine by L-BFGS, and the discriminant in closed form.

All of them read the rows in blocks, so that memory does not grow with the number of rows. To need few
passes, the two descents use the unknowns of whitened features: up to a factor, the covariance is a
bound of the curvature of the loss (Boehning 1992, "Multinomial logistic regression algorithm"). On
30,000 synthetic embeddings of 101 labels that takes 20 passes, where plain L-BFGS takes 60 to 100.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainer.heads.head import Floats, Ints, Linear, softmax
from trainer.heads.lbfgs import Doubles, minimise
from trainer.heads.streaming import Blocks

SHRINKAGE = 0.5
"""Weight of the spherical part of the covariance (Friedman 1989, "Regularized Discriminant Analysis")."""

EXACT_TOLERANCE = 1e-8
"""Relative decrease of the mean log-loss by one step at which the minimum counts as found."""

_CURVATURE = 0.2
"""K times the curvature of the loss in whitened directions, near the minimum."""


@dataclass(frozen=True)
class Moments:
    """Sufficient statistics of the discriminant; the moments of two sets of rows add up.

    Attributes:
        counts: weighted number of rows of each label, float64 [K].
        sums: weighted sum of each label's rows, float64 [K,D].
        products: weighted sum of x x', float64 [D,D].
    """

    counts: Doubles
    sums: Doubles
    products: Doubles

    @classmethod
    def from_blocks(cls, features: Blocks, weights: Floats) -> Moments:
        """Compute the moments in one pass over features, with label weights float32 [K]."""
        classes, dimension = len(weights), features.dimension
        total = cls(np.zeros(classes), np.zeros((classes, dimension)), np.zeros((dimension, dimension)))

        def sum_block(rows: Floats, targets: Ints) -> tuple[Doubles, Any, Any]:
            expected = np.eye(classes, dtype=np.float32)[targets] * weights[targets, None]
            weighted = rows if (weights == 1).all() else rows * weights[targets, None]
            return expected.sum(axis=0, dtype=np.float64), expected.T @ rows, rows.T @ weighted

        for counts, sums, products in features.map(sum_block):
            total.counts[:] += counts
            total.sums[:] += sums
            total.products[:] += products
        return total

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.counts + other.counts, self.sums + other.sums, self.products + other.products)

    @property
    def mean(self) -> Doubles:
        """Mean of all rows, float64 [D]."""
        return self.sums.sum(axis=0) / self.counts.sum()

    @property
    def means(self) -> Doubles:
        """Mean of each label's rows, float64 [K,D]; zeros for a label without rows."""
        return self.sums / np.maximum(self.counts, 1e-12)[:, None]

    @property
    def covariance(self) -> Doubles:
        """Covariance of all rows, float64 [D,D]."""
        return self.products / self.counts.sum() - np.outer(self.mean, self.mean)

    def discriminant(self, shrinkage: float = SHRINKAGE, dimension: int | None = None) -> Linear:
        """Return the linear discriminant, with the within-label covariance shrunk towards a sphere.

        Args:
            shrinkage: 0 for the covariance alone, 1 for the sphere alone.
            dimension: dimension of the features if the rows are coordinates in their span.
        """
        from scipy.linalg import solve

        total = self.counts.sum()
        means = self.means
        within = self.products / total - means.T @ (self.sums / total)
        # The mean variance over the D dimensions of the features, also if the rows span fewer.
        variance = np.trace(within) / (dimension or len(within))
        within *= 1.0 - shrinkage
        within[np.diag_indices_from(within)] += shrinkage * variance + 1e-9
        kernel = solve(within, means.T, assume_a="pos")
        with np.errstate(divide="ignore"):
            prior = np.maximum(np.log(self.counts / total), -100.0)
        bias = prior - 0.5 * np.einsum("kd,dk->k", means, kernel)
        return np.asarray(kernel, np.float32), np.asarray(bias, np.float32)


class Whitening:
    """Change of variables by which the loss has about the same curvature in all directions.

    The kernel [D,K] is `matrix` [D,D] times the unknowns [D,K], where matrix' (c S + decay) matrix is
    the identity, S the covariance and c an estimate of the curvature of the loss.

    Args:
        moments: moments of the features.
        decay: weight of half the squared kernel in the objective.
    """

    def __init__(self, moments: Moments, decay: float) -> None:
        from scipy.linalg import cholesky, solve_triangular

        curvature = _CURVATURE / len(moments.counts)
        matrix = curvature * moments.covariance
        matrix[np.diag_indices_from(matrix)] += decay + 1e-7 * np.trace(matrix) / len(matrix)
        self.lower = cholesky(matrix, lower=True)
        inverse = solve_triangular(self.lower, np.eye(len(matrix)), lower=True)
        self.matrix = np.asarray(inverse.T, np.float32)
        self.mean = moments.mean
        self.step = curvature**-0.5

    def kernel(self, unknowns: Doubles) -> Doubles:
        """Return the kernel [D,K] of unknowns [D,K]."""
        return np.asarray(self.matrix @ unknowns.astype(np.float32), np.float64)

    def gradient(self, gradient: Doubles) -> Doubles:
        """Return the gradient with respect to the unknowns, given that with respect to the kernel."""
        return np.asarray(self.matrix.T @ gradient.astype(np.float32), np.float64)

    def unknowns(self, kernel: Floats | Doubles) -> Doubles:
        """Return the unknowns [D,K] of a kernel [D,K]."""
        return np.asarray(self.lower.T @ kernel.astype(np.float64))


def loss_and_gradient(features: Blocks, linear: Linear, weights: Floats) -> tuple[float, Doubles, Doubles]:
    """Return the mean log-loss of a linear classifier and its gradient, in one pass.

    Args:
        features: rows to evaluate on.
        linear: kernel and bias.
        weights: label weights in the mean, float32 [K].

    Returns:
        The loss, its gradient with respect to the kernel, [D,K], and to the bias, [K].
    """
    kernel, bias = linear
    classes = len(bias)

    def sum_block(rows: Floats, targets: Ints) -> tuple[float, float, Floats, Doubles]:
        error: Any = softmax(rows @ kernel + bias)
        places = np.arange(len(targets)), targets
        row_weights = weights[targets]
        losses = -np.log(np.maximum(error[places], 1e-15)) * row_weights
        # The gradient of the loss with respect to the logits: probabilities minus one-hot targets.
        error[places] -= 1.0
        error *= row_weights[:, None]
        return (
            float(losses.sum(dtype=np.float64)),
            float(row_weights.sum(dtype=np.float64)),
            rows.T @ error,
            error.sum(axis=0, dtype=np.float64),
        )

    value, total = 0.0, 0.0
    of_kernel, of_bias = np.zeros((features.dimension, classes)), np.zeros(classes)
    for block_value, block_total, block_of_kernel, block_of_bias in features.map(sum_block):
        value += block_value
        total += block_total
        of_kernel += block_of_kernel
        of_bias += block_of_bias
    return value / total, of_kernel / total, of_bias / total


class LogisticRegression:
    """Multinomial logistic regression; each fit begins at the result of the previous one.

    The objective is the mean log-loss plus half the squared kernel divided by C N. The bias is not
    regularised.

    Args:
        features: rows to fit on.
        moments: moments of such features, with the same weights.
        weights: label weights, float32 [K].
        start: classifier at which the first fit begins; None for zeros.
        tolerance: relative decrease of the loss by one step at which the minimum counts as found.
    """

    def __init__(
        self,
        features: Blocks,
        moments: Moments,
        weights: Floats,
        *,
        start: Linear | None = None,
        tolerance: float = EXACT_TOLERANCE,
    ) -> None:
        self._features, self._moments, self._weights = features, moments, weights
        self._tolerance = tolerance
        classes = len(weights)
        self._last = start or (
            np.zeros((features.dimension, classes), np.float32),
            np.zeros(classes, np.float32),
        )

    def fit(self, strength: float) -> Linear:
        """Return the minimum for a C."""
        decay = 1.0 / (strength * self._features.count)
        white = Whitening(self._moments, decay)

        def to_linear(unknowns: Doubles) -> tuple[Doubles, Doubles]:
            # The unknown bias is that of centred features, which does not depend on the kernel.
            kernel = white.kernel(unknowns[:-1])
            return kernel, white.step * unknowns[-1] - white.mean @ kernel

        def objective(unknowns: Doubles) -> tuple[float, Doubles]:
            kernel, bias = to_linear(unknowns)
            linear = kernel.astype(np.float32), bias.astype(np.float32)
            value, of_kernel, of_bias = loss_and_gradient(self._features, linear, self._weights)
            # The regularisation, and the share of the kernel in the bias (see to_linear).
            of_kernel += decay * kernel - np.outer(white.mean, of_bias)
            gradient = np.vstack([white.gradient(of_kernel), white.step * of_bias])
            return value + 0.5 * decay * float((kernel**2).sum()), gradient

        last, offset = self._last
        start = np.vstack([white.unknowns(last), (offset + white.mean @ last) / white.step])
        kernel, bias = to_linear(minimise(objective, start, self._tolerance))
        self._last = kernel.astype(np.float32), bias.astype(np.float32)
        return self._last


def equal_weights(classes: int) -> Floats:
    """Return label weights of one, float32 [K]."""
    return np.ones(classes, np.float32)


def compute_span(features: Floats) -> tuple[Floats | None, Floats]:
    """Return an orthonormal basis [D,N] of the rows and their coordinates [N,N]; None and the rows if N >= D.

    The optimal kernels lie in the span of the features (representer theorem), so with fewer photos
    than dimensions the problem is solved in that smaller space.
    """
    if features.shape[0] >= features.shape[1]:
        return None, features
    basis, triangle = np.linalg.qr(features.T)
    return basis, np.ascontiguousarray(triangle.T)


def lift_linear(basis: Floats | None, linear: Linear) -> Linear:
    """Return the classifier of features, given that of their coordinates in a basis [D,N] (or None)."""
    return linear if basis is None else (basis @ linear[0], linear[1])


def project_linear(basis: Floats | None, linear: Linear) -> Linear:
    """Return the classifier of coordinates in a basis [D,N] (or None), given that of the features."""
    return linear if basis is None else (basis.T @ linear[0], linear[1])


def fit_discriminant(
    features: Floats, targets: Ints, classes: int, weights: Floats | None = None, shrinkage: float = SHRINKAGE
) -> Linear:
    """Fit linear discriminant analysis with the within-label covariance shrunk towards a sphere.

    Args:
        features: rows to fit on, float32 [N,D].
        targets: their labels, int64 [N].
        classes: number of labels, K. A label without photos gets a probability of about 0.
        weights: label weights, float32 [K]; None for equal ones.
        shrinkage: weight of the sphere.
    """
    basis, coordinates = compute_span(features)
    weights = equal_weights(classes) if weights is None else weights
    moments = Moments.from_blocks(Blocks.from_array(coordinates, targets), weights)
    return lift_linear(basis, moments.discriminant(shrinkage, features.shape[1]))


def fit_logistic(
    features: Floats,
    targets: Ints,
    classes: int,
    strengths: Sequence[float],
    weights: Floats | None = None,
) -> list[Linear]:
    """Fit logistic regression: return kernel [D,K] and bias [K] for each C.

    The bias is not regularised. Each fit begins at the result of the previous one.

    Args:
        features: rows to fit on, float32 [N,D].
        targets: their labels, int64 [N].
        classes: number of labels, K.
        strengths: values of C, ascending.
        weights: label weights, float32 [K]; None for equal ones.
    """
    basis, coordinates = compute_span(features)
    weights = equal_weights(classes) if weights is None else weights
    blocks = Blocks.from_array(coordinates, targets)
    regression = LogisticRegression(blocks, Moments.from_blocks(blocks, weights), weights)
    return [lift_linear(basis, regression.fit(strength)) for strength in strengths]
