"""Suspected label errors by confident learning."""

from __future__ import annotations

import numpy as np

from trainer.evaluation.label_errors import estimate_joint, find_label_errors, rank_labels


def make_probabilities(targets: np.ndarray, classes: int, confidence: float) -> np.ndarray:
    """Return probabilities float32 [N,K] that favour the targets."""
    rest = (1 - confidence) / (classes - 1)
    found = np.full((len(targets), classes), rest, np.float32)
    found[np.arange(len(targets)), targets] = confidence
    return found


def test_flipped_labels_are_found_with_the_true_label() -> None:
    random = np.random.default_rng(0)
    true = random.integers(0, 4, 200)
    probabilities = make_probabilities(true, 4, 0.9)
    given = true.copy()
    flipped = random.choice(200, 20, replace=False)
    given[flipped] = (true[flipped] + 1) % 4
    found = find_label_errors(probabilities, given)
    assert sorted(found.rows.tolist()) == sorted(flipped.tolist())
    assert np.array_equal(found.suggested, true[found.rows])
    assert found.contradicted == 20


def test_least_confident_label_comes_first() -> None:
    probabilities = np.array([[0.9, 0.1], [0.3, 0.7], [0.1, 0.9], [0.2, 0.8], [0.9, 0.1]], np.float32)
    targets = np.array([0, 0, 0, 1, 0])
    assert rank_labels(probabilities, targets)[:2].tolist() == [2, 1]
    assert find_label_errors(probabilities, targets).rows[0] == 2


def test_correct_labels_are_no_suspects() -> None:
    targets = np.arange(30) % 3
    found = find_label_errors(make_probabilities(targets, 3, 0.6), targets)
    assert not len(found.rows)
    assert found.contradicted == 0


def test_joint_sums_to_the_photos_of_each_label() -> None:
    random = np.random.default_rng(1)
    probabilities = random.dirichlet(np.ones(5), 300).astype(np.float32)
    targets = random.integers(0, 4, 300)  # label 4 has no photo
    joint = estimate_joint(probabilities, targets)
    assert np.allclose(joint.sum(axis=1), np.bincount(targets, minlength=5))


def test_label_without_a_confident_photo_keeps_its_photos() -> None:
    probabilities = np.array([[0.5, 0.5], [0.5, 0.5], [0.4, 0.6]], np.float32)
    joint = estimate_joint(probabilities, np.array([0, 0, 1]))
    assert joint.sum() == 3
