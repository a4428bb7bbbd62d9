"""What would raise the accuracy of a head: `python -m tests.bench.fine_tune`.

Input sizes, views, several embeddings at once, layers below the last, and fine-tuning, each by
stratified cross-validation with everything chosen inside the training folds: a backbone is tuned
on the training fold alone, and a head fitted on what it makes of the training fold. Photos, folds
and seeds are the same for all, so that the difference in each is what can be trusted.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.bench.accuracy import BATCH, FOLDS, embed, folds, labelled
from trainer import backbone, evaluate, graph, head
from trainer.backbone import Backbone, efficientnet_lite0
from trainer.backbone.hub import default_weights
from trainer.fetch import cache_directory
from trainer.fine_tune import FineTuneSettings, fine_tune
from trainer.graph import Augmentation, Preprocessing
from trainer.head import Floats, Ints

SIZES = (224, 240, 260, 300, 380)
VIEWS = 4
AUGMENTATION = Augmentation(flip_left_right=True, random_crop=10, random_scale=20, random_brightness=15)
MIDDLE = 10
"""The block, counted from 0, whose output is one of the layers below the last."""

Predictions = Iterator[tuple[Ints, Floats]]


@dataclass(frozen=True)
class Figure:
    """What became of each photo, by seed.

    Attributes:
        right: bool [seeds,N].
        losses: float [seeds,N], log-losses.
    """

    right: NDArray[np.bool_]
    losses: NDArray[np.float64]

    @classmethod
    def of(cls, predict: Callable[[int], Predictions], targets: Ints, seeds: int) -> Figure:
        """By the predictions for all folds of each seed."""
        right, losses = np.zeros((seeds, len(targets)), bool), np.zeros((seeds, len(targets)))
        for seed in range(seeds):
            for rows, probabilities in predict(seed):
                right[seed, rows] = probabilities.argmax(1) == targets[rows]
                picked = probabilities[np.arange(len(rows)), targets[rows]]
                losses[seed, rows] = -np.log(np.maximum(picked, 1e-15))
        return cls(right, losses)

    def row(self, name: str, base: Figure) -> str:
        """A line of the table; the difference to the base is paired by photo, over the same seeds."""
        seeds, count = self.right.shape
        share = evaluate.proportion(round(self.right.mean(0).sum()), count)
        more = _difference(100.0 * self.right, 100.0 * base.right[:seeds])
        loss = _difference(self.losses, base.losses[:seeds])
        return (
            f"| {name} | {seeds} | {self.right.mean():.1%} ({share.low:.1%} to {share.high:.1%}) "
            f"| {more[0]:+.1f} ± {more[1]:.1f} | {self.losses.mean():.3f} | {loss[0]:+.3f} ± {loss[1]:.3f} |"
        )


def _difference(values: NDArray[Any], others: NDArray[Any]) -> tuple[float, float]:
    """Mean difference over photos and the half width of its 95 % interval."""
    each = values.mean(0) - others.mean(0)
    return float(each.mean()), float(1.96 * each.std() / len(each) ** 0.5)


def layers(photos: Sequence[bytes], network: Backbone, weights: dict[str, Any]) -> Floats:
    """Means over the map of block MIDDLE and over that of the last block."""
    import tensorflow as tf

    height, width = network.image_size
    settings = Preprocessing(height=height, width=width)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)
    def run(contents: Any) -> Any:
        pixels = tf.cast(graph.decode_photos(contents, settings)[0], tf.float32) / 255.0
        # The stem's map comes first, the last block's is the last but one.
        found = efficientnet_lite0.maps(weights, pixels, training=False)
        return tf.concat([tf.reduce_mean(found[index], [1, 2]) for index in (MIDDLE + 1, -2)], 1)

    starts = range(0, len(photos), BATCH)
    return np.concatenate([run(list(photos[start : start + BATCH])).numpy() for start in starts])


def viewed(photos: Sequence[bytes], network: Backbone, view: int) -> Floats:
    """Embeddings of a random view of each photo."""
    import tensorflow as tf

    height, width = network.image_size
    settings = Preprocessing(height=height, width=width)

    @tf.function(
        input_signature=[tf.TensorSpec([None], tf.string), tf.TensorSpec([None, 2], tf.int32)],
        autograph=False,
    )
    def run(contents: Any, seeds: Any) -> Any:
        views = graph.random_views(seeds, AUGMENTATION)
        pixels = graph.decode_photos(contents, settings, views=views)[0]
        return network.apply(tf.cast(pixels, tf.float32) / 255.0)

    parts = []
    for start in range(0, len(photos), BATCH):
        part = list(photos[start : start + BATCH])
        parts.append(run(part, [[view, start + index] for index in range(len(part))]).numpy())
    return np.concatenate(parts)


def at_size(size: int, directory: Path) -> Backbone:
    """The default backbone for photos of another size."""
    path = directory / f"{size}"
    efficientnet_lite0.export(default_weights(cache_directory()), path, image_size=size)
    return backbone.load(str(path), cache_directory())


def chosen(embeddings: dict[int, Floats], targets: Ints, seed: int) -> Predictions:
    """With the input size of the lowest log-loss inside the training fold."""
    classes = int(targets.max()) + 1
    for fitted, held_out in head.stratified_folds(targets, FOLDS, seed):
        fits = {
            size: head.fit(values[fitted], targets[fitted], classes, seed=seed)
            for size, values in embeddings.items()
        }
        held = {size: selection for size, (_, selection) in fits.items()}
        best = min(held, key=lambda size: head.log_loss(held[size].probabilities, held[size].targets))
        yield held_out, fits[best][0].probabilities(embeddings[best][held_out])


def tuned(
    photos: Sequence[bytes],
    targets: Ints,
    network: Backbone,
    embeddings: Floats,
    settings: FineTuneSettings,
    seed: int,
) -> Predictions:
    """With a backbone tuned in each training fold, and a head fitted on its embeddings."""
    classes = int(targets.max()) + 1
    height, width = network.image_size
    for fitted, held_out in head.stratified_folds(targets, FOLDS, seed):
        start, _ = head.fit(embeddings[fitted], targets[fitted], classes, seed=seed)
        with tempfile.TemporaryDirectory() as directory:
            result = fine_tune(
                network,
                start,
                [photos[row] for row in fitted],
                targets[fitted],
                settings,
                checkpoint_directory=Path(directory),
            )
            better = backbone.load(str(result.path), cache_directory(), options=result.options)
        new = embed(photos, better, Preprocessing(height=height, width=width))
        model, _ = head.fit(new[fitted], targets[fitted], classes, seed=seed)
        yield held_out, model.probabilities(new[held_out])


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.fine_tune", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--photos", type=Path, help="a folder of labels (default: the sample photos)")
    parser.add_argument("--seeds", type=int, default=4, help="repeats without fine-tuning (default 4)")
    parser.add_argument("--tune_seeds", type=int, default=1, help="repeats with it, 0 for none (default 1)")
    parser.add_argument("--tune_sizes", type=int, nargs="*", default=[224, 260], help="its input sizes")
    parser.add_argument("--keep", type=float, default=FineTuneSettings.keep)
    parser.add_argument("--learning_rate", type=float, default=FineTuneSettings.learning_rate)
    parser.add_argument("--epochs", type=int, default=FineTuneSettings.epochs)
    parser.add_argument("--depth", type=float, default=FineTuneSettings.depth)
    parser.add_argument("--tune_alone", action="store_true", help="leave the settings without it out")
    options = parser.parse_args()
    from trainer.samples import sample_photos

    photos, targets = labelled(options.photos or sample_photos(cache_directory()).directory)
    print(f"{len(photos)} photos, {FOLDS} folds; ± and brackets are 95 % intervals\n")
    print(
        "| | seeds | accuracy | against the first | log-loss | against the first |\n|---|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as directory:
        sizes = sorted({224, *options.tune_sizes}) if options.tune_alone else SIZES
        networks = {size: at_size(size, Path(directory)) for size in {*sizes, *options.tune_sizes}}
        embeddings = {
            size: embed(photos, network, Preprocessing(height=size, width=size))
            for size, network in networks.items()
        }

        def figure(values: Floats) -> Figure:
            return Figure.of(lambda seed: folds(values, targets, seed), targets, options.seeds)

        base = figure(embeddings[224])
        print(base.row("224 pixels", base), flush=True)
        for size in sorted(networks.keys() - {224}):
            print(figure(embeddings[size]).row(f"{size} pixels", base), flush=True)
        if not options.tune_alone:
            found = Figure.of(lambda seed: chosen(embeddings, targets, seed), targets, options.seeds)
            print(found.row("the size of the lowest log-loss in each training fold", base), flush=True)
            for name, values in _combined(photos, networks, embeddings):
                print(figure(values).row(name, base), flush=True)
        settings = FineTuneSettings(
            epochs=options.epochs,
            learning_rate=options.learning_rate,
            keep=options.keep,
            depth=options.depth,
        )
        for size in options.tune_sizes if options.tune_seeds else ():
            start = time.perf_counter()
            found = Figure.of(
                lambda seed, size=size: tuned(
                    photos, targets, networks[size], embeddings[size], settings, seed
                ),
                targets,
                options.tune_seeds,
            )
            minutes = (time.perf_counter() - start) / 60 / FOLDS / options.tune_seeds
            print(found.row(f"{size} pixels, fine-tuned ({minutes:.1f} min a run)", base), flush=True)


def _combined(
    photos: Sequence[bytes], networks: dict[int, Backbone], embeddings: dict[int, Floats]
) -> Iterator[tuple[str, Floats]]:
    """Embeddings made of several, by name."""
    views = [viewed(photos, networks[224], view) for view in range(VIEWS)]
    yield f"224 pixels, mean with {VIEWS} views, asked so too", np.mean([embeddings[224], *views], 0)
    yield "224 and 300 pixels side by side", np.hstack([embeddings[224], embeddings[300]])
    yield "mean of 224, 300 and 380 pixels", np.mean([embeddings[size] for size in (224, 300, 380)], 0)
    yield "mean of all sizes", np.mean(list(embeddings.values()), 0)
    weights = efficientnet_lite0.variables(default_weights(cache_directory()), classifier=False)
    below = layers(photos, networks[224], weights)
    yield "224 pixels, with two layers below the last", np.hstack([embeddings[224], below])


if __name__ == "__main__":
    main()
