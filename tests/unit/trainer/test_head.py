"""Training of a linear head: exact minimum, calibration, repeatability, selection of C."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.support.head import blobs, fit_exactly, of_length_one, predict, yardstick
from trainer import heads
from trainer.heads.block_training import ENOUGH_VALIDATION
from trainer.heads.calibration import fit_temperature
from trainer.heads.fitter import EXACT_TOLERANCE, Fitter
from trainer.heads.linear import SHRINKAGE, loss_and_gradient
from trainer.heads.selection import STRENGTHS
from trainer.heads.streaming import Blocks

if TYPE_CHECKING:
    pass


def objective(
    features: heads.Floats, targets: heads.Ints, weights: NDArray[np.float64], strength: float
) -> float:
    """Return the objective of logistic regression for kernel and bias as one matrix [D+1,K]."""
    halves = weights.astype(np.float32)
    equal = np.ones(halves.shape[1], np.float32)
    value, _, _ = loss_and_gradient(Blocks.from_array(features, targets), (halves[:-1], halves[-1]), equal)
    return value + float((weights[:-1] ** 2).sum()) / (2 * strength * len(targets))


def test_features_are_standardised_and_of_length_one() -> None:
    embeddings, _ = blobs(500, 6, 2)
    embeddings = embeddings * np.float32([1, 2, 3, 4, 5, 0]) + 7
    scaling = heads.Scaling.from_embeddings(embeddings)
    features = scaling.features(embeddings)
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, rtol=1e-5)
    standardised = (embeddings - scaling.mean) * scaling.scale
    np.testing.assert_allclose(standardised.mean(axis=0), 0, atol=1e-4)
    assert (standardised.std(axis=0)[:-1] > 0.5).all()
    assert (standardised.std(axis=0) < 1).all()
    assert (features[:, -1] == 0).all()  # a constant entry stays zero rather than being scaled up
    np.testing.assert_array_equal(scaling.features(scaling.mean[None]), np.zeros((1, 6)))


def test_softmax_is_stable_for_large_logits() -> None:
    found = heads.softmax(np.array([[1e4, 0, -1e4], [0, 0, 0]], np.float32))
    np.testing.assert_allclose(found, [[1, 0, 0], [1 / 3] * 3], atol=1e-6)


@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [0.2, 1.0, 3.0]], ids=["equal", "weighted"])
def test_the_gradient_matches_finite_differences(weights: list[float]) -> None:
    features, targets = blobs(50, 4, 3)
    blocks = Blocks.from_array(of_length_one(features), targets, size=20)

    def value(point: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        halves = point.reshape(5, 3).astype(np.float32)
        found, slopes, tilt = loss_and_gradient(
            blocks, (halves[:-1], halves[-1]), np.array(weights, np.float32)
        )
        return found, np.vstack([slopes, tilt]).ravel()

    point = np.random.default_rng(1).normal(size=5 * 3)
    _, gradient = value(point)
    step = 1e-2
    slopes = [
        (value(point + step * axis)[0] - value(point - step * axis)[0]) / (2 * step)
        for axis in np.eye(len(point))
    ]
    np.testing.assert_allclose(gradient, slopes, atol=5e-5)
    assert np.abs(gradient).max() > 1e-2


@pytest.mark.parametrize(
    ("count", "dimensions"), [(300, 20), (60, 200)], ids=["more photos", "more dimensions"]
)
def test_logistic_regression_matches_scikit_learn(count: int, dimensions: int) -> None:
    features, targets = blobs(count, dimensions, 4)
    features = of_length_one(features)
    unseen = of_length_one(blobs(100, dimensions, 4, seed=7)[0])
    strengths = [1.0, 10.0, 100.0]
    weights = np.ones(4, np.float32)
    fitter = Fitter.from_array(features, targets, weights, tolerance=EXACT_TOLERANCE)
    for strength in strengths:  # each fit begins at the result of the previous one
        kernel, bias = fitter.fit(strength)[0]
        assert (kernel.shape, bias.shape) == ((dimensions, 4), (4,))
        assert kernel.dtype == bias.dtype == np.float32
        wanted = yardstick(features, targets, strength, tolerance=1e-8)
        # Only the kernel is unique: a constant added to all biases has no effect.
        np.testing.assert_allclose(kernel, wanted[:-1], atol=1e-2 * np.abs(wanted).max())
        found = heads.softmax(unseen @ kernel + bias)
        np.testing.assert_allclose(found, predict(unseen, wanted), atol=2e-2)
        ours = objective(features, targets, np.vstack([kernel, bias]).astype(np.float64), strength)
        assert ours <= objective(features, targets, wanted, strength) + 1e-5


def test_the_bias_is_not_regularised() -> None:
    targets = np.array([0] * 90 + [1] * 10)
    kernel, bias = fit_exactly(np.zeros((100, 3), np.float32), targets, 1e-3)[0]
    np.testing.assert_allclose(heads.softmax(bias[None])[0], [0.9, 0.1], atol=1e-3)
    np.testing.assert_array_equal(kernel, 0)


@pytest.mark.parametrize("wrong", [0.2, 1.0, 5.0])
def test_the_temperature_corrects_over_and_underconfident_logits(wrong: float) -> None:
    random = np.random.default_rng(3)
    logits = random.normal(size=(20_000, 4)).astype(np.float32) * 2
    targets = np.array([random.choice(4, p=row / row.sum()) for row in heads.softmax(logits).astype(float)])
    temperature = fit_temperature(logits * np.float32(wrong), targets)
    assert temperature == pytest.approx(wrong, rel=0.05)


def test_temperature_scaling_never_increases_the_log_loss() -> None:
    for seed in range(5):
        random = np.random.default_rng(seed)
        logits = (random.normal(size=(200, 5)) * 10**seed / 100).astype(np.float32)
        targets = random.integers(0, 5, 200)
        tempered = heads.softmax(logits / np.float32(fit_temperature(logits, targets)))
        assert heads.log_loss(tempered, targets) <= heads.log_loss(heads.softmax(logits), targets) + 1e-4


def test_stratified_folds_hold_out_every_photo_once() -> None:
    targets = np.repeat([0, 1, 2], [23, 50, 7])
    seen = np.zeros(80, int)
    for fitted, held_out in heads.stratified_folds(targets, 5, seed=1):
        seen[held_out] += 1
        assert sorted([*fitted, *held_out]) == list(range(80))
        for label, count in ((0, 23), (1, 50), (2, 7)):
            assert count // 5 <= (targets[held_out] == label).sum() <= -(-count // 5)
        assert abs(len(held_out) - 16) <= 1
    assert (seen == 1).all()


def test_a_fit_is_repeatable_to_the_bit() -> None:
    features, targets = blobs(120, 40, 3)
    (one, selection), (other, again) = (heads.fit(features, targets, 3, seed=4) for _ in range(2))
    np.testing.assert_array_equal(one.kernel, other.kernel)
    np.testing.assert_array_equal(one.bias, other.bias)
    assert one.temperature == other.temperature
    assert selection.losses == again.losses


def test_the_strength_with_the_lowest_held_out_loss_is_selected() -> None:
    features, targets = blobs(150, 30, 3)
    _, selection = heads.fit(features, targets, 3)
    assert selection.method == "cross-validation"
    assert selection.losses.keys() >= set(STRENGTHS)
    # The search beyond the first candidates stops without a sufficient gain.
    assert selection.losses[selection.strength] <= min(selection.losses.values()) + 1e-3
    assert selection.losses[selection.strength] <= min(map(selection.losses.__getitem__, STRENGTHS))
    loss = heads.log_loss(selection.probabilities, selection.targets)
    assert loss == pytest.approx(selection.losses[selection.strength])
    np.testing.assert_array_equal(selection.targets, targets)


def test_held_out_probabilities_are_out_of_fold() -> None:
    # Random labels can be memorised but not predicted.
    random = np.random.default_rng(0)
    features = random.normal(size=(100, 300)).astype(np.float32)
    targets = random.permutation(np.arange(100) % 4)
    _, selection = heads.fit(features, targets, 4)
    assert (selection.probabilities.argmax(axis=1) == targets).mean() < 0.45
    assert selection.losses[selection.strength] > 1.3


def test_few_validation_photos_join_the_others_and_many_are_held_out() -> None:
    features, targets = blobs(200, 10, 2)
    few = blobs(50, 10, 2, seed=1)
    _, selection = heads.fit(features, targets, 2, validation=few)
    assert (selection.method, len(selection.targets)) == ("cross-validation", 250)
    many = blobs(ENOUGH_VALIDATION, 10, 2, seed=1)
    fitted, selection = heads.fit(features, targets, 2, validation=many)
    assert (selection.method, len(selection.targets)) == ("validation", ENOUGH_VALIDATION)
    # After C is selected, the head is fitted on all photos.
    np.testing.assert_allclose(fitted.scaling.mean, np.vstack([features, many[0]]).mean(axis=0), atol=1e-5)


def test_the_discriminant_matches_scikit_learn() -> None:
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    for count, dimensions in ((300, 20), (60, 200)):
        features, targets = blobs(count, dimensions, 4)
        kernel, bias = fit_exactly(features, targets, 1.0)[1]
        theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=SHRINKAGE)
        theirs.fit(features.astype(np.float64), targets)
        unseen = blobs(100, dimensions, 4, seed=7)[0]
        np.testing.assert_allclose(
            heads.softmax(unseen @ kernel + bias), theirs.predict_proba(unseen), atol=1e-3
        )


def test_the_head_is_the_mean_of_both_classifiers() -> None:
    features, targets = blobs(150, 30, 3)
    fitted, selection = heads.fit(features, targets, 3)
    scaled = fitted.scaling.features(features)
    (logistic, _), (discriminant, _) = fit_exactly(scaled, targets, selection.strength)
    columns = np.stack([logistic.ravel(), discriminant.ravel()], axis=1).astype(np.float64)
    weights, residual, _, _ = np.linalg.lstsq(columns, fitted.kernel.ravel().astype(np.float64))
    assert residual[0] < 1e-6 * (fitted.kernel**2).sum()
    assert (weights > 0).all()


def test_views_count_as_their_photos_and_views_of_held_out_photos_are_not_used() -> None:
    embeddings, targets = blobs(150, 12, 3)
    same, _ = heads.fit(embeddings, targets, 3)
    doubled, selection = heads.fit(embeddings, targets, 3, views=[embeddings])
    # A view that equals the photo has no effect: C keeps its meaning, and so does the covariance.
    np.testing.assert_allclose(doubled.probabilities(embeddings), same.probabilities(embeddings), atol=2e-2)
    assert len(selection.probabilities) == 150
    noise = np.random.default_rng(0).normal(size=embeddings.shape).astype(np.float32)
    other, _ = heads.fit(embeddings, targets, 3, views=[embeddings + noise, embeddings - noise])
    assert np.abs(other.kernel - same.kernel).max() > 1e-2


@pytest.mark.parametrize("count", [60, 6000], ids=["in memory", "in blocks"])
@pytest.mark.parametrize("kind", ["linear", "hidden"])
@pytest.mark.parametrize("shape", ["one colour", "a colour per label", "one point", "collinear"])
def test_features_without_variance_give_a_usable_head(count: int, kind: heads.Kind, shape: str) -> None:
    random, targets = np.random.default_rng(0), np.arange(count) % 3
    embeddings = {
        "one colour": np.full((count, 96), 0.3),
        "a colour per label": random.random((3, 96))[targets],
        "one point": np.vstack([np.full((count - 1, 96), 0.3), random.random((1, 96))]),
        "collinear": np.outer(targets, random.random(96)),
    }[shape].astype(np.float32)
    head, _ = heads.fit(embeddings, targets, 3, settings=heads.HeadSettings(kind, width=8))
    found = head.probabilities(embeddings)
    assert np.isfinite(found).all()
    if shape in ("a colour per label", "collinear"):
        assert (found.argmax(axis=1) == targets).mean() >= (1 if shape == "a colour per label" else 2 / 3)
    else:
        np.testing.assert_allclose(found, 1 / 3, atol=0.05)  # nothing to tell the labels apart by


def test_one_photo_of_each_label_gives_a_head_that_knows_these_photos() -> None:
    embeddings = np.random.default_rng(0).random((30, 96)).astype(np.float32)
    head, _ = heads.fit(embeddings, np.arange(30), 30)
    assert (head.probabilities(embeddings).argmax(axis=1) == np.arange(30)).all()
