"""Hidden layer beside the linear head, trained on the residual of the linear head.

The linear head stays as it was fitted. The output of the layer, which is zero at the start, is added
to its logits. A layer that does not reduce the held-out log-loss is stopped after 0 epochs, so the head
is never worse than the linear one on the photos held out. On the sample photos, a network without the
linear head was worse than the linear head at every width (best: accuracy 75.1 %, log-loss .765, width
1024).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from trainer.heads.calibration import fit_temperature
from trainer.heads.head import Floats, HiddenLayer, Ints, Linear, log_loss, softmax
from trainer.heads.linear import project_linear
from trainer.heads.settings import Selection
from trainer.heads.streaming import ShuffledRows

WIDTHS = (256, 1024)
"""Candidates for the number of units, H, selected by held-out log-loss."""

DROPOUT = 0.5
WEIGHT_DECAY = 0.1
LEARNING_RATE = 1e-3

MOST_EPOCHS = 200
PATIENCE = 8
"""Epochs without a lower log-loss after which training stops."""

_LARGE = 5000
"""Rows from which on mini-batches are larger."""


class Network:
    """Training of one hidden layer by AdamW (Loshchilov and Hutter 2019) with dropout.

    Args:
        rows: rows to train on.
        base: linear head, already divided by its temperature.
        width: number of units, H.
        weights: label weights in the loss, float32 [K].
        seed: seed of the initial weights, the order of the rows and the dropout.
    """

    def __init__(self, rows: ShuffledRows, base: Linear, width: int, weights: Floats, seed: int) -> None:
        self._rows, self._base, self._weights = rows, base, weights
        self._random = np.random.default_rng(seed)
        dimension, classes = base[0].shape
        # Features have length one, so with this variance the inputs of the ReLU have the variance 2, as He
        # et al. 2015 ("Delving Deep into Rectifiers") recommend.
        kernel = self._random.standard_normal((dimension, width), np.float32) * np.float32(2**0.5)
        self._parameters = [kernel, np.zeros(width, np.float32), np.zeros((width, classes), np.float32)]
        self._first = [np.zeros_like(array) for array in self._parameters]
        self._second = [np.zeros_like(array) for array in self._parameters]
        self._steps = 0

    @property
    def layer(self) -> HiddenLayer:
        """Copy of the current weights."""
        return HiddenLayer(*(array.copy() for array in self._parameters))

    def logits(self, features: Floats) -> Floats:
        """Return the logits float32 [N,K], linear head included, of features float32 [N,D]."""
        kernel, bias = self._base
        return features @ kernel + bias + HiddenLayer(*self._parameters).logits(features)

    def run_epoch(self) -> None:
        """Train on every row once."""
        size = 64 if self._rows.count < _LARGE else 256
        for features, targets in self._rows.batches(size, self._random):
            self._train_batch(features, targets)

    def _train_batch(self, features: Floats, targets: Ints) -> None:
        """Compute the gradient of the weighted log-loss on one mini-batch, and update the weights."""
        kernel, bias, output = self._parameters
        entering = features @ kernel + bias
        kept = self._random.random(entering.shape, np.float32) >= DROPOUT
        gate = (kept & (entering > 0)) * np.float32(1 / (1 - DROPOUT))
        hidden = entering * gate
        error = softmax(features @ self._base[0] + self._base[1] + hidden @ output)
        error[np.arange(len(targets)), targets] -= 1
        error *= self._weights[targets, None] / np.float32(len(targets))
        back = (error @ output.T) * gate
        self._update([features.T @ back, back.sum(axis=0), hidden.T @ error])

    def _update(self, gradients: Sequence[NDArray[np.float32]]) -> None:
        """Take one step of AdamW; the gradients are overwritten."""
        self._steps += 1
        # The correction of the bias of both moments is part of the learning rate.
        rate = np.float32(LEARNING_RATE * (1 - 0.999**self._steps) ** 0.5 / (1 - 0.9**self._steps))
        for parameter, first, second, gradient in zip(
            self._parameters, self._first, self._second, gradients, strict=True
        ):
            first += np.float32(0.1) * (gradient - first)
            np.square(gradient, out=gradient)
            second += np.float32(0.001) * (gradient - second)
            if parameter.ndim == 2:  # biases do not decay
                parameter *= np.float32(1 - LEARNING_RATE * WEIGHT_DECAY)
            parameter -= rate * first / (np.sqrt(second) + np.float32(1e-8))


@dataclass(frozen=True)
class EarlyStop:
    """State of the networks at the epoch with the lowest held-out log-loss.

    Attributes:
        width: number of units.
        epochs: number of epochs; 0 if the linear head alone is best.
        layers: layer of each network at that epoch.
        logits: logits of the held-out photos, float32 [N,K].
        temperature: temperature that calibrates these logits.
        loss: log-loss of the calibrated logits.
    """

    width: int
    epochs: int
    layers: tuple[HiddenLayer, ...]
    logits: Floats
    temperature: float
    loss: float


@dataclass(frozen=True)
class LayerTraining:
    """Rows that one hidden layer is trained on, and rows that it is evaluated on.

    Attributes:
        basis: float32 [D,N] if the rows are coordinates in it, None if they are features.
        rows: rows to train on.
        base: calibrated linear classifier of features.
        held: features held out, float32 [n,D].
        places: rows of these among all photos held out, int64 [n].
    """

    basis: Floats | None
    rows: ShuffledRows
    base: Linear
    held: Floats
    places: Ints


def train_layers(
    trainings: Sequence[LayerTraining],
    targets: Ints,
    held_weights: Floats,
    weights: Floats,
    width: int | None,
    seed: int,
) -> EarlyStop:
    """Train a layer per fold; return the early stop of the width with the lowest held-out log-loss.

    Args:
        trainings: one training per fold.
        targets: labels of all photos held out, int64 [N].
        held_weights: weights of these photos in the log-loss, float32 [N].
        weights: label weights, float32 [K].
        width: number of units; None to select one of WIDTHS.
        seed: seed of the networks.
    """

    def train(width: int) -> EarlyStop:
        networks = [
            Network(training.rows, project_linear(training.basis, training.base), width, weights, seed)
            for training in trainings
        ]
        return stop_early(networks, trainings, targets, held_weights)

    return min(map(train, (width,) if width else WIDTHS), key=lambda stop: stop.loss)


def stop_early(
    networks: Sequence[Network],
    trainings: Sequence[LayerTraining],
    targets: Ints,
    weights: Floats,
) -> EarlyStop:
    """Train networks, one per fold, epoch by epoch until the held-out log-loss stops decreasing.

    All networks share one number of epochs, which then holds for the head on all photos.

    Args:
        networks: untrained networks.
        trainings: training of each network.
        targets: labels of all photos held out, int64 [N].
        weights: weights of these photos in the log-loss, float32 [N].
    """
    held = [
        training.held if training.basis is None else training.held @ training.basis for training in trainings
    ]
    best: EarlyStop | None = None
    for epoch in range(MOST_EPOCHS + 1):
        logits = np.empty((len(targets), len(trainings[0].base[1])), np.float32)
        for network, features, training in zip(networks, held, trainings, strict=True):
            if epoch > 0:
                network.run_epoch()
            logits[training.places] = network.logits(features)
        temperature = fit_temperature(logits, targets, weights)
        loss = log_loss(softmax(logits / np.float32(temperature)), targets, weights)
        if best is None or loss < best.loss:
            layers = tuple(network.layer for network in networks)
            best = EarlyStop(len(layers[0].bias), epoch, layers, logits, temperature, loss)
        elif epoch - best.epochs >= PATIENCE:
            break
    assert best is not None
    lifted = (layer.lift(training.basis) for layer, training in zip(best.layers, trainings, strict=True))
    return replace(best, layers=tuple(lifted))


def record_layer(selection: Selection, stop: EarlyStop, seed: int) -> Selection:
    """Return the selection with a hidden layer; the figures stay those of the linear head after 0 epochs."""
    settings = selection.settings | {"width": stop.width, "epochs": stop.epochs, "seed": seed}
    if not stop.epochs:
        return replace(selection, settings=settings)
    settings["layer_temperature"] = stop.temperature
    probabilities = softmax(stop.logits / np.float32(stop.temperature))
    return replace(selection, probabilities=probabilities, settings=settings)
