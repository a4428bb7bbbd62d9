"""The head: one linear layer on standardised embeddings of length one, fitted exactly.

Its weights are the mean of two classifiers that need no steps to be guessed: multinomial
logistic regression, whose loss is convex, by L-BFGS; and linear discriminant analysis with a
shrunken covariance, in closed form. The first draws boundaries, the second knows how the labels
spread; on few photos their mean has a lower log-loss than either (tests/test_head.py). What is
left to choose, the strength of regularisation and the temperatures, is chosen by log-loss on
held-out photos, reproducibly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Linear = tuple[Floats, Floats]
"""Kernel [D,K] and bias [K]."""

STRENGTHS = (3.0, 10.0, 30.0, 100.0)
"""Candidates for C, the weight of the summed loss against half the squared weights.

Features of length one need far larger values than standardised ones do; on the sample
photos the minimum lies between 10 and 30.
"""

SHRINKAGE = 0.5
"""Share of the sphere in the covariance (Friedman 1989, "Regularized Discriminant Analysis"): half."""

FOLDS = 5

ENOUGH_VALIDATION = 500
"""Validation photos that can tell one C from the next: log-loss then has a standard error of some .03."""

_LARGE = 20_000_000
"""Numbers in the features beyond which several BLAS threads pay."""

_MAX_STEPS = 500
_GRADIENT = 1e-5
"""Largest entry of the gradient at which the minimum counts as found."""

_FLOOR = 0.25
"""Of the mean deviation, added to each: an embedding's nearly constant entries are not to be blown up."""


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
        deviation = embeddings.std(axis=0)
        floor = _FLOOR * deviation.mean() + 1e-12
        return cls(embeddings.mean(axis=0), np.asarray(1.0 / (deviation + floor), np.float32))

    def features(self, embeddings: Floats) -> Floats:
        """Standardised, each row then of length one; float32 [N,D]."""
        standardised = (embeddings - self.mean) * self.scale
        lengths = np.linalg.norm(standardised, axis=1, keepdims=True)
        return np.asarray(standardised / np.maximum(lengths, 1e-12), np.float32)


@dataclass(frozen=True)
class Head:
    """A trained head.

    Attributes:
        scaling: how features are made of embeddings.
        kernel: float32 [D,K].
        bias: float32 [K].
        temperature: logits are divided by it before the softmax (Guo et al. 2017, "On
            Calibration of Modern Neural Networks").
    """

    scaling: Scaling
    kernel: Floats
    bias: Floats
    temperature: float

    def probabilities(self, embeddings: Floats) -> Floats:
        """Calibrated probabilities float32 [N,K] of embeddings float32 [N,D]."""
        logits = self.scaling.features(embeddings) @ self.kernel + self.bias
        return softmax(logits / np.float32(self.temperature))


@dataclass(frozen=True)
class Selection:
    """How the head's settings were chosen.

    Attributes:
        method: "validation" or "cross-validation".
        strength: the C taken.
        losses: log-loss for each candidate C.
        probabilities: float32 [N,K] of the held-out photos, calibrated, at the C taken.
        targets: int64 [N], their classes.
    """

    method: str
    strength: float
    losses: dict[float, float]
    probabilities: Floats
    targets: Ints


@dataclass(frozen=True)
class _Mixture:
    """Logits of held-out photos by both classifiers, mixed.

    Attributes:
        weights: what the logits of logistic regression and of the discriminant are multiplied by.
        temperature: of the mixture.
        probabilities: float32 [N,K], calibrated.
        loss: their log-loss.
    """

    weights: tuple[np.float32, np.float32]
    temperature: float
    probabilities: Floats
    loss: float


def softmax(logits: Floats) -> Floats:
    """Rows of exp(logits) divided by their sum."""
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=1, keepdims=True), np.float32)


