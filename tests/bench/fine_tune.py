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

from serving import contract, runtime
from tests.bench.accuracy import BATCH, FOLDS, embed, labelled
from trainer import backbones, heads, preprocessing
from trainer.backbones import Backbone, efficientnet_lite0
from trainer.backbones.hub import default_weights
from trainer.dataset.download import cache_directory
from trainer.evaluation import metrics
from trainer.export.templates import prepare_view_template
from trainer.heads import Floats, Ints
from trainer.preprocessing import Augmentation, Preprocessing
from trainer.training.fine_tune_types import FineTuneSettings
from trainer.training.fine_tuning import fine_tune
from trainer.training.tuning_photos import LabelledPhotos, TuningPhotos

SIZES = (224, 240, 260, 300, 380)
VIEWS = 4
ALIASES = {224: "efficientnet_lite0", 260: "efficientnet_lite0_260"}
AUGMENTATIONS = {
    "mirrored views": Augmentation(flip_left_right=True),
    "distorted views": Augmentation(
        flip_left_right=True, random_crop=10, random_scale=20, random_brightness=15
    ),
}
MIDDLE = 10
"""The block, counted from 0, whose output is one of the layers below the last."""


@dataclass(frozen=True)
class Embedded:
    """What a setting makes of the photos.

    Attributes:
        values: float32 [N,D], which heads are fitted on and asked with.
        views: the same of random views of each photo, which heads are fitted on as well.
    """

    values: Floats
    views: Sequence[Floats] = ()


@dataclass(frozen=True)
class Fold:
    """What is said of the photos that a fold held out.

    Attributes:
        rows: which photos, int64 [M].
        probabilities: float32 [M,K].
        inner: the log-loss by cross-validation inside the training fold.
    """

    rows: Ints
    probabilities: Floats
    inner: float = float("nan")


Folds = Sequence[Sequence[Fold]]
"""Of each seed all folds."""


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
    def of(cls, seeds: Folds, targets: Ints) -> Figure:
        """By what the folds of each seed say."""
        right, losses = np.zeros((len(seeds), len(targets)), bool), np.zeros((len(seeds), len(targets)))
        for seed, found in enumerate(seeds):
            for fold in found:
                rows, probabilities = fold.rows, fold.probabilities
                right[seed, rows] = probabilities.argmax(1) == targets[rows]
                picked = probabilities[np.arange(len(rows)), targets[rows]]
                losses[seed, rows] = -np.log(np.maximum(picked, 1e-15))
        return cls(right, losses)

    def row(self, name: str, base: Figure) -> str:
        """A line of the table; the difference to the base is paired by photo, over the same seeds."""
        seeds, count = self.right.shape
        share = metrics.proportion(round(self.right.mean(0).sum()), count)
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


def crossed(embedded: Embedded, targets: Ints, seeds: int) -> Folds:
    """Heads fitted and asked in all folds of all seeds."""
    classes = int(targets.max()) + 1

    def one(fitted: Ints, held_out: Ints, seed: int) -> Fold:
        views = [view[fitted] for view in embedded.views]
        model, held = heads.fit(embedded.values[fitted], targets[fitted], classes, views=views, seed=seed)
        inner = heads.log_loss(held.probabilities, held.targets)
        return Fold(held_out, model.probabilities(embedded.values[held_out]), inner)

    return [
        [one(*rows, seed) for rows in heads.stratified_folds(targets, FOLDS, seed)] for seed in range(seeds)
    ]


def chosen(settings: Sequence[Folds]) -> Folds:
    """Of each fold the setting with the lowest log-loss inside the training fold."""
    return [
        [min(same, key=lambda fold: fold.inner) for same in zip(*seed, strict=True)]
        for seed in zip(*settings, strict=True)
    ]


def viewed(photos: Sequence[bytes], alias: str, augmentation: Augmentation) -> list[Floats]:
    """Embeddings of VIEWS random views of each photo, as `hubhead train` makes them."""
    found = []
    for number in range(VIEWS):
        template = prepare_view_template(alias, cache_directory(), Preprocessing(), augmentation, number)
        model = runtime.load(template.path)
        answers = model.imap(contract.EMBED, contract.IMAGE_BYTES, photos)
        found.append(np.concatenate([answer[contract.EMBEDDING] for answer in answers]))
    return found


def mirrored(photos: Sequence[bytes], network: Backbone) -> Floats:
    """The mean embedding of each photo and its mirror image."""
    import tensorflow as tf

    height, width = network.image_size
    settings = Preprocessing(height=height, width=width)

    def run(contents: Any) -> Any:
        pixels = tf.cast(preprocessing.decode_photos(contents, settings)[0], tf.float32) / 255.0
        return (network.apply(pixels) + network.apply(tf.reverse(pixels, [2]))) / 2.0

    return _in_batches(run, photos)


def layers(photos: Sequence[bytes], network: Backbone, weights: dict[str, Any]) -> Floats:
    """Means over the map of block MIDDLE and over that of the last block."""
    import tensorflow as tf

    height, width = network.image_size
    settings = Preprocessing(height=height, width=width)

    def run(contents: Any) -> Any:
        pixels = tf.cast(preprocessing.decode_photos(contents, settings)[0], tf.float32) / 255.0
        # The stem's map comes first, the last block's is the last but one.
        found = efficientnet_lite0.feature_maps(weights, pixels, training=False)
        return tf.concat([tf.reduce_mean(found[index], [1, 2]) for index in (MIDDLE + 1, -2)], 1)

    return _in_batches(run, photos)


