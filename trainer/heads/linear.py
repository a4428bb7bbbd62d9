"""The linear classifiers: logistic regression and cosine by L-BFGS, the discriminant in closed form.

All go through the rows in blocks, so that memory does not grow with the rows. What the two
descents need most is few passes: their unknowns are those of features whitened by the
covariance, which is up to a factor a bound of the curvature of the loss (Boehning 1992, "Multinomial
logistic regression algorithm"). On 30,000 synthetic embeddings of 101 labels that takes 20
passes where plain L-BFGS takes 60 to 100.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.heads.head import Floats, Ints, Linear, softmax
from trainer.heads.streaming import Blocks

Doubles = NDArray[np.float64]

SHRINKAGE = 0.5
"""Share of the sphere in the covariance (Friedman 1989, "Regularized Discriminant Analysis"): half."""

EXACT = 1e-8
"""Decrease of the mean log-loss by one step at which the minimum counts as found."""

_MAX_STEPS = 500
_MAX_TRIES = 20
_PAIRS = 20
"""Steps that L-BFGS remembers."""

_GRADIENT = 1e-6
"""Largest entry of the gradient at which it counts as found too, in whitened unknowns."""

_CURVATURE = 0.2
"""Times 1/K: of the loss in whitened directions, as it is about the minimum."""


_LENGTH = 0.1
"""Weight of the squared difference of a direction's length from one."""


@dataclass(frozen=True)
class Moments:
    """All that the discriminant needs to know of features; those of two sets add up.

    Attributes:
        counts: float64 [K], rows of each label, weighted.
        sums: float64 [K,D], of each label's rows, weighted.
        products: float64 [D,D], the sum of x x', weighted.
    """

    counts: Doubles
    sums: Doubles
    products: Doubles

    @classmethod
    def of(cls, features: Blocks, weights: Floats) -> Moments:
        """In one pass over features; `weights` float32 [K] are those of the labels."""
        classes, dimension = len(weights), features.dimension
        total = cls(np.zeros(classes), np.zeros((classes, dimension)), np.zeros((dimension, dimension)))

        def work(rows: Floats, targets: Ints) -> tuple[Doubles, Any, Any]:
            expected = np.eye(classes, dtype=np.float32)[targets] * weights[targets, None]
            weighted = rows if (weights == 1).all() else rows * weights[targets, None]
            return expected.sum(axis=0, dtype=np.float64), expected.T @ rows, rows.T @ weighted

        for counts, sums, products in features.each(work):
            total.counts[:] += counts
            total.sums[:] += sums
            total.products[:] += products
        return total

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.counts + other.counts, self.sums + other.sums, self.products + other.products)

    @property
    def mean(self) -> Doubles:
        """float64 [D], of all rows."""
        return self.sums.sum(axis=0) / self.counts.sum()

    @property
    def means(self) -> Doubles:
        """float64 [K,D], of each label; zeros where it has no rows."""
        return self.sums / np.maximum(self.counts, 1e-12)[:, None]

    @property
    def covariance(self) -> Doubles:
        """float64 [D,D], of all rows."""
        return self.products / self.counts.sum() - np.outer(self.mean, self.mean)

    def discriminant(self, shrinkage: float = SHRINKAGE, dimension: int | None = None) -> Linear:
        """Linear discriminant analysis, the covariance within labels shrunken towards a sphere.

        Args:
            shrinkage: 0 for none, 1 for the sphere alone.
            dimension: of the features, where these are coordinates in their span.
        """
        from scipy.linalg import solve

        total = self.counts.sum()
        means = self.means
        within = self.products / total - means.T @ (self.sums / total)
        # The mean variance of the D dimensions of the features, whatever the span's dimension is.
        variance = np.trace(within) / (dimension or len(within))
        within *= 1.0 - shrinkage
        within[np.diag_indices_from(within)] += shrinkage * variance + 1e-9
        kernel = solve(within, means.T, assume_a="pos")
        with np.errstate(divide="ignore"):
            prior = np.maximum(np.log(self.counts / total), -100.0)
        bias = prior - 0.5 * np.einsum("kd,dk->k", means, kernel)
        return np.asarray(kernel, np.float32), np.asarray(bias, np.float32)


