"""Fine-tuning: the last layers of a backbone trained on, together with a head that was fitted before.

What comes out is a backbone like any other, a SavedModel directory of its own fingerprint, so
that everything after it (embed, fit the head, export) stays as it is.

On few photos a backbone is soon spoilt, so it moves little: from the fitted head, with a small
learning rate under a warm-up and a cosine, batch norm by its pretrained statistics; and what is
written is the mean of the pretrained weights and the tuned ones (Wortsman et al. 2022, "Robust
fine-tuning of zero-shot models"). The tuned ones alone fit their training photos so well that the
head fitted next is over-confident. With some 300 photos all this gains no more than chance does
(tests/bench/fine_tune.py; --keep 0 shows the tuned weights alone).

Every draw follows from the seed, the epoch and the photo's number, and each epoch ends with a
checkpoint. A run that is stopped therefore goes on as if it had not been, as exactly as TensorFlow
repeats itself on the machine.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from serving.errors import InputError, OutputError
from trainer import preprocessing as graph
from trainer.backbones import Backbone, InputOptions
from trainer.dataset.download import create_once, no_progress
from trainer.heads import Floats, Head, Ints, log_loss, softmax
from trainer.preprocessing import Aspect, Augmentation, Preprocessing

RECIPE = 1
"""Version of what a run does: raise it when the same settings give another backbone."""

MIN_PHOTOS = 5
"""Training photos that each label needs."""

RECORD = "assets.extra/fine_tune.json"
"""The epochs of the run, in the tuned SavedModel's directory."""

_MOMENTUM = 0.9
_LARGEST_GRADIENT = 5.0
"""Norm that the gradient of a step is cut to."""

_BATCH = 8
"""Photos decoded in one call where nothing is trained."""

_REDUCED = 1.5
"""Sides of a photo that is kept for training, against the backbone's input: room for crops."""

_WHOLE = (1.0, 0.0, 0.0, 0.0, 1.0)
"""The view (trainer.preprocessing.random_views) that is the photo itself."""


