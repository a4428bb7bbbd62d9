"""Cross-validation: out-of-fold predictions, groups in one fold, and figures over the repeats."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.errors import InputError
from tests.support.evaluation_metrics import LABELS
from tests.support.head import blobs
from trainer import heads
from trainer.evaluation.cross_validation import CrossValidationScheme, _make_folds, cross_validate
from trainer.heads import HeadSettings


def test_cross_validation_predicts_every_photo_out_of_fold() -> None:
    # Random labels can be memorised, but not predicted.
    random = np.random.default_rng(0)
    embeddings = random.normal(size=(100, 300)).astype(np.float32)
    targets = random.permutation(np.arange(100) % 4)
    found = cross_validate(embeddings, targets, LABELS, scheme=CrossValidationScheme(folds=4, repeats=2))
    assert (found.folds, len(found.runs), found.probabilities.shape) == (4, 2, (2, 100, 4))
    np.testing.assert_allclose(found.probabilities.sum(axis=2), 1, rtol=1e-5)
    assert found.accuracy.n == 100
    assert found.accuracy.value < 0.45


def test_cross_validation_reports_mean_and_deviation_over_repeats() -> None:
    scheme = CrossValidationScheme(folds=3, repeats=3, seed=5)
    embeddings, targets = blobs(90, 20, 3)
    found = cross_validate(embeddings, targets, LABELS[:3], scheme=scheme)
    accuracies = [(run.argmax(axis=1) == targets).mean() for run in found.probabilities]
    assert found.figures["accuracy"].mean == pytest.approx(np.mean(accuracies))
    assert found.figures["accuracy"].deviation == pytest.approx(np.std(accuracies, ddof=1))
    losses = [heads.log_loss(run, targets) for run in found.probabilities]
    assert found.log_loss == pytest.approx(np.mean(losses))
    assert found.accuracy.value == pytest.approx(np.mean(accuracies), abs=1 / 180)
    assert found.recall["apple"].n == 30
    assert found == cross_validate(embeddings, targets, LABELS[:3], scheme=scheme)
    json.dumps(found.to_dict(), allow_nan=False)


def test_deviation_of_one_repeat_is_null_in_json() -> None:
    record = cross_validate(*blobs(40, 8, 2), ["a", "b"], scheme=CrossValidationScheme(folds=2)).to_dict()
    assert record["figures"]["accuracy"]["deviation"] is None
    assert (record["folds"], record["repeats"]) == (2, 1)


def test_groups_prevent_leakage_between_near_copies() -> None:
    # Three near-copies of each photo with random labels: in different folds they leak the label.
    random = np.random.default_rng(0)
    photos, copies = 60, 3
    embeddings = np.repeat(random.normal(size=(photos, 100)), copies, axis=0)
    embeddings = (embeddings + random.normal(0, 0.05, embeddings.shape)).astype(np.float32)
    targets = np.repeat(random.permutation(np.arange(photos) % 3), copies)
    groups = np.repeat(np.arange(photos), copies)
    apart = cross_validate(embeddings, targets, LABELS[:3], scheme=CrossValidationScheme(folds=4))
    together = cross_validate(
        embeddings, targets, LABELS[:3], scheme=CrossValidationScheme(folds=4), groups=groups
    )
    assert apart.accuracy.value > 0.95
    assert together.accuracy.value < 0.55


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 12)), min_size=1, max_size=80),
    st.integers(2, 6),
    st.integers(0, 5),
)
def test_folds_hold_out_every_photo_once_with_whole_groups_and_stratified_labels(
    photos: list[tuple[int, int]], folds: int, seed: int
) -> None:
    targets = np.array([label for label, _ in photos])
    # Groups of number 9 and above have a single photo.
    groups = np.array([group if group < 9 else 100 + row for row, (_, group) in enumerate(photos)])
    found = _make_folds(targets, groups, folds, seed)
    assert len(found) == folds
    assert sorted(np.concatenate(found).tolist()) == list(range(len(photos)))
    for group in set(groups.tolist()):
        assert sum(bool((groups[rows] == group).any()) for rows in found) == 1
    largest = max(int((groups == group).sum()) for group in set(groups.tolist()))
    counts = np.array([np.bincount(targets[rows], minlength=4) for rows in found])
    if largest == 1:
        assert (counts.max(axis=0) - counts.min(axis=0)).max() <= 1


def test_heads_are_fitted_with_the_settings_and_views() -> None:
    scheme = CrossValidationScheme(folds=3)
    embeddings, targets = blobs(90, 20, 3)
    plain = cross_validate(embeddings, targets, LABELS[:3], scheme=scheme)
    weights = HeadSettings(kind="hidden", width=16)
    hidden = cross_validate(embeddings, targets, LABELS[:3], scheme=scheme, settings=weights)
    noise = np.random.default_rng(1).normal(0, 3, embeddings.shape).astype(np.float32)
    done: list[tuple[int, int]] = []
    viewed = cross_validate(
        embeddings,
        targets,
        LABELS[:3],
        scheme=scheme,
        views=[embeddings + noise],
        progress=lambda *counts: done.append(counts),
    )
    for other in (hidden, viewed):
        assert np.abs(other.probabilities - plain.probabilities).max() > 1e-3
    assert done == [(1, 3), (2, 3), (3, 3)]


def test_label_with_photos_of_one_group_is_rejected() -> None:
    embeddings, targets = blobs(12, 5, 2)
    groups = np.where(targets == 1, 99, np.arange(12))
    with pytest.raises(InputError, match="'b' has 6 photos, all of one group"):
        cross_validate(embeddings, targets, ["a", "b"], scheme=CrossValidationScheme(folds=2), groups=groups)


@pytest.mark.parametrize(
    ("targets", "folds", "repeats", "message"),
    [
        ([0, 0, 1, 1], 1, 1, "1 folds"),
        ([0, 0, 1, 1], 2, 0, "0 repeats"),
        ([0, 0, 0, 1], 2, 1, "'b' has 1 photo"),
    ],
)
def test_too_few_folds_repeats_or_photos_are_rejected(
    targets: list[int], folds: int, repeats: int, message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        cross_validate(
            np.zeros((4, 3), np.float32),
            np.array(targets),
            ["a", "b"],
            scheme=CrossValidationScheme(folds, repeats),
        )
    assert caught.value.remedy
