"""A hidden layer beside the linear head: it learns what that one leaves over.

The linear head stays as it was fitted; the output of the layer, zero at the start, is added to its logits.
So a layer that helps nothing is stopped before it does anything, and the head is no worse than
the linear one. On the sample photos a network alone, without the linear head, was worse
than it at every width (best: accuracy 75.1 %, log-loss .765, width 1024).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainer.heads.calibration import fit_temperature
from trainer.heads.head import Floats, HiddenLayer, Ints, Linear, log_loss, softmax
from trainer.heads.streaming import Shuffled

WIDTHS = (256, 1024)
"""Candidates for H, by log-loss on held-out photos."""

DROPOUT = 0.5
DECAY = 0.1
RATE = 1e-3

MOST_EPOCHS = 200
PATIENCE = 8
"""Epochs without a lower log-loss after which it is not waited any longer."""

_MANY = 5000
"""Rows from which on a step takes more of them."""


class Network:
    """The layer while it learns, by AdamW (Loshchilov and Hutter 2019) with dropout.

    Args:
        rows: what it learns from.
        base: the linear head; its logits are as they are to be, temperature and all.
        width: H.
        weights: float32 [K], of the labels in the loss.
        seed: of the first weights, the order and the dropout.
    """

    def __init__(self, rows: Shuffled, base: Linear, width: int, weights: Floats, seed: int) -> None:
        self._rows, self._base, self._weights = rows, base, weights
        self._random = np.random.default_rng(seed)
        dimension, classes = base[0].shape
        # Features have length one, so that what comes into the layer has a variance of two (He et al. 2015).
        kernel = self._random.standard_normal((dimension, width), np.float32) * np.float32(2**0.5)
        self._parameters = [kernel, np.zeros(width, np.float32), np.zeros((width, classes), np.float32)]
        self._first = [np.zeros_like(array) for array in self._parameters]
        self._second = [np.zeros_like(array) for array in self._parameters]
        self._steps = 0

    @property
    def layer(self) -> HiddenLayer:
        """As it is now."""
        kernel, bias, output = self._parameters
        return HiddenLayer(kernel.copy(), bias.copy(), output.copy())

    def logits(self, features: Floats) -> Floats:
        """Of features float32 [N,D], with those of the linear head."""
        kernel, bias = self._base
        return features @ kernel + bias + HiddenLayer(*self._parameters).logits(features)

    def epoch(self) -> None:
        """Every row once."""
        size = 64 if self._rows.count < _MANY else 256
        for features, targets in self._rows.batches(size, self._random):
            self._step(features, targets)

    def _step(self, features: Floats, targets: Ints) -> None:
        kernel, bias, output = self._parameters
        entering = features @ kernel + bias
        kept = self._random.random(entering.shape, np.float32) >= DROPOUT
        gate = (kept & (entering > 0)) * np.float32(1 / (1 - DROPOUT))
        hidden = entering * gate
        error = softmax(features @ self._base[0] + self._base[1] + hidden @ output)
        error[np.arange(len(targets)), targets] -= 1
        error *= self._weights[targets, None] / np.float32(len(targets))
        back = (error @ output.T) * gate
        self._descend([features.T @ back, back.sum(axis=0), hidden.T @ error])

    def _descend(self, gradients: Sequence[NDArray[np.float32]]) -> None:
        self._steps += 1
        rate = np.float32(RATE * (1 - 0.999**self._steps) ** 0.5 / (1 - 0.9**self._steps))
        for parameter, first, second, gradient in zip(
            self._parameters, self._first, self._second, gradients, strict=True
        ):
            first += np.float32(0.1) * (gradient - first)
            np.square(gradient, out=gradient)
            second += np.float32(0.001) * (gradient - second)
            if parameter.ndim == 2:
                parameter *= np.float32(1 - RATE * DECAY)
            parameter -= rate * first / (np.sqrt(second) + np.float32(1e-8))


@dataclass(frozen=True)
class Stopped:
    """Where learning was best.

    Attributes:
        epochs: 0 where the linear head alone is.
        layers: of each network, as they were then.
        logits: float32 [N,K] of the held-out photos.
        temperature: the best one of these logits.
        loss: their log-loss at it.
    """

    epochs: int
    layers: tuple[HiddenLayer, ...]
    logits: Floats
    temperature: float
    loss: float


def stop_early(
    networks: Sequence[Network],
    held: Sequence[tuple[Floats, Ints]],
    targets: Ints,
    weights: Floats | None,
) -> Stopped:
    """Let networks learn in step, one a fold, until held-out photos gain no more.

    Args:
        networks: as they start.
        held: of each network the features held out, and their places in `targets`.
        targets: int64 [N], of all photos held out.
        weights: float32 [N], of the photos in the log-loss; None for equal ones.
    """
    best: Stopped | None = None
    for epoch, logits in _epochs(networks, held, len(targets)):
        temperature = fit_temperature(logits, targets, weights)
        loss = log_loss(softmax(logits / np.float32(temperature)), targets, weights)
        if best is None or loss < best.loss:
            best = Stopped(epoch, tuple(network.layer for network in networks), logits, temperature, loss)
        elif epoch - best.epochs >= PATIENCE:
            break
    assert best is not None
    return best


def _epochs(
    networks: Sequence[Network], held: Sequence[tuple[Floats, Ints]], count: int
) -> Iterator[tuple[int, Floats]]:
    for epoch in range(MOST_EPOCHS + 1):
        parts = [network.logits(features) for network, (features, _) in zip(networks, held, strict=True)]
        logits = np.empty((count, parts[0].shape[1]), np.float32)
        for part, (_, places) in zip(parts, held, strict=True):
            logits[places] = part
        yield epoch, logits
        for network in networks:
            network.epoch()