class Whitening:
    """Unknowns in which the loss curves about alike in all directions.

    The kernel is `matrix` times them, [D,D] times [D,K]; matrix' (c S + decay) matrix is the identity,
    S being the covariance and c some curvature of the loss.
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
        """[D,K] of unknowns [D,K]."""
        return np.asarray(self.matrix @ unknowns.astype(np.float32), np.float64)

    def slopes(self, gradient: Doubles) -> Doubles:
        """The gradient in the unknowns of that in the kernel."""
        return np.asarray(self.matrix.T @ gradient.astype(np.float32), np.float64)

    def unknowns(self, kernel: Floats | Doubles) -> Doubles:
        """Of a kernel [D,K]."""
        return np.asarray(self.lower.T @ kernel.astype(np.float64))


def loss(features: Blocks, linear: Linear, weights: Floats) -> tuple[float, Doubles, Doubles]:
    """The mean log-loss of a linear classifier, and its gradient in kernel [D,K] and bias [K]; one pass.

    Args:
        features: the rows.
        linear: kernel and bias.
        weights: float32 [K], of the labels in the mean.
    """
    kernel, bias = linear
    classes = len(bias)

    def work(rows: Floats, targets: Ints) -> tuple[float, float, Floats, Doubles]:
        error: Any = softmax(rows @ kernel + bias)
        places = np.arange(len(targets)), targets
        share = weights[targets]
        losses = -np.log(np.maximum(error[places], 1e-15)) * share
        error[places] -= 1.0
        error *= share[:, None]
        return (
            float(losses.sum(dtype=np.float64)),
            float(share.sum(dtype=np.float64)),
            rows.T @ error,
            error.sum(axis=0, dtype=np.float64),
        )

    value, total = 0.0, 0.0
    slopes, offset = np.zeros((features.dimension, classes)), np.zeros(classes)
    for part, share, gradient, tilt in features.each(work):
        value += part
        total += share
        slopes += gradient
        offset += tilt
    return value / total, slopes / total, offset / total


class Logistic:
    """Multinomial logistic regression; each fit begins at the one before it.

    Minimised is the mean log-loss plus half the squared kernel over C N. The bias is not regularised.

    Args:
        features: the rows.
        moments: of features like these, weighted alike.
        weights: float32 [K], of the labels.
        start: where the first fit begins; None at zero.
        decrease: of the loss by one step, at which the minimum counts as found.
    """

    def __init__(
        self,
        features: Blocks,
        moments: Moments,
        weights: Floats,
        *,
        start: Linear | None = None,
        decrease: float = EXACT,
    ) -> None:
        self._features, self._moments, self._weights = features, moments, weights
        self._decrease = decrease
        classes = len(weights)
        self._last = start or (
            np.zeros((features.dimension, classes), np.float32),
            np.zeros(classes, np.float32),
        )

    def at(self, strength: float) -> Linear:
        """The minimum for a C."""
        decay = 1.0 / (strength * self._features.count)
        white = Whitening(self._moments, decay)

        def layer(unknowns: Doubles) -> tuple[Doubles, Doubles]:
            # Features are centred on the way, so that the bias is independent of the kernel.
            kernel = white.kernel(unknowns[:-1])
            return kernel, white.step * unknowns[-1] - white.mean @ kernel

        def value(unknowns: Doubles) -> tuple[float, Doubles]:
            kernel, bias = layer(unknowns)
            linear = kernel.astype(np.float32), bias.astype(np.float32)
            found, slopes, tilt = loss(self._features, linear, self._weights)
            slopes += decay * kernel - np.outer(white.mean, tilt)
            gradient = np.vstack([white.slopes(slopes), white.step * tilt])
            return found + 0.5 * decay * float((kernel**2).sum()), gradient

        last, offset = self._last
        start = np.vstack([white.unknowns(last), (offset + white.mean @ last) / white.step])
        kernel, bias = layer(_descend(value, start, self._decrease))
        self._last = kernel.astype(np.float32), bias.astype(np.float32)
        return self._last


class Cosine:
    """Prototypes: the logit of a label is a scale times the cosine with the label's direction, and a bias.

    The directions minimise the log-loss, from the means of the labels on (Gidaris and Komodakis 2018,
    "Dynamic Few-Shot Visual Learning without Forgetting"). The scale bounds the cosines' part, which is
    all the regularisation there is. Without the bias, rare labels would be foretold too often: on three
    labels of which one had 5 % of the photos it got 19 % of the probability.

    Args:
        features: the rows, of length one.
        moments, weights, start, decrease: as of Logistic.
    """

    def __init__(
        self,
        features: Blocks,
        moments: Moments,
        weights: Floats,
        *,
        start: Linear | None = None,
        decrease: float = EXACT,
    ) -> None:
        self._features, self._moments, self._weights = features, moments, weights
        self._decrease = decrease
        if start is None:
            absent = moments.counts == 0
            means: Doubles = moments.means
            means[absent] = -means.sum(axis=0)
            start = means.T.astype(np.float32), np.zeros(len(weights), np.float32)
        self._last = _directions(start[0].astype(np.float64))[0], start[1].astype(np.float64)

    def at(self, strength: float) -> Linear:
        """The minimum for a scale: a kernel with columns of that length, and a bias."""
        covariance = self._moments.covariance
        curvature = _CURVATURE / len(self._weights)
        white = Whitening(self._moments, 0.3 * curvature * np.trace(covariance) / len(covariance))

        def value(unknowns: Doubles) -> tuple[float, Doubles]:
            directions, lengths = _directions(white.kernel(unknowns[:-1]))
            linear = (strength * directions).astype(np.float32), unknowns[-1].astype(np.float32)
            found, slopes, tilt = loss(self._features, linear, self._weights)
            slopes *= strength
            slopes -= directions * (directions * slopes).sum(axis=0)
            # Lengths change no loss, so this moves no minimum; it keeps the steps from making them grow.
            gap = lengths - 1.0
            slopes = slopes / lengths + _LENGTH * gap * directions
            penalty = 0.5 * _LENGTH * float((gap**2).sum())
            return found + penalty, np.vstack([white.slopes(slopes), tilt])

        directions, bias = self._last
        unknowns = _descend(value, np.vstack([white.unknowns(directions), bias]), self._decrease)
        self._last = _directions(white.kernel(unknowns[:-1]))[0], unknowns[-1]
        return (strength * self._last[0]).astype(np.float32), self._last[1].astype(np.float32)


def _directions(kernel: Doubles) -> tuple[Doubles, Doubles]:
    """Columns of length one, and the lengths [K] they had."""
    lengths = np.maximum(np.linalg.norm(kernel, axis=0), 1e-12)
    return kernel / lengths, lengths


def _descend(value: Callable[[Doubles], tuple[float, Doubles]], start: Doubles, decrease: float) -> Doubles:
    """L-BFGS (Nocedal and Wright 2006, chapter 7) from `start`; `value` gives loss and gradient.

    SciPy's is one with bounds, and spends 57 ms a step on 100,000 unknowns where this one spends 5.
    """
    point = start
    height, slopes = value(point)
    pairs: deque[tuple[Doubles, Doubles, float]] = deque(maxlen=_PAIRS)
    for _ in range(_MAX_STEPS):
        if np.abs(slopes).max() < _GRADIENT:
            break
        direction = _direction(slopes, pairs)
        found = _search(value, point, height, slopes, direction)
        if found is None:
            break
        ahead, lower, turned = found
        move, turn = ahead - point, turned - slopes
        if (product := _inner(move, turn)) > 0:
            pairs.append((move, turn, product))
        gain = height - lower
        point, height, slopes = ahead, lower, turned
        if gain <= decrease * max(1.0, abs(height)):
            break
    return point


def _direction(slopes: Doubles, pairs: Sequence[tuple[Doubles, Doubles, float]]) -> Doubles:
    """Minus the slopes times the inverse curvature as far as it is known; whitened, it is one at first."""
    direction = -slopes
    shares = []
    for move, turn, product in reversed(pairs):
        share = _inner(move, direction) / product
        direction -= share * turn
        shares.append(share)
    if pairs:
        _, turn, product = pairs[-1]
        direction *= product / _inner(turn, turn)
    for (move, turn, product), share in zip(pairs, reversed(shares), strict=True):
        direction += (share - _inner(turn, direction) / product) * move
    return direction


def _search(
    value: Callable[[Doubles], tuple[float, Doubles]],
    point: Doubles,
    height: float,
    slopes: Doubles,
    direction: Doubles,
) -> tuple[Doubles, float, Doubles] | None:
    """A point along the direction, its loss and slopes, by bisection for the weak Wolfe conditions.

    None where float arithmetic shows no descent any more.
    """
    slope = _inner(slopes, direction)
    low, high, step = 0.0, np.inf, 1.0
    for _ in range(_MAX_TRIES):
        ahead = point + step * direction
        lower, turned = value(ahead)
        if not lower <= height + 1e-4 * step * slope:
            high = step
        elif _inner(turned, direction) < 0.9 * slope:
            low = step
        else:
            return ahead, lower, turned
        step = 2 * low if high == np.inf else (low + high) / 2
    return None


def _inner(left: Doubles, right: Doubles) -> float:
    return float(np.dot(left.ravel(), right.ravel()))


def equal_weights(classes: int) -> Floats:
    """float32 [K] of ones."""
    return np.ones(classes, np.float32)


def span(features: Floats) -> tuple[Floats | None, Floats]:
    """An orthonormal basis [D,N] of the rows and their coordinates [N,N]; where N >= D, none and the rows.

    The kernels sought lie in the span of the features (representer theorem), so with fewer
    photos than dimensions the problem is solved in that smaller space.
    """
    if features.shape[0] >= features.shape[1]:
        return None, features
    basis, triangle = np.linalg.qr(features.T)
    return basis, np.ascontiguousarray(triangle.T)


def lifted(basis: Floats | None, linear: Linear) -> Linear:
    """Kernel and bias for the features, of those for their coordinates in a basis [D,N]."""
    return linear if basis is None else (basis @ linear[0], linear[1])


def discriminate(
    features: Floats, targets: Ints, classes: int, weights: Floats | None = None, shrinkage: float = SHRINKAGE
) -> Linear:
    """Linear discriminant analysis with the covariance within labels shrunken towards a sphere.

    Args:
        features: float32 [N,D].
        targets: int64 [N].
        classes: K. A label without photos never gets a probability.
        weights: float32 [K], of the labels; None for equal ones.
        shrinkage: share of the sphere.
    """
    basis, coordinates = span(features)
    weights = equal_weights(classes) if weights is None else weights
    moments = Moments.of(Blocks.of(coordinates, targets), weights)
    return lifted(basis, moments.discriminant(shrinkage, features.shape[1]))


def minimise(
    features: Floats,
    targets: Ints,
    classes: int,
    strengths: Sequence[float],
    weights: Floats | None = None,
) -> list[Linear]:
    """The kernel [D,K] and bias [K] that minimise the regularised log-loss, for each C.

    The bias is not regularised. Each fit begins at the one before it.

    Args:
        features: float32 [N,D].
        targets: int64 [N].
        classes: K.
        strengths: values of C, ascending.
        weights: float32 [K], of the labels; None for equal ones.
    """
    basis, coordinates = span(features)
    weights = equal_weights(classes) if weights is None else weights
    blocks = Blocks.of(coordinates, targets)
    fitter = Logistic(blocks, Moments.of(blocks, weights), weights)
    return [lifted(basis, fitter.at(strength)) for strength in strengths]