def fit(
    embeddings: Floats,
    targets: Ints,
    classes: int,
    *,
    validation: tuple[Floats, Ints] | None = None,
    views: Sequence[Floats] = (),
    seed: int = 0,
) -> tuple[Head, Selection]:
    """Choose C and the temperatures by log-loss on held-out photos, then fit on all photos given.

    Held out are the validation photos where there are enough of them to choose by; else
    they join the others, and five-fold cross-validation takes their place.

    Args:
        embeddings: float32 [N,D].
        targets: int64 [N], each of 0 to classes-1 at least once.
        classes: K.
        validation: embeddings and targets of photos that are to be held out.
        views: other embeddings of the same photos, those of `validation` behind the others, each
            float32 [N+M,D]. Classifiers are fitted on them as well, and judged by `embeddings` alone.
        seed: of the folds.
    """
    from threadpoolctl import threadpool_limits

    # On matrices of this size the threads of a BLAS wait for each other longer than they work:
    # measured on two cores, 3 s of processor time with one thread and 39 s with two.
    with threadpool_limits(1 if embeddings.size < _LARGE else None, user_api="blas"):
        everything, all_targets = embeddings, targets
        if validation is not None:
            everything = np.vstack([embeddings, validation[0]])
            all_targets = np.append(targets, validation[1])
        if validation is not None and len(validation[1]) >= ENOUGH_VALIDATION:
            method, held_targets = "validation", validation[1]
            seen = [view[: len(targets)] for view in views]
            logistic, discriminant = _held_out(embeddings, targets, validation[0], classes, seen)
        else:
            method, held_targets = "cross-validation", all_targets
            logistic, discriminant = _out_of_fold(everything, all_targets, classes, seed, views)
        mixtures = [_mix(candidate, discriminant, held_targets) for candidate in logistic]
        best = int(np.argmin([mixture.loss for mixture in mixtures]))
        head = _assemble(everything, all_targets, classes, STRENGTHS[best], mixtures[best], views)
    losses = {strength: mixture.loss for strength, mixture in zip(STRENGTHS, mixtures, strict=True)}
    selection = Selection(method, STRENGTHS[best], losses, mixtures[best].probabilities, held_targets)
    return head, selection


def _assemble(
    embeddings: Floats,
    targets: Ints,
    classes: int,
    strength: float,
    mixture: _Mixture,
    views: Sequence[Floats],
) -> Head:
    """Both classifiers on all photos, as one linear layer."""
    embeddings, targets = _with_views(embeddings, targets, views)
    scaling = Scaling.of(embeddings)
    features = scaling.features(embeddings)
    [(kernel, bias)] = minimise(features, targets, classes, [strength / (1 + len(views))])
    other_kernel, other_bias = discriminate(features, targets, classes)
    first, second = mixture.weights
    return Head(
        scaling,
        first * kernel + second * other_kernel,
        first * bias + second * other_bias,
        mixture.temperature,
    )


def _mix(logistic: Floats, discriminant: Floats, targets: Ints) -> _Mixture:
    """The mean of both logits, each at its own best temperature, at the mean's best temperature."""
    weights = (
        np.float32(0.5 / fit_temperature(logistic, targets)),
        np.float32(0.5 / fit_temperature(discriminant, targets)),
    )
    mixed = np.asarray(weights[0] * logistic + weights[1] * discriminant, np.float32)
    temperature = fit_temperature(mixed, targets)
    probabilities = softmax(mixed / np.float32(temperature))
    return _Mixture(weights, temperature, probabilities, log_loss(probabilities, targets))


def _with_views(embeddings: Floats, targets: Ints, views: Sequence[Floats]) -> tuple[Floats, Ints]:
    """The rows of all views under each other, with their targets."""
    return np.vstack([embeddings, *views]), np.tile(targets, 1 + len(views))


def _held_out(
    embeddings: Floats, targets: Ints, held_out: Floats, classes: int, views: Sequence[Floats]
) -> tuple[list[Floats], Floats]:
    """Logits [N,K] of held-out photos: by logistic regression for each C, and by the discriminant."""
    embeddings, targets = _with_views(embeddings, targets, views)
    scaling = Scaling.of(embeddings)
    features, held_features = scaling.features(embeddings), scaling.features(held_out)
    # C weighs the sum over rows: with more rows a photo less of it, so that it means the same.
    fits = minimise(features, targets, classes, [strength / (1 + len(views)) for strength in STRENGTHS])
    kernel, bias = discriminate(features, targets, classes)
    logistic = [held_features @ candidate + offset for candidate, offset in fits]
    return logistic, held_features @ kernel + bias


def _out_of_fold(
    embeddings: Floats, targets: Ints, classes: int, seed: int, views: Sequence[Floats]
) -> tuple[list[Floats], Floats]:
    """As `_held_out`, for every photo from classifiers that have not seen it."""
    shape = (len(targets), classes)
    logistic = [np.zeros(shape, np.float32) for _ in STRENGTHS]
    discriminant = np.zeros(shape, np.float32)
    for fitted, held in stratified_folds(targets, FOLDS, seed):
        seen = [view[fitted] for view in views]
        candidates, other = _held_out(embeddings[fitted], targets[fitted], embeddings[held], classes, seen)
        discriminant[held] = other
        for logits, candidate in zip(logistic, candidates, strict=True):
            logits[held] = candidate
    return logistic, discriminant


