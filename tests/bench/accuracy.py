"""What the aspect of the preprocessing does to accuracy: `python -m tests.bench.accuracy`.

Every photo of a folder of labels is embedded under each setting; then heads are fitted in a
stratified cross-validation, everything chosen inside the training folds. The photos, folds and
seeds are the same for all, so that the difference in each is what can be trusted.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer import backbones, heads
from trainer.backbones import Backbone
from trainer.dataset.download import cache_directory
from trainer.evaluation import metrics
from trainer.heads import Floats, Ints
from trainer.preprocessing import Aspect, Preprocessing, decode_photos

FOLDS = 5
BATCH = 8


def labelled(directory: Path) -> tuple[list[bytes], Ints]:
    """The photos of a folder of labels, and the index of each one's label."""
    labels = sorted(path for path in directory.iterdir() if path.is_dir())
    found = [
        (path.read_bytes(), index) for index, label in enumerate(labels) for path in sorted(label.iterdir())
    ]
    return [content for content, _ in found], np.array([index for _, index in found], np.int64)


def embed(photos: Sequence[bytes], network: Backbone, settings: Preprocessing) -> Floats:
    """Embeddings float32 [N,D] under one setting."""
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)
    def run(contents: tf.Tensor) -> tf.Tensor:
        pixels = decode_photos(contents, settings)[0]
        return network.apply(tf.cast(pixels, tf.float32) / 255.0)

    starts = range(0, len(photos), BATCH)
    return np.concatenate([run(list(photos[start : start + BATCH])).numpy() for start in starts])


def folds(embeddings: Floats, targets: Ints, seed: int) -> Iterator[tuple[Ints, Floats]]:
    """For each fold the rows that were held out, and what is said of them."""
    classes = int(targets.max()) + 1
    for fitted, held_out in heads.stratified_folds(targets, FOLDS, seed):
        model, _ = heads.fit(embeddings[fitted], targets[fitted], classes, seed=seed)
        yield held_out, model.probabilities(embeddings[held_out])


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.accuracy", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--photos", type=Path, help="a folder of labels (default: the sample photos)")
    parser.add_argument("--seeds", type=int, default=4, help="repeats (default 4)")
    options = parser.parse_args()
    from trainer.dataset.samples import fetch_sample_photos

    photos, targets = labelled(options.photos or fetch_sample_photos(cache_directory()).directory)
    network = backbones.load(backbones.DEFAULT, cache_directory())
    height, width = network.image_size
    print(f"{len(photos)} photos, {FOLDS} folds, {options.seeds} seeds")
    base: NDArray[Any] | None = None
    for aspect in Aspect:
        embeddings = embed(photos, network, Preprocessing(height=height, width=width, aspect=aspect))
        right = np.zeros(len(targets))
        losses = []
        for seed in range(options.seeds):
            for rows, probabilities in folds(embeddings, targets, seed):
                right[rows] += probabilities.argmax(1) == targets[rows]
                losses.append(heads.log_loss(probabilities, targets[rows]) * len(rows) / len(targets))
        right /= options.seeds
        found = metrics.proportion(round(right.sum()), len(targets))
        base = right if base is None else base
        # Paired: the standard error of the mean difference over photos.
        difference, error = (right - base).mean(), (right - base).std() / len(targets) ** 0.5
        print(
            f"{aspect:8} accuracy {right.mean():.1%} ({found.low:.1%} to {found.high:.1%}), "
            f"against {next(iter(Aspect))} {difference:+.1%} +- {1.96 * error:.1%}, "
            f"log-loss {sum(losses) / options.seeds:.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
