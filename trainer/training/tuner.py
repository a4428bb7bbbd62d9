"""Optimiser of fine-tuning: trained variables, steps, validation and checkpoints."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from serving.errors import InputError, OutputError
from serving.runtime.errors import output_errors
from trainer.backbones.hub import Backbone
from trainer.heads import Head, Ints, log_loss, softmax
from trainer.preprocessing import Preprocessing, random_views
from trainer.training.fine_tune_types import Epoch, FineTuneSettings
from trainer.training.tuning_photos import WHOLE_PHOTO, PreparedPhotos, batch_photos, make_decoder

RECORD = "assets.extra/fine_tune.json"
"""Path of the record of the run in the tuned SavedModel's directory."""

_MOMENTUM = 0.9

_MAX_GRADIENT_NORM = 5.0
"""Global norm to which the gradients of a step are clipped."""


class Tuner:
    """Backbone and head in training: variables, optimiser and results so far.

    The optimiser is stochastic gradient descent with momentum. Batch normalisation uses its pretrained
    statistics, since the backbone is called for inference.

    Attributes:
        settings: settings of fine-tuning.
        epochs: results of the epochs so far.
        best: number of the epoch whose weights are taken, 0 before the first.
        before: log-loss of the validation photos before the first epoch.
    """

    def __init__(
        self,
        backbone: Backbone,
        head: Head,
        variables: Sequence[Any],
        preprocessing: Preprocessing,
        settings: FineTuneSettings,
    ) -> None:
        import tensorflow as tf

        self.settings = settings
        self.epochs: list[Epoch] = []
        self.best = 0
        self.before: float | None = None
        self._backbone = backbone
        # The temperature is folded into the weights, so that training starts from calibrated logits.
        temperature = np.float32(head.temperature)
        self._head = [tf.Variable(head.kernel / temperature), tf.Variable(head.bias / temperature)]
        self._scaling = tf.constant(head.scaling.mean), tf.constant(head.scaling.scale)
        self._variables = [*variables, *self._head]
        self._initial = [variable.numpy() for variable in self._variables]
        self._velocities = [tf.Variable(tf.zeros_like(variable)) for variable in self._variables]
        self._best = [tf.Variable(variable) for variable in self._variables]
        self._decode = make_decoder(preprocessing)
        pixels = tf.TensorSpec([None, preprocessing.height, preprocessing.width, 3], tf.uint8)
        targets, rate = tf.TensorSpec([None], tf.int64), tf.TensorSpec([])
        self._logits = tf.function(self._classify, input_signature=[pixels], autograph=False)
        self._step = tf.function(
            self._descend, input_signature=[pixels, targets, rate, rate], autograph=False
        )

    @property
    def is_done(self) -> bool:
        """True after all epochs, or if the validation loss has not fallen for `patience` epochs."""
        done = len(self.epochs)
        return done >= self.settings.epochs or done - self.best >= self.settings.patience

    def run_epoch(self, training: PreparedPhotos, held: PreparedPhotos | None) -> None:
        """Train on each photo once, in a view of its own, then evaluate the validation photos.

        Raises:
            InputError: the loss is not finite.
        """
        start, number = time.perf_counter(), len(self.epochs) + 1
        settings, count = self.settings, len(training.targets)
        # The order depends on seed and epoch alone, so that a resumed run repeats it.
        order = np.random.default_rng([settings.seed, number]).permutation(count)
        batches = np.array_split(order, math.ceil(count / settings.batch_size))
        total = 0.0
        for index, rows in enumerate(batches):
            share = (len(self.epochs) * len(batches) + index) / (settings.epochs * len(batches))
            total += len(rows) * self._train_on(training, rows, number, share)
        if not math.isfinite(total):
            raise InputError(
                f"Fine-tuning diverged in epoch {number}: the loss is {total}.",
                remedy=f"Give a learning rate below {settings.learning_rate:g}.",
            )
        # What is evaluated and kept are the blended weights, as they are what the run returns.
        with self._blended():
            loss, accuracy = self.validate(held) if held else (None, None)
            known = [epoch.validation_loss for epoch in self.epochs if epoch.validation_loss is not None]
            if loss is None or loss < min(known, default=math.inf):
                self.best = number
                assign_all(self._best, self._variables)
        self.epochs.append(Epoch(number, total / count, loss, accuracy, time.perf_counter() - start))

    def validate(self, held: PreparedPhotos) -> tuple[float, float]:
        """Return log-loss and accuracy of validation photos by the present weights."""
        logits = np.concatenate(
            [
                self._logits(self._decode(part, [WHOLE_PHOTO] * len(part))).numpy()
                for part in batch_photos(held.contents)
            ]
        )
        return log_loss(softmax(logits), held.targets), float((logits.argmax(1) == held.targets).mean())

    def write(self, directory: Path) -> None:
        """Write a checkpoint."""
        (directory / "state.json").write_text(json.dumps(self._record()))
        self._checkpoint().write(str(directory / "variables"))

    def restore(self, directory: Path) -> None:
        """Restore the state from a checkpoint.

        Raises:
            OutputError: the checkpoint is damaged.
        """
        import tensorflow as tf

        try:
            record = json.loads((directory / "state.json").read_text())
            self._checkpoint().read(str(directory / "variables")).assert_consumed()
        except (OSError, ValueError, AssertionError, LookupError, tf.errors.OpError) as error:
            raise OutputError(
                f"The checkpoint {directory} cannot be read: {error}.",
                remedy="Remove that directory; fine-tuning then starts again.",
            ) from error
        self.epochs = [Epoch(**epoch) for epoch in record["epochs"]]
        self.best, self.before = record["best"], record["before"]

    def save(self, directory: Path) -> None:
        """Write the backbone with the weights of the best epoch, and the record of the run."""
        import tensorflow as tf

        assign_all(self._variables, self._best)
        module = self._backbone.module
        with output_errors(directory):
            tf.saved_model.save(module, str(directory), signatures=dict(module.signatures) or None)
        given = {"backbone": self._backbone.fingerprint, "settings": asdict(self.settings)}
        path = directory / RECORD
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(given | self._record(), indent=2) + "\n")

    def _train_on(self, training: PreparedPhotos, rows: Ints, number: int, share: float) -> float:
        """Run one step after this share of all steps, and return the loss before it."""
        settings = self.settings
        # The view of a photo follows from seed, epoch and the photo's number, as its order does.
        seeds = np.stack([np.full(len(rows), settings.seed * 9973 + number), rows], 1) % (1 << 31)
        views = random_views(seeds.astype(np.int32), settings.augmentation)
        pixels = self._decode([training.contents[row] for row in rows], views)
        rate = schedule(share, settings.warm_up)
        loss = self._step(
            pixels, training.targets[rows], rate * settings.learning_rate, rate * settings.head_learning_rate
        )
        return float(loss)

    def _classify(self, pixels: Any) -> Any:
        """Return logits float32 [N,K] of pixels uint8 [N,H,W,3], computed as in trainer.heads."""
        import tensorflow as tf

        mean, scale = self._scaling
        kernel, bias = self._head
        embedding = self._backbone.apply(tf.cast(pixels, tf.float32) / 255.0)
        return tf.math.l2_normalize((embedding - mean) * scale, axis=1, epsilon=1e-24) @ kernel + bias

    def _descend(self, pixels: Any, targets: Any, rate: Any, head_rate: Any) -> Any:
        """Run one step of gradient descent with momentum, and return the loss before it."""
        import tensorflow as tf

        with tf.GradientTape(watch_accessed_variables=False) as tape:
            for variable in self._variables:
                tape.watch(variable)
            logits = self._classify(pixels)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(targets, logits))
        gradients = tape.gradient(loss, self._variables, unconnected_gradients="zero")
        gradients, _ = tf.clip_by_global_norm(gradients, _MAX_GRADIENT_NORM)
        for index, (variable, velocity, gradient) in enumerate(
            zip(self._variables, self._velocities, gradients, strict=True)
        ):
            velocity.assign(_MOMENTUM * velocity + gradient)
            is_of_head = index >= len(self._variables) - len(self._head)
            variable.assign_sub((head_rate if is_of_head else rate) * velocity)
        return loss

    @contextmanager
    def _blended(self) -> Iterator[None]:
        """Assign, for the block, the mean of the initial and the tuned weights that the run would return."""
        keep = np.float32(self.settings.keep)
        with restored_afterwards(self._variables) as tuned:
            means = [
                keep * given + (1 - keep) * value for given, value in zip(self._initial, tuned, strict=True)
            ]
            assign_all(self._variables, means)
            yield

    def _record(self) -> dict[str, Any]:
        """Return the results so far as JSON values."""
        epochs = [asdict(epoch) for epoch in self.epochs]
        return {"epochs": epochs, "best": self.best, "before": self.before}

    def _checkpoint(self) -> Any:
        """Return the checkpoint object of all variables."""
        import tensorflow as tf

        return tf.train.Checkpoint(variables=self._variables, velocities=self._velocities, best=self._best)


@contextmanager
def restored_afterwards(variables: Sequence[Any]) -> Iterator[list[Any]]:
    """Yield the present values of variables; restore them at the end of the block, also after an error."""
    values = [variable.numpy() for variable in variables]
    try:
        yield values
    finally:
        assign_all(variables, values)


def assign_all(variables: Sequence[Any], values: Sequence[Any]) -> None:
    """Assign each variable its value."""
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def schedule(share: float, warm_up: float) -> float:
    """Return the fraction of the highest learning rate after this share of the steps.

    It rises linearly during the warm-up, and then falls along half a cosine.
    """
    if share < warm_up:
        return (share + 1e-3) / (warm_up + 1e-3)
    return 0.5 * (1 + math.cos(math.pi * (share - warm_up) / (1 - warm_up)))
