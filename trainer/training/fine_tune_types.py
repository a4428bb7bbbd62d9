"""Settings and results of fine-tuning."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from serving.errors import InputError
from trainer.backbones import InputOptions
from trainer.preprocessing import Augmentation


@dataclass(frozen=True)
class FineTuneSettings:
    """Settings of fine-tuning.

    Attributes:
        epochs: largest number of passes over the photos.
        batch_size: photos in a step.
        learning_rate: highest learning rate of the backbone.
        head_learning_rate: highest learning rate of the head.
        depth: fraction of the backbone's trainable variables that are trained, the last ones.
        keep: weight of the pretrained variables in the result; 0 takes the tuned ones alone.
        warm_up: fraction of the steps in which the learning rates rise to their highest values.
        patience: number of epochs without a lower validation log-loss after which training stops.
        augmentation: how much the views of a photo differ between epochs.
        seed: seed of the photos' order and of their views.
    """

    epochs: int = 8
    batch_size: int = 32
    learning_rate: float = 0.003
    head_learning_rate: float = 0.1
    depth: float = 0.33
    keep: float = 0.5
    warm_up: float = 0.1
    patience: int = 4
    augmentation: Augmentation = field(
        default_factory=lambda: Augmentation(
            flip_left_right=True, random_crop=20, random_scale=40, random_brightness=20
        )
    )
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "patience"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} of fine-tuning is {getattr(self, name)}; it must be 1 or more.")
        for name in ("learning_rate", "head_learning_rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"{name} of fine-tuning is {getattr(self, name):g}; it must be positive.")
        if not (0 < self.depth <= 1 and 0 <= self.keep < 1 and 0 <= self.warm_up < 1):
            raise InputError(
                f"Settings of fine-tuning are out of range: depth {self.depth:g} (above 0, at most 1), keep "
                f"{self.keep:g} and warm_up {self.warm_up:g} (0 or more, below 1)."
            )


@dataclass(frozen=True)
class Epoch:
    """Result of one pass over the photos.

    Attributes:
        number: number of the epoch, from 1.
        loss: mean log-loss of the training views during the epoch.
        validation_loss: log-loss of the validation photos by the result of stopping here; None without
            validation photos.
        validation_accuracy: accuracy on the validation photos by that result.
        seconds: wall time.
    """

    number: int
    loss: float
    validation_loss: float | None
    validation_accuracy: float | None
    seconds: float

    def __str__(self) -> str:
        held = "" if self.validation_loss is None else f", validation log-loss {self.validation_loss:.3f}"
        return f"Epoch {self.number}: log-loss {self.loss:.3f}{held}, {self.seconds:.0f} s"


@dataclass(frozen=True)
class FineTuned:
    """Result of fine-tuning.

    Attributes:
        path: SavedModel directory of the tuned backbone, as trainer.backbones.hub.load takes it.
        options: options that `load` needs for the same input size and value range.
        epochs: results of all epochs.
        best: number of the epoch whose weights were taken.
        before: log-loss of the validation photos by the given backbone and head.
    """

    path: Path
    options: InputOptions
    epochs: tuple[Epoch, ...]
    best: int
    before: float | None

    @property
    def after(self) -> float | None:
        """Log-loss of the validation photos after the epoch that was taken."""
        return self.epochs[self.best - 1].validation_loss
