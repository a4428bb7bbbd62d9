"""The head: the exact minimum, calibrated, repeatable, and as accurate on real photos as it must be."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from numpy.typing import NDArray

from trainer import dataset, head
from trainer.evaluate import proportion

if TYPE_CHECKING:
    from tests.conftest import Trained

Data = tuple[head.Floats, head.Ints]


def blobs(count: int, dimensions: int, classes: int, *, noise: float = 1.5, seed: int = 0) -> Data:
    """Overlapping clouds of points, one a class."""
    random = np.random.default_rng(seed)
    targets = np.arange(count) % classes
    centres = random.normal(size=(classes, dimensions))
    points = centres[targets] + noise * random.normal(size=(count, dimensions))
    return points.astype(np.float32), targets.astype(np.int64)


def yardstick(features: head.Floats, targets: head.Ints, strength: float) -> NDArray[np.float64]:
    """scikit-learn's kernel and bias for the same objective, as one matrix [D+1,K]."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=strength, max_iter=5000, tol=1e-6).fit(features.astype(np.float64), targets)
    return np.vstack([model.coef_.T, model.intercept_])


def predict(features: head.Floats, weights: NDArray[np.float64]) -> head.Floats:
    return head.softmax((features @ weights[:-1] + weights[-1]).astype(np.float32))


def test_rows_are_scaled_to_length_one_and_zeros_stay() -> None:
    rows = np.array([[3, 4], [0, 0], [1e-3, 0]], np.float32)
    np.testing.assert_allclose(head.normalise(rows), [[0.6, 0.8], [0, 0], [1, 0]], rtol=1e-6)


def test_probabilities_add_up_to_one_however_large_the_logits() -> None:
    found = head.softmax(np.array([[1e4, 0, -1e4], [0, 0, 0]], np.float32))
    np.testing.assert_allclose(found, [[1, 0, 0], [1 / 3] * 3], atol=1e-6)


def test_the_gradient_is_that_of_the_objective() -> None:
    features, targets = blobs(50, 4, 3)
    objective = head._objective(head.normalise(features), targets, 3, 10.0)
    point = np.random.default_rng(1).normal(size=5 * 3)
    _, gradient = objective(point)
    step = 1e-2
    slopes = [
        (objective(point + step * axis)[0] - objective(point - step * axis)[0]) / (2 * step)
        for axis in np.eye(len(point))
    ]
    np.testing.assert_allclose(gradient, slopes, atol=5e-5)
    assert np.abs(gradient).max() > 1e-2


@pytest.mark.parametrize(("count", "dimensions"), [(300, 20), (60, 200)], ids=["more photos", "more dimensions"])
def test_the_minimum_is_the_one_scikit_learn_finds(count: int, dimensions: int) -> None:
    features, targets = blobs(count, dimensions, 4)
    features = head.normalise(features)
    unseen = head.normalise(blobs(100, dimensions, 4, seed=7)[0])
    strengths = [1.0, 10.0, 100.0]
    fits = head.minimise(features, targets, 4, strengths)
    for strength, (kernel, bias) in zip(strengths, fits, strict=True):
        assert (kernel.shape, bias.shape) == ((dimensions, 4), (4,))
        assert kernel.dtype == bias.dtype == np.float32
        wanted = yardstick(features, targets, strength)
        # A constant added to all biases changes nothing.
        np.testing.assert_allclose(kernel, wanted[:-1], atol=5e-3 * np.abs(wanted).max())
        found = head.softmax(unseen @ kernel + bias)
        np.testing.assert_allclose(found, predict(unseen, wanted), atol=5e-3)


def test_the_bias_is_not_regularised() -> None:
    targets = np.array([0] * 90 + [1] * 10)
    [(kernel, bias)] = head.minimise(np.zeros((100, 3), np.float32), targets, 2, [1e-3])
    np.testing.assert_allclose(head.softmax(bias[None])[0], [0.9, 0.1], atol=1e-3)
    np.testing.assert_array_equal(kernel, 0)


@pytest.mark.parametrize("wrong", [0.2, 1.0, 5.0])
def test_the_temperature_undoes_logits_that_are_too_sure_or_not_sure_enough(wrong: float) -> None:
    random = np.random.default_rng(3)
    logits = random.normal(size=(20_000, 4)).astype(np.float32) * 2
    targets = np.array([random.choice(4, p=row / row.sum()) for row in head.softmax(logits).astype(float)])
    temperature = head.fit_temperature(logits * np.float32(wrong), targets)
    assert temperature == pytest.approx(wrong, rel=0.05)


def test_tempering_never_makes_the_log_loss_worse() -> None:
    for seed in range(5):
        random = np.random.default_rng(seed)
        logits = (random.normal(size=(200, 5)) * 10**seed / 100).astype(np.float32)
        targets = random.integers(0, 5, 200)
        tempered = head.softmax(logits / np.float32(head.fit_temperature(logits, targets)))
        assert head.log_loss(tempered, targets) <= head.log_loss(head.softmax(logits), targets) + 1e-4


def test_folds_hold_out_every_photo_once_and_spread_every_label_evenly() -> None:
    targets = np.repeat([0, 1, 2], [23, 50, 7])
    seen = np.zeros(80, int)
    for fitted, held_out in head.stratified_folds(targets, 5, seed=1):
        seen[held_out] += 1
        assert sorted([*fitted, *held_out]) == list(range(80))
        for label, count in ((0, 23), (1, 50), (2, 7)):
            assert count // 5 <= (targets[held_out] == label).sum() <= -(-count // 5)
        assert abs(len(held_out) - 16) <= 1
    assert (seen == 1).all()


