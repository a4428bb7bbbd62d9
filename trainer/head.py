"""The head: multinomial logistic regression on L2-normalised embeddings, fitted exactly.

All features are in memory and the loss is convex, so L-BFGS finds its minimum in a few dozen
passes where retrain.py took 4,000 steps of gradient descent at a rate to be guessed. What is
left to choose, the strength of regularisation and the temperature of the probabilities, is
chosen by stratified cross-validation, by log-loss, reproducibly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

STRENGTHS = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
"""Candidates for C, the weight of the summed loss against half the squared weights.

Embeddings of length one need far larger values than standardised features do; on the sample
photos the minimum lies near 30.
"""

FOLDS = 5

ENOUGH_VALIDATION = 500
"""Validation photos that can tell one C from the next: log-loss then has a standard error of some .03."""

_LARGE = 20_000_000
"""Numbers in the features beyond which several BLAS threads pay."""

_MAX_STEPS = 500
_GRADIENT = 1e-5
"""Largest entry of the gradient at which the minimum counts as found."""


@dataclass(frozen=True)
class Head:
    """A trained head.

    Attributes:
        kernel: float32 [D,K].
        bias: float32 [K].
        temperature: logits are divided by it before the softmax (Guo et al. 2017, "On
            Calibration of Modern Neural Networks").
    """

    kernel: Floats
    bias: Floats
    temperature: float

    def probabilities(self, embeddings: Floats) -> Floats:
        """Calibrated probabilities float32 [N,K] of embeddings float32 [N,D]."""
        return softmax(self.logits(embeddings) / np.float32(self.temperature))

    def logits(self, embeddings: Floats) -> Floats:
        """Logits float32 [N,K], before the temperature."""
        return normalise(embeddings) @ self.kernel + self.bias


@dataclass(frozen=True)
class Selection:
    """How the head's settings were chosen.

    Attributes:
        method: "validation" or "cross-validation".
        strength: the C taken.
        temperature: the one taken.
        losses: log-loss for each candidate C.
        probabilities: float32 [N,K] of the held-out photos, calibrated, at the C taken.
        targets: int64 [N], their classes.
    """

    method: str
    strength: float
    temperature: float
    losses: dict[float, float]
    probabilities: Floats
    targets: Ints


def normalise(embeddings: Floats) -> Floats:
    """Scale rows to length one; a row of zeros stays."""
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    return np.asarray(embeddings / np.maximum(lengths, 1e-12), np.float32)


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
    seed: int = 0,
) -> tuple[Head, Selection]:
    """Choose C and the temperature by log-loss on held-out photos, then fit on all photos given.

    Held out are the validation photos where there are enough of them to choose by; else
    they join the others, and five-fold cross-validation takes their place.

    Args:
        embeddings: float32 [N,D].
        targets: int64 [N], each of 0 to classes-1 at least once.
        classes: K.
        validation: embeddings and targets of photos that are to be held out.
        seed: of the folds.
    """
    from threadpoolctl import threadpool_limits

    # On matrices of this size the threads of a BLAS wait for each other longer than they work:
    # measured on two cores, 3 s of processor time with one thread and 39 s with two.
    with threadpool_limits(1 if embeddings.size < _LARGE else None, user_api="blas"):
        features = normalise(embeddings)
        everything, all_targets = features, targets
        if validation is not None:
            held_out = normalise(validation[0])
            everything, all_targets = np.vstack([features, held_out]), np.append(targets, validation[1])
        if validation is not None and len(validation[1]) >= ENOUGH_VALIDATION:
            fits = minimise(features, targets, classes, STRENGTHS)
            logits = [held_out @ kernel + bias for kernel, bias in fits]
            selection = _select(logits, validation[1], "validation")
        else:
            logits = _out_of_fold(everything, all_targets, classes, seed)
            selection = _select(logits, all_targets, "cross-validation")
        [(kernel, bias)] = minimise(everything, all_targets, classes, [selection.strength])
    return Head(kernel, bias, selection.temperature), selection


def _select(logits: Sequence[Floats], targets: Ints, method: str) -> Selection:
    """The candidate with the least log-loss, each at its own best temperature."""
    temperatures = [fit_temperature(candidate, targets) for candidate in logits]
    tempered = [
        softmax(candidate / np.float32(temperature))
        for candidate, temperature in zip(logits, temperatures, strict=True)
    ]
    losses = [log_loss(probabilities, targets) for probabilities in tempered]
    best = int(np.argmin(losses))
    return Selection(
        method=method,
        strength=STRENGTHS[best],
        temperature=temperatures[best],
        losses=dict(zip(STRENGTHS, losses, strict=True)),
        probabilities=tempered[best],
        targets=targets,
    )


def _out_of_fold(features: Floats, targets: Ints, classes: int, seed: int) -> list[Floats]:
    """Logits [N,K] for each candidate C, each photo's from a head that has not seen it."""
    logits = [np.zeros((len(targets), classes), np.float32) for _ in STRENGTHS]
    for fitted, held_out in stratified_folds(targets, FOLDS, seed):
        fits = minimise(features[fitted], targets[fitted], classes, STRENGTHS)
        for candidate, (kernel, bias) in zip(logits, fits, strict=True):
            candidate[held_out] = features[held_out] @ kernel + bias
    return logits


def minimise(
    features: Floats, targets: Ints, classes: int, strengths: Sequence[float]
) -> list[tuple[Floats, Floats]]:
    """The kernel [D,K] and bias [K] that minimise the regularised log-loss, for each C.

    The bias is not regularised. Each fit begins at the one before it.

    Args:
        features: float32 [N,D].
        targets: int64 [N].
        classes: K.
        strengths: values of C, ascending.
    """
    from scipy.optimize import minimize

    # The optimal kernel lies in the span of the features (representer theorem), so with fewer
    # photos than dimensions the problem is solved in that smaller space.
    basis: Floats | None = None
    if features.shape[0] < features.shape[1]:
        basis, triangle = np.linalg.qr(features.T)
        features = np.ascontiguousarray(triangle.T)
    parameters = np.zeros((features.shape[1] + 1) * classes)
    fits = []
    for strength in strengths:
        objective = _objective(features, targets, classes, strength)
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