def discriminate(features: Floats, targets: Ints, classes: int) -> Linear:
    """Linear discriminant analysis with the covariance within labels shrunken towards a sphere.

    Args:
        features: float32 [N,D].
        targets: int64 [N].
        classes: K. A label without photos never gets a probability.
    """
    from scipy.linalg import solve

    basis, reduced = _span(features)
    points = reduced.astype(np.float64)
    counts = np.bincount(targets, minlength=classes)
    means = np.zeros((classes, points.shape[1]))
    np.add.at(means, targets, points)
    means /= np.maximum(counts, 1)[:, None]
    residuals = points - means[targets]
    covariance = residuals.T @ residuals / len(targets)
    # The mean variance of the D dimensions of the features, whatever the span's dimension is.
    variance = np.trace(covariance) / features.shape[1]
    covariance *= 1.0 - SHRINKAGE
    covariance[np.diag_indices_from(covariance)] += SHRINKAGE * variance + 1e-12
    kernel = solve(covariance, means.T, assume_a="pos")
    with np.errstate(divide="ignore"):
        prior = np.maximum(np.log(counts / len(targets)), -100.0)
    bias = prior - 0.5 * np.einsum("cd,dc->c", means, kernel)
    weights = np.asarray(kernel, np.float32) if basis is None else basis @ np.asarray(kernel, np.float32)
    return weights, np.asarray(bias, np.float32)


def _span(features: Floats) -> tuple[Floats | None, Floats]:
    """An orthonormal basis [D,N] of the rows and their coordinates [N,N]; where N >= D, none and the rows.

    The kernels sought lie in the span of the features (representer theorem), so with fewer
    photos than dimensions the problem is solved in that smaller space.
    """
    if features.shape[0] >= features.shape[1]:
        return None, features
    basis, triangle = np.linalg.qr(features.T)
    return basis, np.ascontiguousarray(triangle.T)


def minimise(features: Floats, targets: Ints, classes: int, strengths: Sequence[float]) -> list[Linear]:
    """The kernel [D,K] and bias [K] that minimise the regularised log-loss, for each C.

    The bias is not regularised. Each fit begins at the one before it.

    Args:
        features: float32 [N,D].
        targets: int64 [N].
        classes: K.
        strengths: values of C, ascending.
    """
    from scipy.optimize import minimize

    basis, coordinates = _span(features)
    parameters = np.zeros((coordinates.shape[1] + 1) * classes)
    fits = []
    for strength in strengths:
        objective = _objective(coordinates, targets, classes, strength)
        result = minimize(
            objective,
            parameters,
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": _MAX_STEPS, "gtol": _GRADIENT},
        )
        parameters = result.x
        weights = parameters.astype(np.float32).reshape(-1, classes)
        kernel = weights[:-1] if basis is None else basis @ weights[:-1]
        fits.append((kernel, weights[-1]))
    return fits


def _objective(
    features: Floats, targets: Ints, classes: int, strength: float
) -> Callable[[NDArray[np.float64]], tuple[float, NDArray[np.float64]]]:
    """Mean log-loss plus half the squared kernel over C N, and its gradient, of flat parameters."""
    count = len(targets)
    expected = np.eye(classes, dtype=np.float32)[targets]
    decay = 1.0 / (strength * count)

    def value(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        weights = flat.reshape(-1, classes)
        kernel, bias = weights[:-1], weights[-1]
        probabilities = softmax(features @ kernel.astype(np.float32) + bias.astype(np.float32))
        error = probabilities - expected
        gradient = np.empty_like(weights)
        gradient[:-1] = features.T @ error / count + decay * kernel
        gradient[-1] = error.mean(axis=0)
        loss = log_loss(probabilities, targets) + 0.5 * decay * float((kernel**2).sum())
        return loss, gradient.ravel()

    return value


def fit_temperature(logits: Floats, targets: Ints) -> float:
    """The temperature that minimises the log-loss of held-out logits [N,K]."""
    from scipy.optimize import minimize_scalar

    def loss(log_temperature: float) -> float:
        return log_loss(softmax(logits / np.float32(np.exp(log_temperature))), targets)

    return float(np.exp(minimize_scalar(loss, bounds=(-3.0, 3.0), method="bounded").x))


def log_loss(probabilities: Floats, targets: Ints) -> float:
    """Mean negative natural log-likelihood of the targets."""
    picked = probabilities[np.arange(len(targets)), targets]
    return float(-np.log(np.maximum(picked, 1e-15)).mean(dtype=np.float64))


def stratified_folds(targets: Ints, folds: int, seed: int) -> Iterator[tuple[Ints, Ints]]:
    """Yield (rows to fit on, rows held out), each label spread evenly over the folds."""
    random = np.random.default_rng(seed)
    fold_of = np.empty(len(targets), np.int64)
    offset = 0
    for label in np.unique(targets):
        rows = random.permutation(np.flatnonzero(targets == label))
        fold_of[rows] = (np.arange(len(rows)) + offset) % folds
        offset += len(rows)
    for fold in range(folds):
        yield np.flatnonzero(fold_of != fold), np.flatnonzero(fold_of == fold)
