"""Accuracy of a head by --aspect of the preprocessing: `python -m tests.bench.accuracy`.

Every photo of a labelled folder is embedded with each setting. Heads are then fitted in a stratified
cross-validation, with everything selected inside the training folds. Photos, folds and seeds are the same
for all settings, so that their differences are reliable.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.bench import results
from trainer import heads
from trainer.backbones import DEFAULT
from trainer.backbones.hub import Backbone, load
from trainer.dataset.download import cache_directory
from trainer.evaluation import metrics
from trainer.heads import Floats, Ints
from trainer.preprocessing import Aspect, Preprocessing, decode_photos

FOLDS = 5
BATCH = 8


def read_labelled_photos(directory: Path) -> tuple[list[bytes], Ints]:
    """Read the photos of a labelled folder; return their bytes and the index of each label, int64 [N]."""
    labels = sorted(path for path in directory.iterdir() if path.is_dir())
    found = [
        (path.read_bytes(), index) for index, label in enumerate(labels) for path in sorted(label.iterdir())
    ]
    return [content for content, _ in found], np.array([index for _, index in found], np.int64)


def embed(photos: Sequence[bytes], network: Backbone, settings: Preprocessing) -> Floats:
    """Return embeddings float32 [N,D] of photos that are decoded with these settings."""
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)
    def run(contents: tf.Tensor) -> tf.Tensor:
        pixels = decode_photos(contents, settings)[0]
        return network.apply(tf.cast(pixels, tf.float32) / 255.0)

    starts = range(0, len(photos), BATCH)
    return np.concatenate([run(list(photos[start : start + BATCH])).numpy() for start in starts])


def predict_folds(embeddings: Floats, targets: Ints, seed: int) -> Iterator[tuple[Ints, Floats]]:
    """Yield, for each fold, the held-out rows and their probabilities float32 [M,K]."""
    classes = int(targets.max()) + 1
    for fitted, held_out in heads.stratified_folds(targets, FOLDS, seed):
        model, _ = heads.fit(embeddings[fitted], targets[fitted], classes, seed=seed)
        yield held_out, model.probabilities(embeddings[held_out])


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.accuracy", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--photos", type=Path, help="labelled folder (default: the sample photos)")
    parser.add_argument(
        "--seeds", type=int, default=4, help="number of cross-validations with different folds (default 4)"
    )
    results.add_output_option(parser)
    options = parser.parse_args()
    from trainer.dataset.samples import fetch_sample_photos

    photos, targets = read_labelled_photos(options.photos or fetch_sample_photos(cache_directory()).directory)
    network = load(DEFAULT, cache_directory())
    height, width = network.image_size
    print(f"{len(photos)} photos, {FOLDS} folds, {options.seeds} seeds")
    base: NDArray[Any] | None = None
    for aspect in Aspect:
        embeddings = embed(photos, network, Preprocessing(height=height, width=width, aspect=aspect))
        correct = np.zeros(len(targets))
        losses = []
        for seed in range(options.seeds):
            for rows, probabilities in predict_folds(embeddings, targets, seed):
                correct[rows] += probabilities.argmax(1) == targets[rows]
                losses.append(heads.log_loss(probabilities, targets[rows]) * len(rows) / len(targets))
        correct /= options.seeds
        found = metrics.proportion(round(correct.sum()), len(targets))
        base = correct if base is None else base
        # The comparison is paired: this is the standard error of the mean difference over photos.
        difference, error = (correct - base).mean(), (correct - base).std() / len(targets) ** 0.5
        print(
            f"{aspect:8} accuracy {correct.mean():.1%} ({found.low:.1%} to {found.high:.1%}), "
            f"difference from {next(iter(Aspect))} {difference:+.1%} +- {1.96 * error:.1%}, "
            f"log-loss {sum(losses) / options.seeds:.3f}",
            flush=True,
        )
        row = {
            "--aspect": str(aspect),
            "accuracy": f"{correct.mean():.1%} ({found.low:.1%} to {found.high:.1%})",
            "difference to the first, points": f"{100 * difference:+.1f} ± {196 * error:.1f}",
            "log-loss": round(sum(losses) / options.seeds, 3),
        }
        results.add_row(f"Settings of --aspect on {len(targets)} photos", row)
    results.add_note(f"Means of {options.seeds} cross-validations with {FOLDS} folds each.")
    results.write(options.output, "aspect")


if __name__ == "__main__":
    main()
