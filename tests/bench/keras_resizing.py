"""Accuracy of a head by the resizing of photos, Keras's and ours: `python -m tests.bench.keras_resizing`.

Every sample photo is resized as hubhead does, as `ImageDataGenerator.flow_from_directory` does (nearest
neighbour) and as `image_dataset_from_directory` does (bilinear without antialiasing), and embedded by the
same backbone. Heads are fitted and evaluated in the same stratified cross-validations; two of them are
evaluated on photos that were resized otherwise, as happens if training and serving use different code.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence

import numpy as np

from tests.bench import results
from tests.bench.accuracy import BATCH, FOLDS, embed, read_labelled_photos
from trainer import heads
from trainer.backbones import DEFAULT
from trainer.backbones.hub import Backbone, load
from trainer.dataset.download import cache_directory
from trainer.evaluation import metrics
from trainer.heads import Floats, Ints
from trainer.preprocessing import Preprocessing

OURS, NEAREST, BILINEAR = "hubhead (bicubic, antialiased)", "nearest neighbour", "bilinear"

PAIRS = ((OURS, OURS), (NEAREST, NEAREST), (BILINEAR, BILINEAR), (NEAREST, OURS), (OURS, NEAREST))
"""Resizing of the photos that the head is fitted on, and of those that it is evaluated on."""


def embed_resized(photos: Sequence[bytes], network: Backbone, interpolation: str) -> Floats:
    """Return embeddings float32 [N,D] of photos that are resized as Keras does."""
    import tensorflow as tf
    from tensorflow import keras

    height, width = network.image_size

    def resize(content: bytes) -> Floats:
        if interpolation == NEAREST:
            return np.asarray(
                keras.utils.load_img(io.BytesIO(content), target_size=(height, width)), np.float32
            )
        whole = np.asarray(keras.utils.load_img(io.BytesIO(content)), np.float32)
        return tf.image.resize(whole, (height, width)).numpy()

    starts = range(0, len(photos), BATCH)
    batches = ([resize(content) for content in photos[start : start + BATCH]] for start in starts)
    return np.concatenate([network.apply(np.stack(batch) / 255.0).numpy() for batch in batches])


def evaluate(fitted_on: Floats, evaluated_on: Floats, targets: Ints, seeds: int) -> tuple[Floats, float]:
    """Return the mean correctness of each photo [N], and the log-loss, over cross-validations."""
    correct, losses = np.zeros(len(targets)), []
    for seed in range(seeds):
        for fitted, held_out in heads.stratified_folds(targets, FOLDS, seed):
            model, _ = heads.fit(fitted_on[fitted], targets[fitted], int(targets.max()) + 1, seed=seed)
            probabilities = model.probabilities(evaluated_on[held_out])
            correct[held_out] += probabilities.argmax(1) == targets[held_out]
            losses.append(heads.log_loss(probabilities, targets[held_out]) * len(held_out) / len(targets))
    return (correct / seeds).astype(np.float32), sum(losses) / seeds


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.keras_resizing", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--seeds", type=int, default=4, help="number of cross-validations with different folds (default 4)"
    )
    results.add_output_option(parser)
    options = parser.parse_args()
    from trainer.dataset.samples import fetch_sample_photos

    photos, targets = read_labelled_photos(fetch_sample_photos(cache_directory()).directory)
    network = load(DEFAULT, cache_directory())
    height, width = network.image_size
    found = {OURS: embed(photos, network, Preprocessing(height=height, width=width))}
    found |= {name: embed_resized(photos, network, name) for name in (NEAREST, BILINEAR)}
    unit = {name: one / np.linalg.norm(one, axis=1, keepdims=True) for name, one in found.items()}
    for name in (NEAREST, BILINEAR):
        cosine = (unit[OURS] * unit[name]).sum(1)
        low = np.quantile(cosine, 0.05)
        print(f"{name}: cosine of the embeddings with ours {cosine.mean():.3f}, 5 % below {low:.3f}")
    base: Floats | None = None
    for fitted, evaluated in PAIRS:
        correct, loss = evaluate(found[fitted], found[evaluated], targets, options.seeds)
        interval = metrics.proportion(round(correct.sum()), len(targets))
        base = correct if base is None else base
        # The comparison is paired: this is the standard error of the mean difference over photos.
        difference, error = (correct - base).mean(), (correct - base).std() / len(targets) ** 0.5
        row: dict[str, results.Value] = {
            "fitted on": fitted,
            "evaluated on": evaluated,
            "accuracy": f"{correct.mean():.1%} ({interval.low:.1%} to {interval.high:.1%})",
            "difference to the first, points": f"{100 * difference:+.1f} ± {196 * error:.1f}",
            "log-loss": round(float(loss), 3),
        }
        print(*row.values(), sep=", ", flush=True)
        results.add_row(f"Resizing of {len(targets)} photos", row)
    results.add_note(f"Means of {options.seeds} cross-validations with {FOLDS} folds each.")
    results.write(options.output, "keras-resizing")


if __name__ == "__main__":
    main()
