"""None of these: answers as precise as stated, and photos of what was not trained on refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.support.abstention import energy, fit_novelty, residual
from tests.support.head import blobs, sample_features
from trainer import heads
from trainer.evaluation import abstention
from trainer.evaluation.abstention import Novelty, auroc, leave_labels_out
from trainer.heads import Floats, Ints

if TYPE_CHECKING:
    from tests.support.trained import Trained


@pytest.fixture(scope="module")
def clouds() -> tuple[Floats, Ints, Floats]:
    """Embeddings and classes of five labels to know, and embeddings of a sixth."""
    embeddings, targets = blobs(600, 40, 6)
    return embeddings[targets < 5], targets[targets < 5], embeddings[targets == 5]


@pytest.fixture(scope="module")
def novelty(clouds: tuple[Floats, Ints, Floats]) -> Novelty:
    return fit_novelty(*clouds[:2])


@pytest.mark.tf
def test_the_graph_repeats_the_score(novelty: Novelty, clouds: tuple[Floats, Ints, Floats]) -> None:
    import tensorflow as tf

    model, rows = novelty.head, np.vstack([clouds[2], np.zeros((1, 40), np.float32)])
    features = tf.math.l2_normalize((rows - model.scaling.mean) * model.scaling.scale, axis=1, epsilon=1e-24)
    logits = (features @ model.kernel + model.bias) / np.float32(model.temperature)
    off = tf.math.l2_normalize(rows, axis=1, epsilon=1e-24) - novelty.centre
    outside = tf.reduce_sum(off**2, axis=1) - tf.reduce_sum((off @ novelty.directions) ** 2, axis=1)
    found = np.float32(novelty.residual_weight) * tf.sqrt(tf.maximum(outside, 0.0))
    found -= np.float32(novelty.energy_weight) * tf.reduce_logsumexp(logits, axis=1)
    assert found.dtype == tf.float32
    np.testing.assert_allclose(found, novelty.score(rows), atol=2e-4)


# --- The sample photos ----------------------------------------------------------------------------------

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
    "taken": lambda novelty, _embeddings, _targets, rows: novelty.score(rows),
}


@pytest.mark.tf
@pytest.mark.slow
def test_foods_that_were_not_trained_on_are_told_from_those_that_were(
    trained: Trained, capsys: pytest.CaptureFixture[str]
) -> None:
    embeddings, targets, classes = sample_features(trained)
    labels = trained.result.bundle.metadata.labels
    assert len(labels) == classes
    found = {
        hidden: leave_labels_out(embeddings, targets, labels, hidden=hidden, draws=20) for hidden in (2, 3)
    }
    with capsys.disabled():
        print()
        for hidden, refusals in found.items():
            print(f"{hidden} of 10 labels hidden, 20 draws: {refusals}")
        for label, share in found[3].rates[1].by_label.items():
            print(f"    {label}: {share:.0%} refused")
    for refusals in found.values():
        assert refusals.auroc.value >= 0.75
        by_share = {rate.wanted: rate for rate in refusals.rates}
        assert 0.94 <= by_share[0.95].kept.value <= 0.985
        assert by_share[0.95].refused.value >= 0.21
        assert 0.88 <= by_share[0.9].kept.value <= 0.95
        assert by_share[0.9].refused.value >= 0.33


@pytest.mark.tf
@pytest.mark.slow
def test_the_score_taken_tells_them_better_than_the_others(
    trained: Trained, capsys: pytest.CaptureFixture[str]
) -> None:
    embeddings, targets, classes = sample_features(trained)
    areas: dict[str, list[float]] = {name: [] for name in SCORES}
    for draw, hidden in enumerate(abstention._hidden(classes, 3, 10, seed=1)):
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
    means = {name: float(np.mean(found)) for name, found in areas.items()}
    with capsys.disabled():
        print()
        for name, mean in means.items():
            print(f"{name}: AUROC {mean:.3f}, 3 of 10 labels hidden, 10 draws")
    taken = means.pop("taken")
    assert taken >= max(means.values()) - 0.005
    assert taken >= means["best probability"] + 0.02


@pytest.mark.tf
@pytest.mark.slow
def test_pictures_of_nothing_are_refused(trained: Trained) -> None:
    import tensorflow as tf

    embeddings, targets, _ = sample_features(trained)
    novelty = fit_novelty(embeddings, targets)
    ramp = np.broadcast_to(np.arange(224)[:, None, None], (224, 224, 3))
    pictures = [np.full((224, 224, 3), level) for level in (0, 128, 255)]
    pictures += [ramp, (ramp // 16 + ramp.transpose(1, 0, 2) // 16) % 2 * 255]
    embed = tf.saved_model.load(str(trained.result.bundle.path)).signatures["embed"]
    pngs = [tf.io.encode_png(picture.astype(np.uint8)).numpy() for picture in pictures]
    found = embed(image_bytes=tf.constant(pngs))["embedding"].numpy()
    assert novelty.refused(found).all(), (novelty.score(found), novelty.threshold)
