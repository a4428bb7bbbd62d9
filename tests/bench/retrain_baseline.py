"""The work of the original retrain.py, done its way: the baseline that `hubhead train` is compared with.

retrain.py does not run on a current TensorFlow, so this is a new implementation of its description: a
TensorFlow 1 session, one call per photo for decoding and one for the module, one text file of features per
photo, and 4,000 steps. Each step reads and parses 100 of these files and writes a summary with histograms;
every tenth also evaluates the training and validation batches. The export, the final test and the
misclassified photos are left out.
"""

from __future__ import annotations

import os
import random
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STEPS = 4000
"""retrain.py's default of `--how_many_training_steps`."""

_BATCH, _LEARNING_RATE, _EVAL_EVERY = 100, 0.01, 10
_SIZE = 224

Split = Mapping[str, Sequence[Path]]
"""Text files of features by label."""


@dataclass(frozen=True)
class Durations:
    """Wall seconds of the parts of a run.

    Attributes:
        start: imports and loading the module.
        features: decoding, module and text files of all photos.
        step: one training step.
    """

    start: float
    features: float
    step: float

    @property
    def first_run(self) -> float:
        """Return the seconds of a whole run that starts without text files."""
        return self.start + self.features + STEPS * self.step

    @property
    def cached_run(self) -> float:
        """Return the seconds of a whole run that finds all text files."""
        return self.start + STEPS * self.step


def measure_baseline(photos: Path, module: Path, steps: int) -> Durations:
    """Write all text files and train for some steps, in this process.

    Args:
        photos: directory with one directory per label.
        module: SavedModel from 224 x 224 pixels in [0, 1] to features.
        steps: number of training steps to measure.
    """
    begin = time.perf_counter()
    import tensorflow as tf

    compat = tf.compat.v1
    with tempfile.TemporaryDirectory() as directory, compat.Session(graph=tf.Graph()) as session:
        top = Path(directory)
        with session.graph.as_default():
            signature = compat.saved_model.load(session, ["serve"], str(module)).signature_def[
                "serving_default"
            ]
            content, decoded = _build_decoder(tf)
        start = time.perf_counter() - begin
        [pixels], [features] = signature.inputs.values(), signature.outputs.values()

        begin = time.perf_counter()
        files: dict[str, list[Path]] = {}
        for path in sorted(photos.glob("*/*")):
            image = session.run(decoded, {content: path.read_bytes()})
            [vector] = session.run(features.name, {pixels.name: image})
            text = top / f"{path.parent.name}-{path.name}.txt"
            text.write_text(",".join(str(value) for value in vector))
            files.setdefault(path.parent.name, []).append(text)
        features_seconds = time.perf_counter() - begin

        with session.graph.as_default():
            step = _build_trainer(tf, session, len(vector), sorted(files), top)
        training = {label: paths[: -(-len(paths) * 8 // 10)] for label, paths in files.items()}
        validation = {label: paths[-(-len(paths) * 8 // 10) :] or paths for label, paths in files.items()}
        step(0, training, validation)  # a warm-up
        begin = time.perf_counter()
        for number in range(1, steps + 1):
            step(number, training, validation)
        return Durations(start, features_seconds, (time.perf_counter() - begin) / steps)


def _build_decoder(tf: Any) -> tuple[Any, Any]:
    content = tf.compat.v1.placeholder(tf.string)
    pixels = tf.image.convert_image_dtype(tf.io.decode_jpeg(content, channels=3), tf.float32)
    return content, tf.compat.v1.image.resize_bilinear(pixels[None], [_SIZE, _SIZE])


def _build_trainer(tf: Any, session: Any, dimension: int, labels: Sequence[str], top: Path) -> Any:
    """Return a function that runs one step; its arguments: number, training files, validation files."""
    compat = tf.compat.v1
    features = compat.placeholder(tf.float32, [None, dimension])
    truth = compat.placeholder(tf.int64, [None])
    weights = tf.Variable(tf.random.truncated_normal([dimension, len(labels)], stddev=0.001))
    biases = tf.Variable(tf.zeros([len(labels)]))
    logits = features @ weights + biases
    entropy = compat.losses.sparse_softmax_cross_entropy(truth, logits)
    train = compat.train.GradientDescentOptimizer(_LEARNING_RATE).minimize(entropy)
    accuracy = tf.reduce_mean(tf.cast(tf.equal(tf.argmax(logits, 1), truth), tf.float32))
    for name, values in {"weights": weights, "biases": biases, "pre_activations": logits}.items():
        compat.summary.histogram(name, values)
        compat.summary.scalar(f"{name}_mean", tf.reduce_mean(values))
        compat.summary.scalar(f"{name}_stddev", tf.math.reduce_std(values))
    compat.summary.histogram("activations", tf.nn.softmax(logits))
    compat.summary.scalar("cross_entropy", entropy)
    compat.summary.scalar("accuracy", accuracy)
    merged = compat.summary.merge_all()
    writers = [compat.summary.FileWriter(os.fspath(top / name), session.graph) for name in ("train", "val")]
    session.run(compat.global_variables_initializer())
    generator = random.Random(0)

    def draw_batch(split: Split) -> dict[Any, Any]:
        drawn = [generator.randrange(len(labels)) for _ in range(_BATCH)]
        texts = (generator.choice(split[labels[number]]).read_text() for number in drawn)
        return {features: [[float(value) for value in text.split(",")] for text in texts], truth: drawn}

    def step(number: int, training: Split, validation: Split) -> None:
        fed = draw_batch(training)
        summary, _ = session.run([merged, train], fed)
        writers[0].add_summary(summary, number)
        if number % _EVAL_EVERY == 0:
            session.run([accuracy, entropy], fed)
            summary, _ = session.run([merged, accuracy], draw_batch(validation))
            writers[1].add_summary(summary, number)

    return step
