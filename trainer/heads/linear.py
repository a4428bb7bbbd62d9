"""Linear classifiers: the loss and the variables of logistic regression, and the discriminant in closed form.

All of them read the rows in blocks, so that memory does not grow with the number of rows. To need few
passes, the descent by L-BFGS uses the unknowns of whitened features: up to a factor, the covariance is a
bound of the curvature of the loss (Boehning 1992, "Multinomial logistic regression algorithm"). On
30,000 synthetic embeddings of 101 labels that takes 20 passes, where plain L-BFGS takes 60 to 100.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from trainer.heads.head import Doubles, Floats, Ints, Linear, log_losses, softmax
from trainer.heads.streaming import Blocks

SHRINKAGE = 0.5
"""Weight of the spherical part of the covariance (Friedman 1989, "Regularized Discriminant Analysis")."""

_CURVATURE = 0.2
"""K times the curvature of the loss in whitened directions, near the minimum."""

_MIN_VARIANCE = 1e-6
"""Least ridge of the discriminant's covariance; features have length one, so it is relative to their scale.

Photos of one colour, or labels of one photo each, have no variance within their labels.
"""


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

        def sum_block(rows: Floats, targets: Ints) -> tuple[Any, ...]:
            # In float64: sums of equal float32 products err so much that no covariance is positive definite.
            exact = rows.astype(np.float64)
            expected = np.eye(len(weights))[targets] * weights[targets, None]
            weighted = exact if (weights == 1).all() else exact * weights[targets, None]
            return expected.sum(axis=0), expected.T @ exact, exact.T @ weighted

        return cls(*features.sum(sum_block))

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
        within[np.diag_indices_from(within)] += max(shrinkage * variance, _MIN_VARIANCE)
        kernel = solve(within, means.T, assume_a="pos")
        with np.errstate(divide="ignore"):
            prior = np.maximum(np.log(self.counts / total), -100.0)
        bias = prior - 0.5 * np.einsum("kd,dk->k", means, kernel)
        return np.asarray(kernel, np.float32), np.asarray(bias, np.float32)


class Whitening:
    """Change of variables by which the loss has about the same curvature in all directions.

    The kernel [D,K] is `matrix` [D,D] times the unknowns [D,K], where matrix' (c S + decay) matrix is
    the identity, S the covariance and c an estimate of the curvature of the loss. The last row of the
    unknowns [D+1,K] is the bias of centred features, which does not depend on the kernel.

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

    def to_linear(self, unknowns: Doubles) -> Linear:
        """Return the classifier of unknowns [D+1,K]."""
        kernel = self.matrix @ unknowns[:-1].astype(np.float32)
        return kernel, (self.step * unknowns[-1] - self.mean @ kernel).astype(np.float32)

    def to_unknowns(self, linear: Linear) -> Doubles:
        """Return the unknowns [D+1,K] of a classifier."""
        kernel, bias = linear
        return np.vstack([self.lower.T @ kernel, (bias + self.mean @ kernel) / self.step])

    def to_gradient(self, of_kernel: Doubles, of_bias: Doubles) -> Doubles:
        """Return the gradient with respect to the unknowns, given those to the kernel and the bias."""
        centred = of_kernel - np.outer(self.mean, of_bias)
        return np.vstack([self.matrix.T @ centred.astype(np.float32), self.step * of_bias])


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

    def sum_block(rows: Floats, targets: Ints) -> tuple[Any, ...]:
        error: Any = softmax(rows @ kernel + bias)
        row_weights = weights[targets]
        loss = log_losses(error, targets) @ row_weights
        # The gradient of the loss with respect to the logits: probabilities minus one-hot targets.
        error[np.arange(len(targets)), targets] -= 1.0
        error *= row_weights[:, None]
        total = row_weights.sum(dtype=np.float64)
        return loss, total, rows.T @ error, error.sum(axis=0, dtype=np.float64)

    value, total, of_kernel, of_bias = features.sum(sum_block)
    return float(value / total), of_kernel / total, of_bias / total


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