@dataclass(frozen=True)
class FineTuneSettings:
    """How a backbone is fine-tuned.

    Attributes:
        epochs: passes over the photos, at most.
        batch_size: photos a step.
        learning_rate: of the backbone, at its highest.
        head_learning_rate: of the head.
        depth: share of the backbone's trainable variables that are trained, the last ones.
        keep: share of the pretrained weights in what comes out; 0 takes the tuned ones alone.
        warm_up: share of the steps in which the learning rates rise to their highest.
        patience: epochs without a lower log-loss of the validation photos after which it ends.
        augmentation: how much the views of a photo differ from epoch to epoch.
        seed: of the photos' order and of their views.
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
                raise InputError(
                    f"Fine-tuning with {name} {getattr(self, name)} does nothing: give 1 or more."
                )
        for name in ("learning_rate", "head_learning_rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"Fine-tuning needs a positive {name}, not {getattr(self, name):g}.")
        if not (0 < self.depth <= 1 and 0 <= self.keep < 1 and 0 <= self.warm_up < 1):
            raise InputError(
                f"Shares out of range: depth {self.depth:g} (above 0, up to 1), keep {self.keep:g} and "
                f"warm_up {self.warm_up:g} (0, or below 1)."
            )


@dataclass(frozen=True)
class Epoch:
    """One pass over the photos.

    Attributes:
        number: 1 for the first.
        loss: mean log-loss of the training views on the way.
        validation_loss: of the validation photos, by what the run would give if it ended here; None
            where there are none.
        validation_accuracy: the same.
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
    """What came out.

    Attributes:
        path: the tuned backbone's SavedModel, to be given to trainer.backbones.load.
        options: what `load` has to be told beside the path, so that it takes the same photos.
        epochs: those that were run.
        best: number of the epoch whose weights were taken.
        before: log-loss of the validation photos by the head and the backbone as they were given.
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


@dataclass(frozen=True)
class _Photos:
    """Photos ready to be trained on, and their classes.

    Attributes:
        contents: N encoded photos, large ones reduced.
        targets: int64 [N].
        sha256: over the originals.
    """

    contents: list[bytes]
    targets: Ints
    sha256: str


def fine_tune(
    backbone: Backbone,
    head: Head,
    photos: Iterable[bytes],
    targets: Ints,
    settings: FineTuneSettings,
    *,
    validation: tuple[Iterable[bytes], Ints] | None = None,
    preprocessing: Preprocessing | None = None,
    checkpoint_directory: Path,
    say: Callable[[str], None] = no_progress,
    progress: Callable[[Epoch], None] | None = None,
) -> FineTuned:
    """Train the last layers of a backbone on, from a head that was fitted on its embeddings.

    The backbone given is afterwards as it was. A run of the same photos, backbone, head and
    settings goes on where an earlier one was stopped; a finished one is not done again.

    Args:
        backbone: to begin with.
        head: fitted on the embeddings of the training photos.
        photos: N encoded photos, usable ones; read once, one after the other.
        targets: int64 [N].
        settings: see FineTuneSettings.
        validation: photos that decide which epoch is taken; without them it is the last.
        preprocessing: aspect and limits; the size is the backbone's, whatever it says.
        checkpoint_directory: where the checkpoints and the tuned backbone are kept.
        say: called with one line for everything that the user should know.
        progress: called after each epoch.

    Raises:
        InputError: the backbone cannot be trained, there are too few photos, or it diverged.
        OutputError: the directory cannot be written.
        KeyboardInterrupt: it was stopped; `say` has told how to go on.
    """
    _check(targets, head)
    variables = trained_variables(backbone, settings.depth)
    height, width = backbone.image_size
    preprocessing = replace(preprocessing or Preprocessing(), height=height, width=width)
    training = _read(photos, targets, preprocessing)
    held = _read(*validation, preprocessing) if validation and len(validation[1]) else None
    run = checkpoint_directory / _key(backbone, head, training, held, preprocessing, settings)
    tuned = run / "backbone"
    if not tuned.is_dir():
        with _as_it_was(variables):
            tuner = _Tuner(backbone, head, variables, preprocessing, settings)
            _train(tuner, training, held, run, say, progress)
            with create_once(tuned) as staged:
                tuner.save(staged)
        for checkpoint in _checkpoints(run):
            shutil.rmtree(checkpoint, ignore_errors=True)
    return _finished(tuned, backbone)


def trained_variables(backbone: Backbone, depth: float) -> list[Any]:
    """The last trainable variables of a backbone, `depth` of them all.

    Raises:
        InputError: it has none.
    """
    variables = list(getattr(backbone.module, "trainable_variables", ()))
    if not variables:
        raise InputError(
            f"The backbone {backbone.handle} has no trainable variables: it is a module in TensorFlow 1's "
            "format, or its weights were frozen when it was exported.",
            remedy="Train without fine-tuning, or take a TF2 module (hubhead backbone list).",
        )
    return variables[-max(1, round(depth * len(variables))) :]


def _check(targets: Ints, head: Head) -> None:
    if getattr(head, "hidden", None) is not None:
        raise InputError(
            "Fine-tuning begins with a linear head; this one has a hidden layer.",
            remedy="Fit a linear one for it; the head that is fitted afterwards may be of any kind.",
        )
    counts = np.bincount(targets, minlength=head.kernel.shape[1])
    if counts.min() < MIN_PHOTOS:
        raise InputError(
            f"Fine-tuning needs {MIN_PHOTOS} training photos of each label; label number {counts.argmin()} "
            f"has {counts.min()}.",
            remedy="Add photos, or train without fine-tuning.",
        )


def _train(
    tuner: _Tuner,
    training: _Photos,
    held: _Photos | None,
    run: Path,
    say: Callable[[str], None],
    progress: Callable[[Epoch], None] | None,
) -> None:
    """Run the epochs that are left, each with a checkpoint at its end."""
    if found := _checkpoints(run):
        tuner.restore(found[-1])
        say(f"Fine-tuning goes on after epoch {len(tuner.epochs)}, from {found[-1]}")
    elif held:
        tuner.before = tuner.validate(held)[0]
    try:
        while not tuner.is_done:
            tuner.run_epoch(training, held)
            _keep(tuner, run)
            if progress:
                progress(tuner.epochs[-1])
    except KeyboardInterrupt:
        done = len(tuner.epochs)
        say(
            f"Stopped in epoch {done + 1} of {tuner.settings.epochs}; "
            + (f"what came before is kept in {run}. " if _checkpoints(run) else "nothing is kept yet. ")
            + "The same command goes on from there."
        )
        raise


def _checkpoints(run: Path) -> list[Path]:
    return sorted(run.glob("epoch-*"))


def _keep(tuner: _Tuner, run: Path) -> None:
    """Write the checkpoint of an epoch, then remove those before it."""
    earlier = _checkpoints(run)
    with create_once(run / f"epoch-{len(tuner.epochs):05}") as staged:
        tuner.write(staged)
    for checkpoint in earlier:
        shutil.rmtree(checkpoint, ignore_errors=True)


class _Tuner:
    """Backbone and head in training: variables, steps, state.

    Attributes:
        settings: see FineTuneSettings.
        epochs: those that were run.
        best: number of the epoch whose weights are taken, 0 before the first.
        before: log-loss of the validation photos before the first.
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
        temperature = np.float32(head.temperature)
        self._head = [tf.Variable(head.kernel / temperature), tf.Variable(head.bias / temperature)]
        self._scaling = tf.constant(head.scaling.mean), tf.constant(head.scaling.scale)
        self._variables = [*variables, *self._head]
        self._initial = [variable.numpy() for variable in self._variables]
        self._velocities = [tf.Variable(tf.zeros_like(variable)) for variable in self._variables]
        self._best = [tf.Variable(variable) for variable in self._variables]
        self._decode = _decoder(preprocessing)
        pixels = tf.TensorSpec([None, preprocessing.height, preprocessing.width, 3], tf.uint8)
        targets, rate = tf.TensorSpec([None], tf.int64), tf.TensorSpec([])
        self._logits = tf.function(self._classify, input_signature=[pixels], autograph=False)
        self._step = tf.function(
            self._descend, input_signature=[pixels, targets, rate, rate], autograph=False
        )

    @property
    def is_done(self) -> bool:
        """Whether all epochs are run, or the validation photos have not gained for long enough."""
        done = len(self.epochs)
        return done >= self.settings.epochs or done - self.best >= self.settings.patience

    def run_epoch(self, training: _Photos, held: _Photos | None) -> None:
        """Pass over the photos once, each in a view of its own, and look at the validation photos.

        Raises:
            InputError: the loss is no number any more.
        """
        start, number = time.perf_counter(), len(self.epochs) + 1
        settings, count = self.settings, len(training.targets)
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
        with self._blended():
            loss, accuracy = self.validate(held) if held else (None, None)
            known = [epoch.validation_loss for epoch in self.epochs if epoch.validation_loss is not None]
            if loss is None or loss < min(known, default=math.inf):
                self.best = number
                for kept, variable in zip(self._best, self._variables, strict=True):
                    kept.assign(variable)
        self.epochs.append(Epoch(number, total / count, loss, accuracy, time.perf_counter() - start))

    def validate(self, held: _Photos) -> tuple[float, float]:
        """Log-loss and accuracy of validation photos by the present weights."""
        logits = np.concatenate(
            [self._logits(self._decode(part, [_WHOLE] * len(part))).numpy() for part in _parts(held.contents)]
        )
        return log_loss(softmax(logits), held.targets), float((logits.argmax(1) == held.targets).mean())

    def write(self, directory: Path) -> None:
        """A checkpoint."""
        (directory / "state.json").write_text(json.dumps(self._record()))
        self._checkpoint().write(str(directory / "variables"))

    def restore(self, directory: Path) -> None:
        """Take a checkpoint up.

        Raises:
            OutputError: it is damaged.
        """
        import tensorflow as tf

        try:
            record = json.loads((directory / "state.json").read_text())
            self._checkpoint().read(str(directory / "variables")).assert_consumed()
        except (OSError, ValueError, AssertionError, LookupError, tf.errors.OpError) as error:
            raise OutputError(
                f"The checkpoint {directory} cannot be read: {error}.",
                remedy="Remove that directory, and fine-tuning begins anew.",
            ) from error
        self.epochs = [Epoch(**epoch) for epoch in record["epochs"]]
        self.best, self.before = record["best"], record["before"]

    def save(self, directory: Path) -> None:
        """Write the backbone with the weights of the best epoch, and the record of the run."""
        import tensorflow as tf

        for kept, variable in zip(self._best, self._variables, strict=True):
            variable.assign(kept)
        module = self._backbone.module
        tf.saved_model.save(module, str(directory), signatures=dict(module.signatures) or None)
        given = {"backbone": self._backbone.fingerprint, "settings": asdict(self.settings)}
        path = directory / RECORD
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(given | self._record(), indent=2) + "\n")

    def _train_on(self, training: _Photos, rows: Ints, number: int, share: float) -> float:
        """One step, after this share of all; the loss before it."""
        settings = self.settings
        seeds = np.stack([np.full(len(rows), settings.seed * 9973 + number), rows], 1) % (1 << 31)
        views = graph.random_views(seeds.astype(np.int32), settings.augmentation)
        pixels = self._decode([training.contents[row] for row in rows], views)
        rate = schedule(share, settings.warm_up)
        loss = self._step(
            pixels, training.targets[rows], rate * settings.learning_rate, rate * settings.head_learning_rate
        )
        return float(loss)

    def _classify(self, pixels: Any) -> Any:
        """Logits float32 [N,K] of pixels uint8 [N,H,W,3], as trainer.heads computes them."""
        import tensorflow as tf

        mean, scale = self._scaling
        kernel, bias = self._head
        embedding = self._backbone.apply(tf.cast(pixels, tf.float32) / 255.0)
        return tf.math.l2_normalize((embedding - mean) * scale, axis=1, epsilon=1e-24) @ kernel + bias

    def _descend(self, pixels: Any, targets: Any, rate: Any, head_rate: Any) -> Any:
        """One step of stochastic gradient descent with momentum; the loss before it."""
        import tensorflow as tf

        with tf.GradientTape(watch_accessed_variables=False) as tape:
            for variable in self._variables:
                tape.watch(variable)
            logits = self._classify(pixels)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(targets, logits))
        gradients = tape.gradient(loss, self._variables, unconnected_gradients="zero")
        gradients, _ = tf.clip_by_global_norm(gradients, _LARGEST_GRADIENT)
        for index, (variable, velocity, gradient) in enumerate(
            zip(self._variables, self._velocities, gradients, strict=True)
        ):
            velocity.assign(_MOMENTUM * velocity + gradient)
            is_of_head = index >= len(self._variables) - len(self._head)
            variable.assign_sub((head_rate if is_of_head else rate) * velocity)
        return loss

    @contextmanager
    def _blended(self) -> Iterator[None]:
        """With the weights that the run would give if it ended here."""
        keep, tuned = np.float32(self.settings.keep), [variable.numpy() for variable in self._variables]
        for variable, value, initial in zip(self._variables, tuned, self._initial, strict=True):
            variable.assign(keep * initial + (1 - keep) * value)
        yield
        for variable, value in zip(self._variables, tuned, strict=True):
            variable.assign(value)

    def _record(self) -> dict[str, Any]:
        epochs = [asdict(epoch) for epoch in self.epochs]
        return {"epochs": epochs, "best": self.best, "before": self.before}

    def _checkpoint(self) -> Any:
        import tensorflow as tf

        return tf.train.Checkpoint(variables=self._variables, velocities=self._velocities, best=self._best)


