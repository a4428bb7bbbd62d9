"""Rejection of photos of labels that were not trained on: `python -m tests.bench.abstention`.

Labels of the sample photos are hidden from the training. Measured are the fraction of their photos that are
rejected, and the AUROC of hubhead's novelty score compared with other scores of the literature.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np

from tests.bench import results
from tests.support.abstention import energy, fit_novelty, residual
from tests.support.head import sample_features
from tests.support.open_set import auroc, draw_hidden_classes, leave_labels_out
from tests.support.trained import train_once
from trainer import heads
from trainer.dataset.download import cache_directory
from trainer.dataset.samples import fetch_sample_photos
from trainer.evaluation.novelty import Novelty
from trainer.heads import Floats, Ints

Score = Callable[[Novelty, Floats, Ints, Floats], Floats]
"""Takes a fitted novelty score, known embeddings, their classes, and rows; returns a score per row."""


def best_probability(novelty: Novelty, embeddings: Floats, targets: Ints, rows: Floats) -> Floats:
    """Return the negative best probability (Hendrycks and Gimpel 2017)."""
    return -novelty.head.probabilities(rows).max(axis=1)


def mahalanobis(novelty: Novelty, embeddings: Floats, targets: Ints, rows: Floats) -> Floats:
    """Return the squared Mahalanobis distance to the nearest class mean (Lee et al. 2018)."""
    features, others, means = scale_features(novelty, embeddings, targets, rows)
    return distance_to_nearest(features - means[targets], others, means)


def relative_mahalanobis(novelty: Novelty, embeddings: Floats, targets: Ints, rows: Floats) -> Floats:
    """Return the Mahalanobis distance minus that to the mean of all photos (Ren et al. 2021)."""
    features, others, means = scale_features(novelty, embeddings, targets, rows)
    centre = features.mean(axis=0, keepdims=True)
    background = distance_to_nearest(features - centre, others, centre)
    return distance_to_nearest(features - means[targets], others, means) - background


def nearest_neighbours(novelty: Novelty, embeddings: Floats, targets: Ints, rows: Floats) -> Floats:
    """Return the negative mean similarity to the 10 nearest known photos (Sun et al. 2022)."""
    features, others, _ = scale_features(novelty, embeddings, targets, rows)
    return -np.sort(others @ features.T, axis=1)[:, -10:].mean(axis=1)


def scale_features(
    novelty: Novelty, embeddings: Floats, targets: Ints, rows: Floats
) -> tuple[Floats, Floats, Floats]:
    """Return the features of the known photos and of `rows`, and the mean of each class."""
    features, others = (novelty.head.scaling.features(part) for part in (embeddings, rows))
    means = np.stack([features[targets == label].mean(axis=0) for label in range(targets.max() + 1)])
    return features, others, means


def distance_to_nearest(residuals: Floats, rows: Floats, means: Floats) -> Floats:
    """Return squared distances to the nearest mean, by the shrunk covariance of the residuals."""
    covariance = residuals.T @ residuals / len(residuals)
    dimension = len(covariance)
    shrunk = 0.5 * covariance + 0.5 * np.trace(covariance) / dimension * np.eye(dimension)
    inverse = np.linalg.inv(shrunk)
    distances = [((rows - mean) @ inverse * (rows - mean)).sum(axis=1) for mean in means]
    return np.min(distances, axis=0)


SCORES: dict[str, Score] = {
    "best probability": best_probability,
    "energy": energy,
    "residual": residual,
    "Mahalanobis": mahalanobis,
    "relative Mahalanobis": relative_mahalanobis,
    "10 nearest neighbours": nearest_neighbours,
    "hubhead": lambda novelty, _embeddings, _targets, rows: novelty.score(rows),
}


def measure_aurocs(embeddings: Floats, targets: Ints, classes: int, draws: int) -> dict[str, float]:
    """Return the AUROC of every score with 3 labels hidden, averaged over the draws."""
    areas: dict[str, list[float]] = {name: [] for name in SCORES}
    for draw, hidden in enumerate(draw_hidden_classes(classes, 3, draws, seed=1)):
        is_hidden = np.isin(targets, hidden)
        rows = np.flatnonzero(~is_hidden)
        _, known = np.unique(targets[rows], return_inverse=True)
        fitted, held_out = list(heads.stratified_folds(known, 5, draw))[draw % 5]
        novelty = fit_novelty(embeddings[rows[fitted]], known[fitted])
        for name, score in SCORES.items():
            of_known, of_hidden = (
                score(novelty, embeddings[rows[fitted]], known[fitted], part)
                for part in (embeddings[rows[held_out]], embeddings[is_hidden])
            )
            areas[name].append(auroc(of_known, of_hidden))
    return {name: float(np.mean(found)) for name, found in areas.items()}


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.abstention", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--draws", type=int, default=20, help="number of draws of hidden labels (default 20)")
    results.add_output_option(parser)
    options = parser.parse_args()
    cache = cache_directory()
    trained = train_once(cache, fetch_sample_photos(cache))
    embeddings, targets, classes = sample_features(trained)
    labels = list(trained.result.labels)
    for hidden in (2, 3):
        found = leave_labels_out(embeddings, targets, labels, hidden=hidden, draws=options.draws)
        print(f"{hidden} of {classes} labels hidden, {options.draws} draws: {found}", flush=True)
        row = {"labels hidden": f"{hidden} of {classes}", "draws": options.draws, "result": str(found)}
        results.add_row("Photos of hidden labels", row)
    for label, fraction in found.rates[1].by_label.items():
        print(f"    {label}: {fraction:.0%} rejected")
        results.add_row("Rejected by hidden label", {"label": label, "rejected": f"{fraction:.0%}"})
    for name, mean in measure_aurocs(embeddings, targets, classes, options.draws // 2).items():
        print(f"{name}: AUROC {mean:.3f}, 3 of {classes} labels hidden, {options.draws // 2} draws")
        title = f"Novelty scores, 3 of {classes} labels hidden, {options.draws // 2} draws"
        results.add_row(title, {"score": name, "AUROC": round(mean, 3)})
    results.write(options.output, "abstention")


if __name__ == "__main__":
    main()