def _in_batches(run: Callable[[Any], Any], photos: Sequence[bytes]) -> Floats:
    import tensorflow as tf

    signature = [tf.TensorSpec([None], tf.string)]
    traced = tf.function(run, input_signature=signature, autograph=False)
    starts = range(0, len(photos), BATCH)
    return np.concatenate([traced(list(photos[start : start + BATCH])).numpy() for start in starts])


def at_size(size: int, directory: Path) -> Backbone:
    """The default backbone for photos of another size."""
    path = directory / f"{size}"
    efficientnet_lite0.export(default_weights(cache_directory()), path, image_size=size)
    return backbones.load(str(path), cache_directory())


def tuned(
    photos: Sequence[bytes],
    targets: Ints,
    network: Backbone,
    embeddings: Floats,
    settings: FineTuneSettings,
    seed: int,
) -> Iterator[Fold]:
    """With a backbone tuned in each training fold, and a head fitted on its embeddings."""
    classes = int(targets.max()) + 1
    height, width = network.image_size
    for fitted, held_out in heads.stratified_folds(targets, FOLDS, seed):
        start, _ = heads.fit(embeddings[fitted], targets[fitted], classes, seed=seed)
        with tempfile.TemporaryDirectory() as directory:
            result = fine_tune(
                network,
                start,
                TuningPhotos(LabelledPhotos([photos[row] for row in fitted], targets[fitted])),
                settings,
                checkpoint_directory=Path(directory),
            )
            better = backbones.load(str(result.path), cache_directory(), options=result.options)
        new = embed(photos, better, Preprocessing(height=height, width=width))
        model, _ = heads.fit(new[fitted], targets[fitted], classes, seed=seed)
        yield Fold(held_out, model.probabilities(new[held_out]))


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
    from trainer.dataset.samples import fetch_sample_photos

    photos, targets = labelled(options.photos or fetch_sample_photos(cache_directory()).directory)
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

        names = {size: f"{size} pixels" for size in sorted(networks)}
        found = {
            name: crossed(Embedded(embeddings[size]), targets, options.seeds) for size, name in names.items()
        }
        base = Figure.of(found[names[224]], targets)
        for name, folds in found.items():
            print(Figure.of(folds, targets).row(name, base), flush=True)
        if not options.tune_alone:
            offered = {name: found[name] for name in (names[224], names[260])}
            for name, embedded in _with_views(photos, embeddings):
                offered[name] = crossed(embedded, targets, options.seeds)
                print(Figure.of(offered[name], targets).row(name, base), flush=True)
            best = chosen(list(offered.values()))
            name = f"the one of {len(offered)}, {', '.join(offered)}, chosen inside each training fold"
            print(Figure.of(best, targets).row(name, base), flush=True)
            for name, values in _combined(photos, networks, embeddings):
                folds = crossed(Embedded(values), targets, options.seeds)
                print(Figure.of(folds, targets).row(name, base), flush=True)
        settings = FineTuneSettings(
            epochs=options.epochs,
            learning_rate=options.learning_rate,
            keep=options.keep,
            depth=options.depth,
        )
        for size in options.tune_sizes if options.tune_seeds else ():
            start = time.perf_counter()
            runs = [
                list(tuned(photos, targets, networks[size], embeddings[size], settings, seed))
                for seed in range(options.tune_seeds)
            ]
            minutes = (time.perf_counter() - start) / 60 / FOLDS / options.tune_seeds
            print(
                Figure.of(runs, targets).row(f"{size} pixels, fine-tuned ({minutes:.1f} min a run)", base),
                flush=True,
            )


def _with_views(photos: Sequence[bytes], embeddings: dict[int, Floats]) -> Iterator[tuple[str, Embedded]]:
    """The sizes that are aliases, with views, by name."""
    for size, alias in ALIASES.items():
        for name, augmentation in AUGMENTATIONS.items():
            views = viewed(photos, alias, augmentation)
            yield f"{size} pixels, {VIEWS} {name}", Embedded(embeddings[size], views)


def _combined(
    photos: Sequence[bytes], networks: dict[int, Backbone], embeddings: dict[int, Floats]
) -> Iterator[tuple[str, Floats]]:
    """Embeddings made of several, by name."""
    for size in ALIASES:
        yield f"{size} pixels, mean with the mirror image", mirrored(photos, networks[size])
    yield "224 and 300 pixels side by side", np.hstack([embeddings[224], embeddings[300]])
    yield "mean of 224, 260 and 300 pixels", np.mean([embeddings[size] for size in (224, 260, 300)], 0)
    yield "mean of 224, 300 and 380 pixels", np.mean([embeddings[size] for size in (224, 300, 380)], 0)
    yield "mean of all sizes", np.mean(list(embeddings.values()), 0)
    weights = efficientnet_lite0.build_variables(default_weights(cache_directory()), classifier=False)
    below = layers(photos, networks[224], weights)
    yield "224 pixels, with two layers below the last", np.hstack([embeddings[224], below])


if __name__ == "__main__":
    main()