def test_a_fit_is_repeatable_to_the_bit() -> None:
    features, targets = blobs(120, 40, 3)
    (one, selection), (other, again) = (head.fit(features, targets, 3, seed=4) for _ in range(2))
    np.testing.assert_array_equal(one.kernel, other.kernel)
    np.testing.assert_array_equal(one.bias, other.bias)
    assert one.temperature == other.temperature
    assert selection.losses == again.losses


def test_the_strength_with_the_least_held_out_loss_is_taken() -> None:
    features, targets = blobs(150, 30, 3)
    fitted, selection = head.fit(features, targets, 3)
    assert selection.method == "cross-validation"
    assert selection.losses.keys() == set(head.STRENGTHS)
    assert selection.losses[selection.strength] == min(selection.losses.values())
    assert fitted.temperature == selection.temperature
    loss = head.log_loss(selection.probabilities, selection.targets)
    assert loss == pytest.approx(selection.losses[selection.strength])
    np.testing.assert_array_equal(selection.targets, targets)


def test_held_out_probabilities_come_from_heads_that_have_not_seen_the_photo() -> None:
    # Labels that mean nothing can be learned by heart, and not foretold.
    random = np.random.default_rng(0)
    features = random.normal(size=(100, 300)).astype(np.float32)
    targets = random.permutation(np.arange(100) % 4)
    fitted, selection = head.fit(features, targets, 4)
    assert (selection.probabilities.argmax(axis=1) == targets).mean() < 0.45
    assert selection.losses[selection.strength] > 1.3


def test_few_validation_photos_join_the_others_and_many_are_held_out() -> None:
    features, targets = blobs(200, 10, 2)
    few = blobs(50, 10, 2, seed=1)
    _, selection = head.fit(features, targets, 2, validation=few)
    assert (selection.method, len(selection.targets)) == ("cross-validation", 250)
    many = blobs(head.ENOUGH_VALIDATION, 10, 2, seed=1)
    fitted, selection = head.fit(features, targets, 2, validation=many)
    assert (selection.method, len(selection.targets)) == ("validation", head.ENOUGH_VALIDATION)
    # Once C is chosen, all photos count.
    everything = head.normalise(np.vstack([features, many[0]]))
    [(kernel, _)] = head.minimise(everything, np.append(targets, many[1]), 2, [selection.strength])
    np.testing.assert_allclose(fitted.kernel, kernel, atol=1e-4)


def test_a_head_does_not_care_how_long_its_embeddings_are() -> None:
    features, targets = blobs(90, 12, 3)
    fitted, _ = head.fit(features, targets, 3)
    np.testing.assert_allclose(fitted.probabilities(features), fitted.probabilities(features * 7), atol=1e-6)


# --- The requirement ----------------------------------------------------------------------------

RETRAIN_ACCURACY = 0.760
"""retrain.py's head on the same photos and features, five-fold, mean of four repeats."""

LOG_LOSS = 0.77
"""What this head is to reach; retrain.py's has 0.81."""

REPEATS = 4


@pytest.mark.tf
@pytest.mark.slow
def test_the_sample_photos_are_told_apart_as_well_as_by_retrain_with_better_probabilities(
    trained: Trained, capsys: pytest.CaptureFixture[str]
) -> None:
    features, targets, classes = sample_features(trained)
    assert features.shape == (406, 1280)
    ours, theirs = [], []
    for seed in range(REPEATS):
        ours.append(np.zeros((406, classes), np.float32))
        theirs.append(np.zeros((406, classes), np.float32))
        for fitted_on, held_out in head.stratified_folds(targets, 5, seed=100 + seed):
            fitted, _ = head.fit(features[fitted_on], targets[fitted_on], classes, seed=seed)
            ours[-1][held_out] = fitted.probabilities(features[held_out])
            normalised = head.normalise(features)
            weights = yardstick(normalised[fitted_on], targets[fitted_on], 30.0)
            theirs[-1][held_out] = predict(normalised[held_out], weights)
    figures = {}
    with capsys.disabled():
        print()
        for name, runs in (("hubhead", ours), ("scikit-learn, C=30", theirs)):
            right = np.mean([(run.argmax(axis=1) == targets).sum() for run in runs])
            loss = np.mean([head.log_loss(run, targets) for run in runs])
            share = proportion(round(right), 406)
            print(f"{name}: {share}, mean of {REPEATS} x 5 folds {right / 406:.2%}, log-loss {loss:.3f}")
            figures[name] = right / 406, loss
    (accuracy, loss), (their_accuracy, their_loss) = figures.values()
    assert accuracy >= RETRAIN_ACCURACY - 0.01
    assert loss <= LOG_LOSS
    assert accuracy >= their_accuracy - 0.01
    assert loss <= their_loss + 0.005


def sample_features(trained: Trained) -> tuple[head.Floats, head.Ints, int]:
    """Embeddings float32 [406,1280] and classes of the sample photos, as the training had them."""
    from batch.embeddings import EmbeddingStore
    from trainer.train import gather

    manifest = trained.result.bundle.manifest
    store = EmbeddingStore(trained.settings.embedding_store, manifest.fingerprint, manifest.dimension)
    folder = dataset.scan(Path(trained.settings.image_dir))
    found = gather(folder.photos, store)
    targets = np.array([example.label for example in found.examples], np.int64)
    return found.embeddings, targets, len(folder.labels)