def schedule(share: float, warm_up: float) -> float:
    """Part of the highest learning rate after this share of the steps: a line up, half a cosine down."""
    if share < warm_up:
        return (share + 1e-3) / (warm_up + 1e-3)
    return 0.5 * (1 + math.cos(math.pi * (share - warm_up) / (1 - warm_up)))


@contextmanager
def _as_it_was(variables: Sequence[Any]) -> Iterator[None]:
    """Give the variables their present values back at the end, whatever happens."""
    values = [variable.numpy() for variable in variables]
    try:
        yield
    finally:
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)


@functools.cache
def _decoder(preprocessing: Preprocessing) -> Any:
    """Encoded photos string [N] and views float32 [N,5] -> pixels uint8 [N,H,W,3]; traced once a process."""
    import tensorflow as tf

    return tf.function(
        lambda contents, views: graph.decode_photos(contents, preprocessing, views=views)[0],
        input_signature=[tf.TensorSpec([None], tf.string), tf.TensorSpec([None, len(_WHOLE)])],
        autograph=False,
    )


@functools.cache
def _reducer(preprocessing: Preprocessing) -> Any:
    """Encoded photos string [N] -> the same, large ones smaller, and whether they are usable; traced once."""
    import tensorflow as tf

    height, width = (math.ceil(_REDUCED * side) for side in (preprocessing.height, preprocessing.width))
    larger = replace(preprocessing, height=height, width=width)

    def encode(pixels: Any) -> Any:
        return tf.io.encode_jpeg(pixels, quality=95, chroma_downsampling=False)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)
    def reduce(contents: Any) -> Any:
        pixels, status, heights, widths = graph.decode_photos(contents, larger)
        encoded = tf.map_fn(encode, pixels, fn_output_signature=tf.string)
        large = (heights > 2 * height) & (widths > 2 * width)
        return tf.where(large, encoded, contents), graph.is_usable(status)

    return reduce


