"""Refusal of photos of labels that were not trained on: `python -m tests.bench.abstention`.

Labels of the sample photos are hidden from the training; then it is measured how many of their photos are
refused, and how well the novelty score of hubhead separates them beside other scores of the literature.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np

from tests.support.abstention import energy, fit_novelty, residual
from tests.support.head import sample_features
from tests.support.trained import train_once
from trainer import heads
from trainer.dataset.download import cache_directory
from trainer.dataset.samples import fetch_sample_photos
from trainer.evaluation.novelty import Novelty
from trainer.evaluation.open_set import auroc, draw_hidden_classes, leave_labels_out
from trainer.heads import Floats, Ints

Score = Callable[[Novelty, Floats, Ints, Floats], Floats]


def best_probability(novelty: Novelty, embeddings: Floats, targets: Ints, rows: Floats) -> Floats:
    return -novelty.head.probabilities(rows).max(axis=1)


def mahalanobis(novelty: Novelty, embeddings: Floats, targets: Ints, rows: Floats) -> Floats:
    features, places, means = placed(novelty, embeddings, targets, rows)
    return to_nearest(features - means[targets], places, means)


def relative_mahalanobis(novelty: Novelty, embeddings: Floats, targets: Ints, rows: Floats) -> Floats:
    features, places, means = placed(novelty, embeddings, targets, rows)
    centre = features.mean(axis=0, keepdims=True)
    background = to_nearest(features - centre, places, centre)
    return to_nearest(features - means[targets], places, means) - background


def nearest_neighbours(novelty: Novelty, embeddings: Floats, targets: Ints, rows: Floats) -> Floats:
    features, places, _ = placed(novelty, embeddings, targets, rows)
    return -np.sort(places @ features.T, axis=1)[:, -10:].mean(axis=1)


def placed(
    novelty: Novelty, embeddings: Floats, targets: Ints, rows: Floats
) -> tuple[Floats, Floats, Floats]:
    """Features of the known photos and of others, and the means of the labels."""
    features, places = (novelty.head.scaling.features(part) for part in (embeddings, rows))
    means = np.stack([features[targets == label].mean(axis=0) for label in range(targets.max() + 1)])
    return features, places, means


def to_nearest(residuals: Floats, places: Floats, means: Floats) -> Floats:
    """Squared distances to the nearest mean by the residuals' covariance, half of it a sphere."""
    covariance = residuals.T @ residuals / len(residuals)
    dimension = len(covariance)
    shrunken = 0.5 * covariance + 0.5 * np.trace(covariance) / dimension * np.eye(dimension)
    inverse = np.linalg.inv(shrunken)
    distances = [((places - mean) @ inverse * (places - mean)).sum(axis=1) for mean in means]
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


def areas_under_curve(embeddings: Floats, targets: Ints, classes: int, draws: int) -> dict[str, float]:
    """Return the AUROC of every score with 3 labels hidden, the mean over the draws."""
    areas: dict[str, list[float]] = {name: [] for name in SCORES}
    for draw, hidden in enumerate(draw_hidden_classes(classes, 3, draws, seed=1)):
        is_hidden = np.isin(targets, hidden)
        rows = np.flatnonzero(~is_hidden)
        _, known = np.unique(targets[rows], return_inverse=True)
        rest, held = list(heads.stratified_folds(known, 5, draw))[draw % 5]
        novelty = fit_novelty(embeddings[rows[rest]], known[rest])
        for name, score in SCORES.items():
            of_known, of_hidden = (
                score(novelty, embeddings[rows[rest]], known[rest], part)
                for part in (embeddings[rows[held]], embeddings[is_hidden])
            )
            areas[name].append(auroc(of_known, of_hidden))
    return {name: float(np.mean(found)) for name, found in areas.items()}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.abstention", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--draws", type=int, default=20, help="draws of hidden labels (default 20)")
    options = parser.parse_args()
    cache = cache_directory()
    trained = train_once(cache, fetch_sample_photos(cache))
    embeddings, targets, classes = sample_features(trained)
    labels = list(trained.result.labels)
    for hidden in (2, 3):
        found = leave_labels_out(embeddings, targets, labels, hidden=hidden, draws=options.draws)
        print(f"{hidden} of {classes} labels hidden, {options.draws} draws: {found}", flush=True)
    for label, share in found.rates[1].by_label.items():
        print(f"    {label}: {share:.0%} refused")
    for name, mean in areas_under_curve(embeddings, targets, classes, options.draws // 2).items():
        print(f"{name}: AUROC {mean:.3f}, 3 of {classes} labels hidden, {options.draws // 2} draws")


if __name__ == "__main__":
    main()
