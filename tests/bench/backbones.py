"""Accuracy, log-loss and photos/s of the built-in backbones: `python -m tests.bench.backbones`.

Every photo of a labelled folder is embedded by each backbone, as in training and scoring (serving.runtime
on the bundle, from the bytes). Heads are then fitted in a stratified cross-validation, with everything
selected inside the training folds. Photos, folds and seeds are the same for all backbones, so that the
differences from the first one are paired. Photos/s are those of the best round; rounds alternate between
the backbones.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from serving import contract, runtime
from tests.bench import results
from tests.bench.accuracy import FOLDS, predict_folds, read_labelled_photos
from trainer import heads
from trainer.backbones import DEFAULT
from trainer.backbones.aliases import BUILT
from trainer.dataset.download import cache_directory
from trainer.evaluation import metrics
from trainer.export.templates import prepare_template
from trainer.heads import Doubles, Floats, Ints


def embed(photos: Sequence[bytes], model: runtime.Model) -> Floats:
    """Return embeddings float32 [N,D] of the photos."""
    found = model.imap(contract.EMBED, contract.IMAGE_BYTES, photos)
    return np.concatenate([output[contract.EMBEDDING] for output in found])


def measure_rates(photos: Sequence[bytes], models: dict[str, runtime.Model], rounds: int) -> dict[str, float]:
    """Return the photos/s of each model, of the best round."""
    best = dict.fromkeys(models, 0.0)
    for _ in range(rounds):
        for name, model in models.items():
            begin = time.perf_counter()
            embed(photos, model)
            best[name] = max(best[name], len(photos) / (time.perf_counter() - begin))
    return best


def score_photos(embeddings: Floats, targets: Ints, seeds: int) -> tuple[Doubles, Doubles]:
    """Return, for each photo, how often it was classified correctly and its mean log-loss, over the seeds."""
    correct, losses = np.zeros(len(targets)), np.zeros(len(targets))
    for seed in range(seeds):
        for rows, probabilities in predict_folds(embeddings, targets, seed):
            correct[rows] += probabilities.argmax(1) == targets[rows]
            losses[rows] += heads.log_losses(probabilities, targets[rows])
    return correct / seeds, losses / seeds


def format_difference(values: Doubles, base: Doubles) -> str:
    """Return the mean paired difference with its 95 % interval."""
    difference = values - base
    return f"{difference.mean():+.3f} +- {1.96 * difference.std() / len(difference) ** 0.5:.3f}"


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.backbones", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--photos", type=Path, help="labelled folder (default: the sample photos)")
    parser.add_argument("--backbones", nargs="+", default=list(BUILT), help="(default: those hubhead builds)")
    parser.add_argument(
        "--seeds", type=int, default=4, help="number of cross-validations with different folds (default 4)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="rounds of the rates (default 3)")
    results.add_output_option(parser)
    options = parser.parse_args()
    from trainer.dataset.samples import fetch_sample_photos

    photos, targets = read_labelled_photos(options.photos or fetch_sample_photos(cache_directory()).directory)
    names = [DEFAULT, *(name for name in options.backbones if name != DEFAULT)]
    models = {name: runtime.load(prepare_template(name, cache_directory()).path) for name in names}
    scores = {
        name: score_photos(embed(photos, model), targets, options.seeds) for name, model in models.items()
    }
    rates = measure_rates(photos, models, options.rounds)
    print(f"{len(photos)} photos, {FOLDS} folds, {options.seeds} seeds; differences from {DEFAULT}")
    for name, (correct, losses) in scores.items():
        found = metrics.proportion(round(correct.sum()), len(targets))
        print(
            f"{name:24} accuracy {found}, difference {format_difference(correct, scores[DEFAULT][0])}; "
            f"log-loss {losses.mean():.3f}, difference {format_difference(losses, scores[DEFAULT][1])}; "
            f"{rates[name]:.1f} photos/s"
        )
        row: dict[str, results.Value] = {"backbone": name, "accuracy": str(found)}
        row["difference of the accuracy"] = format_difference(correct, scores[DEFAULT][0])
        row["log-loss"] = round(float(losses.mean()), 3)
        row["difference of the log-loss"] = format_difference(losses, scores[DEFAULT][1])
        results.add_row(f"Backbones on {len(photos)} photos", row | {"photos/s": rates[name]})
    results.add_note(
        f"Means of {options.seeds} cross-validations with {FOLDS} folds each; paired differences from"
        f" {DEFAULT} with 95 % intervals; photos/s of the best of {options.rounds} rounds."
    )
    results.write(options.output, "backbones")


if __name__ == "__main__":
    main()