def _parts(photos: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Photos as many at once as are decoded in one call where nothing is trained."""
    iterator = iter(photos)
    while part := list(islice(iterator, _BATCH)):
        yield part


def _read(photos: Iterable[bytes], targets: Ints, preprocessing: Preprocessing) -> _Photos:
    """Read photos once; large ones are kept as smaller JPEGs, which saves decoding them each epoch.

    Only where the aspect is `stretch`, since a photo that is reduced to a square has lost its own.

    Raises:
        InputError: one of them is no usable photo.
    """
    reduce = _reducer(preprocessing)
    digest = hashlib.sha256()
    kept: list[bytes] = []
    for part in _parts(photos):
        for photo in part:
            digest.update(hashlib.sha256(photo).digest())
        reduced, usable = reduce(part)
        if not usable.numpy().all():
            raise InputError(f"Photo number {len(kept) + int(usable.numpy().argmin())} cannot be decoded.")
        kept += reduced.numpy().tolist() if preprocessing.aspect is Aspect.STRETCH else part
    if len(kept) != len(targets):
        raise InputError(f"{len(kept)} photos were given, and the labels of {len(targets)}.")
    digest.update(targets.astype("<i8").tobytes())
    return _Photos(kept, targets.astype(np.int64), digest.hexdigest())


def _key(
    backbone: Backbone,
    head: Head,
    training: _Photos,
    held: _Photos | None,
    preprocessing: Preprocessing,
    settings: FineTuneSettings,
) -> str:
    """A name for all that a run's result follows from."""
    weights: tuple[Floats, ...] = (head.scaling.mean, head.scaling.scale, head.kernel, head.bias)
    content = [
        RECIPE,
        backbone.fingerprint,
        backbone.image_size,
        hashlib.sha256(b"".join(np.asarray(array, "<f4").tobytes() for array in weights)).hexdigest(),
        head.temperature,
        training.sha256,
        held.sha256 if held else None,
        preprocessing.to_dict(),
        asdict(settings),
    ]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _finished(tuned: Path, backbone: Backbone) -> FineTuned:
    record = json.loads((tuned / RECORD).read_text())
    return FineTuned(
        path=tuned,
        options=InputOptions(backbone.image_size, backbone.interface.value_range),
        epochs=tuple(Epoch(**epoch) for epoch in record["epochs"]),
        best=record["best"],
        before=record["before"],
    )
