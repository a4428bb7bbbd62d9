"""Accuracy by input size, views, combined embeddings and fine-tuning: `python -m tests.bench.fine_tune`.

Each setting is evaluated by stratified cross-validation with everything selected inside the training folds:
a backbone is tuned on the training fold alone, and the head is fitted on its embeddings of the training fold.
Photos, folds and seeds are the same for all settings, so that their differences are reliable.
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
from tests.bench import results
from tests.bench.accuracy import BATCH, FOLDS, embed, read_labelled_photos
from trainer import heads, preprocessing
from trainer.backbones import efficientnet_lite
from trainer.backbones.hub import Backbone, load
from trainer.backbones.pretrained import read_weights
from trainer.dataset.download import cache_directory
from trainer.evaluation import metrics
from trainer.export.templates import prepare_template
from trainer.heads import Floats, Ints
from trainer.preprocessing import Augmentation, Preprocessing
from trainer.training.fine_tune_types import FineTuneSettings
from trainer.training.fine_tuning import fine_tune
from trainer.training.tuning_photos import LabelledPhotos, TuningPhotos

SIZES = (224, 240, 260, 300, 380)
VIEWS = 4
LITE0 = efficientnet_lite.NETWORKS["lite0"]
ALIASES = {224: "efficientnet_lite0", 260: "efficientnet_lite0_260"}
AUGMENTATIONS = {
    "mirrored views": Augmentation(flip_left_right=True),
    "distorted views": Augmentation(
        flip_left_right=True, random_crop=10, random_scale=20, random_brightness=15
    ),
}
MIDDLE = 10
"""Number of the block, from 0, whose output is one of the layers below the last."""


@dataclass(frozen=True)
class Embedded:
    """Embeddings of all photos with one setting.

    Attributes:
        values: embeddings float32 [N,D], for fitting heads and for predictions.
        views: embeddings of random views of each photo, for fitting heads only.
    """

    values: Floats
    views: Sequence[Floats] = ()


@dataclass(frozen=True)
class Fold:
    """Predictions for the held-out photos of a fold.

    Attributes:
        rows: indices of the photos, int64 [M].
        probabilities: probabilities float32 [M,K].
        inner: log-loss by cross-validation inside the training fold.
    """

    rows: Ints
    probabilities: Floats
    inner: float = float("nan")


Folds = Sequence[Sequence[Fold]]
"""All folds of each seed."""


@dataclass(frozen=True)
class Evaluation:
    """Correctness and loss of each photo, by seed.

    Attributes:
        correct: whether the best label is correct, bool [seeds,N].
        losses: log-losses, float64 [seeds,N].
    """

    correct: NDArray[np.bool_]
    losses: NDArray[np.float64]

    @classmethod
    def from_folds(cls, seeds: Folds, targets: Ints) -> Evaluation:
        """Evaluate the predictions of all folds."""
        shape = (len(seeds), len(targets))
        correct, losses = np.zeros(shape, bool), np.zeros(shape)
        for seed, found in enumerate(seeds):
            for fold in found:
                rows, probabilities = fold.rows, fold.probabilities
                correct[seed, rows] = probabilities.argmax(1) == targets[rows]
                picked = probabilities[np.arange(len(rows)), targets[rows]]
                losses[seed, rows] = -np.log(np.maximum(picked, 1e-15))
        return cls(correct, losses)

    def format_row(self, name: str, base: Evaluation) -> str:
        """Format a row of the table, and record it; differences from the base are paired by photo."""
        seeds, count = self.correct.shape
        interval = metrics.proportion(round(self.correct.mean(0).sum()), count)
        points = _compare_paired(100.0 * self.correct, 100.0 * base.correct[:seeds])
        loss = _compare_paired(self.losses, base.losses[:seeds])
        accuracy = f"{self.correct.mean():.1%} ({interval.low:.1%} to {interval.high:.1%})"
        row: dict[str, results.Value] = {"setting": name, "seeds": seeds, "accuracy": accuracy}
        row["difference from 224 pixels, points"] = f"{points[0]:+.1f} ± {points[1]:.1f}"
        row["log-loss"] = round(float(self.losses.mean()), 3)
        row["its difference"] = f"{loss[0]:+.3f} ± {loss[1]:.3f}"
        results.add_row(f"Input sizes, views and fine-tuning on {count} photos", row)
        return (
            f"| {name} | {seeds} | {accuracy} | {points[0]:+.1f} ± {points[1]:.1f} "
            f"| {self.losses.mean():.3f} | {loss[0]:+.3f} ± {loss[1]:.3f} |"
        )


def _compare_paired(values: NDArray[Any], others: NDArray[Any]) -> tuple[float, float]:
    """Return the mean difference over photos and the half-width of its 95 % interval."""
    each = values.mean(0) - others.mean(0)
    return float(each.mean()), float(1.96 * each.std() / len(each) ** 0.5)


def cross_validate(embedded: Embedded, targets: Ints, seeds: int) -> Folds:
    """Fit a head and predict the held-out photos in all folds of all seeds."""
    classes = int(targets.max()) + 1

    def predict_fold(fitted: Ints, held_out: Ints, seed: int) -> Fold:
        views = [view[fitted] for view in embedded.views]
        model, selection = heads.fit(
            embedded.values[fitted], targets[fitted], classes, views=views, seed=seed
        )
        inner = heads.log_loss(selection.probabilities, selection.targets)
        return Fold(held_out, model.probabilities(embedded.values[held_out]), inner)

    return [
        [predict_fold(*rows, seed) for rows in heads.stratified_folds(targets, FOLDS, seed)]
        for seed in range(seeds)
    ]


def select_best(settings: Sequence[Folds]) -> Folds:
    """Select, for each fold, the setting with the lowest log-loss inside the training fold."""
    return [
        [min(same, key=lambda fold: fold.inner) for same in zip(*seed, strict=True)]
        for seed in zip(*settings, strict=True)
    ]


def embed_views(photos: Sequence[bytes], alias: str, augmentation: Augmentation) -> list[Floats]:
    """Embed VIEWS random views of each photo, as `hubhead train` does."""
    found = []
    for number in range(VIEWS):
        template = prepare_template(alias, cache_directory(), view=(augmentation, number))
        model = runtime.load(template.path)
        answers = model.imap(contract.EMBED, contract.IMAGE_BYTES, photos)
        found.append(np.concatenate([answer[contract.EMBEDDING] for answer in answers]))
    return found


def embed_with_mirror_image(photos: Sequence[bytes], network: Backbone) -> Floats:
    """Return the mean embedding of each photo and its mirror image."""
    import tensorflow as tf

    height, width = network.image_size
    settings = Preprocessing(height=height, width=width)

    def run(contents: Any) -> Any:
        pixels = tf.cast(preprocessing.decode_photos(contents, settings)[0], tf.float32) / 255.0
        return (network.apply(pixels) + network.apply(tf.reverse(pixels, [2]))) / 2.0

    return _run_in_batches(run, photos)


def embed_lower_layers(photos: Sequence[bytes], network: Backbone, weights: dict[str, Any]) -> Floats:
    """Return the spatial means of the outputs of block MIDDLE and of the last block, side by side."""
    import tensorflow as tf

    height, width = network.image_size
    settings = Preprocessing(height=height, width=width)

    def run(contents: Any) -> Any:
        pixels = tf.cast(preprocessing.decode_photos(contents, settings)[0], tf.float32) / 255.0
        # The first feature map is that of the stem, the last but one that of the last block.
        found = efficientnet_lite.feature_maps(weights, pixels, LITE0, training=False)
        return tf.concat([tf.reduce_mean(found[index], [1, 2]) for index in (MIDDLE + 1, -2)], 1)

    return _run_in_batches(run, photos)


def _run_in_batches(run: Callable[[Any], Any], photos: Sequence[bytes]) -> Floats:
    import tensorflow as tf

    signature = [tf.TensorSpec([None], tf.string)]
    traced = tf.function(run, input_signature=signature, autograph=False)
    starts = range(0, len(photos), BATCH)
    return np.concatenate([traced(list(photos[start : start + BATCH])).numpy() for start in starts])


def load_at_size(size: int, directory: Path) -> Backbone:
    """Export the default backbone for another input size, and load it."""
    path = directory / f"{size}"
    efficientnet_lite.export(read_weights("lite0", cache_directory()), path, LITE0, image_size=size)
    return load(str(path), cache_directory())


def predict_fine_tuned(
    photos: Sequence[bytes],
    targets: Ints,
    network: Backbone,
    embeddings: Floats,
    settings: FineTuneSettings,
    seed: int,
) -> Iterator[Fold]:
    """Yield the predictions of each fold by a backbone that is tuned on the training fold."""
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
            better = load(str(result.path), cache_directory(), options=result.options)
        new = embed(photos, better, Preprocessing(height=height, width=width))
        model, _ = heads.fit(new[fitted], targets[fitted], classes, seed=seed)
        yield Fold(held_out, model.probabilities(new[held_out]))


def main() -> None:
    """Run the command."""
    options = _parse_options()
    from trainer.dataset.samples import fetch_sample_photos

    photos, targets = read_labelled_photos(options.photos or fetch_sample_photos(cache_directory()).directory)
    print(f"{len(photos)} photos, {FOLDS} folds; ± and brackets are 95 % intervals\n")
    print("| setting | seeds | accuracy | difference from row 1 | log-loss | difference from row 1 |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as directory:
        sizes = sorted({224, *options.tune_sizes}) if options.tune_alone else SIZES
        networks = {size: load_at_size(size, Path(directory)) for size in {*sizes, *options.tune_sizes}}
        embeddings = {
            size: embed(photos, network, Preprocessing(height=size, width=size))
            for size, network in networks.items()
        }
        by_size = {
            f"{size} pixels": cross_validate(Embedded(embeddings[size]), targets, options.seeds)
            for size in sorted(networks)
        }
        base = Evaluation.from_folds(by_size["224 pixels"], targets)

        def print_row(name: str, folds: Folds) -> None:
            print(Evaluation.from_folds(folds, targets).format_row(name, base), flush=True)

        for name, folds in by_size.items():
            print_row(name, folds)
        if not options.tune_alone:
            candidates = {name: by_size[name] for name in ("224 pixels", "260 pixels")}
            for name, embedded in _embed_with_views(photos, embeddings):
                candidates[name] = cross_validate(embedded, targets, options.seeds)
                print_row(name, candidates[name])
            name = f"best of {len(candidates)} ({', '.join(candidates)}), selected inside each training fold"
            print_row(name, select_best(list(candidates.values())))
            for name, values in _combine_embeddings(photos, networks, embeddings):
                print_row(name, cross_validate(Embedded(values), targets, options.seeds))
        settings = FineTuneSettings(
            epochs=options.epochs,
            learning_rate=options.learning_rate,
            keep=options.keep,
            depth=options.depth,
        )
        for size in options.tune_sizes if options.tune_seeds else ():
            start = time.perf_counter()
            runs = [
                list(predict_fine_tuned(photos, targets, networks[size], embeddings[size], settings, seed))
                for seed in range(options.tune_seeds)
            ]
            minutes = (time.perf_counter() - start) / 60 / FOLDS / options.tune_seeds
            print_row(f"{size} pixels, fine-tuned ({minutes:.1f} min per fold)", runs)
    results.write(options.output, "fine-tune")


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.fine_tune", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--photos", type=Path, help="labelled folder (default: the sample photos)")
    parser.add_argument("--seeds", type=int, default=4, help="number of cross-validations (default 4)")
    parser.add_argument(
        "--tune_seeds", type=int, default=1, help="the same for fine-tuning, 0 to skip it (default 1)"
    )
    parser.add_argument("--tune_sizes", type=int, nargs="*", default=[224, 260], help="input sizes to tune")
    parser.add_argument("--tune_alone", action="store_true", help="skip the settings without fine-tuning")
    for name, kind in {"keep": float, "learning_rate": float, "epochs": int, "depth": float}.items():
        default = getattr(FineTuneSettings, name)
        parser.add_argument(
            f"--{name}", type=kind, default=default, help=f"as in FineTuneSettings (default {default})"
        )
    results.add_output_option(parser)
    return parser.parse_args()


def _embed_with_views(
    photos: Sequence[bytes], embeddings: dict[int, Floats]
) -> Iterator[tuple[str, Embedded]]:
    """Yield a name and embeddings for each size that has an alias, with random views."""
    for size, alias in ALIASES.items():
        for name, augmentation in AUGMENTATIONS.items():
            views = embed_views(photos, alias, augmentation)
            yield f"{size} pixels, {VIEWS} {name}", Embedded(embeddings[size], views)


def _combine_embeddings(
    photos: Sequence[bytes], networks: dict[int, Backbone], embeddings: dict[int, Floats]
) -> Iterator[tuple[str, Floats]]:
    """Yield a name and embeddings for each combination of several embeddings."""
    for size in ALIASES:
        yield f"{size} pixels, mean with the mirror image", embed_with_mirror_image(photos, networks[size])
    yield "224 and 300 pixels side by side", np.hstack([embeddings[224], embeddings[300]])
    yield "mean of 224, 260 and 300 pixels", np.mean([embeddings[size] for size in (224, 260, 300)], 0)
    yield "mean of 224, 300 and 380 pixels", np.mean([embeddings[size] for size in (224, 300, 380)], 0)
    yield "mean of all sizes", np.mean(list(embeddings.values()), 0)
    weights = efficientnet_lite.build_variables(read_weights("lite0", cache_directory()))
    below = embed_lower_layers(photos, networks[224], weights)
    yield "224 pixels, with two layers below the last", np.hstack([embeddings[224], below])


if __name__ == "__main__":
    main()
