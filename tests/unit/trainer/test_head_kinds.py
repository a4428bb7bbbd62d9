"""Kinds of heads (linear, hidden) and class weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.head import blobs, fit_exactly
from tests.support.head_kinds import KINDS, Data, fitted
from trainer import heads
from trainer.heads import HeadSettings
from trainer.heads.calibration import fit_mixture, fit_temperature
from trainer.heads.settings import class_weights

if TYPE_CHECKING:
    pass


def with_rare_label(*, noise: float = 2.0, seed: int = 0) -> Data:
    """Return three clusters, one label each, the last of them rare."""
    random = np.random.default_rng(seed)
    targets = np.repeat([0, 1, 2], [300, 270, 30])
    centres = np.random.default_rng(5).normal(size=(3, 10))
    return (centres[targets] + noise * random.normal(size=(600, 10))).astype(np.float32), targets


def chessboard(count: int, seed: int = 0) -> Data:
    """Return two labels on a two by two chessboard, which are not linearly separable."""
    random = np.random.default_rng(seed)
    points = random.uniform(-1, 1, size=(count, 6)).astype(np.float32)
    return points, ((points[:, 0] > 0) ^ (points[:, 1] > 0)).astype(np.int64)


@given(counts=st.lists(st.integers(0, 1000), min_size=1, max_size=6).filter(any))
def test_balanced_class_weights_give_every_label_the_same_total(counts: list[int]) -> None:
    weights = class_weights(np.array(counts), "balanced")
    total = weights * counts
    present = np.array(counts) > 0
    np.testing.assert_allclose(total[present], sum(counts) / present.sum(), rtol=1e-5)
    np.testing.assert_array_equal(class_weights(np.array(counts), "none"), 1)


@settings(max_examples=10, deadline=None)
@given(times=st.lists(st.integers(1, 4), min_size=3, max_size=3), seed=st.integers(0, 50))
def test_a_class_weight_equals_copies_of_the_photos(times: list[int], seed: int) -> None:
    rows, targets = blobs(90, 6, 3, seed=seed)
    features = heads.Scaling.from_embeddings(rows).features(rows)
    copies = np.repeat(np.arange(90), np.array(times)[targets])
    # The loss is a weighted mean, so C scales with the sum of the weights.
    weights = np.array(times, np.float32)
    strength = 10.0
    (logistic, _), (kernel, bias) = fit_exactly(features, targets, strength * len(copies) / 90, weights)
    (wanted, _), (wanted_kernel, wanted_bias) = fit_exactly(features[copies], targets[copies], strength)
    np.testing.assert_allclose(logistic, wanted, atol=2e-2 * np.abs(wanted).max())
    np.testing.assert_allclose(kernel, wanted_kernel, rtol=1e-3, atol=1e-3 * np.abs(wanted_kernel).max())
    np.testing.assert_allclose(bias, wanted_bias, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("more", [1, 10], ids=["few", "many"])
def test_balanced_heads_find_more_of_the_rare_label(kind: str, more: int) -> None:
    parts = [with_rare_label(seed=seed) for seed in range(more)]
    data = np.concatenate([rows for rows, _ in parts]), np.concatenate([part for _, part in parts])
    unseen, of_unseen = with_rare_label(seed=70)
    found = {}
    for how in ("none", "balanced"):
        model, selection = fitted(data, 3, kind=kind, class_weight=how, width=16)
        probabilities = model.probabilities(unseen)
        found[how] = (
            (probabilities.argmax(axis=1) == of_unseen)[of_unseen == 2].mean(),
            probabilities[:, 2].mean(),
        )
        assert selection.settings["class_weight"] == how
    assert found["balanced"][0] > found["none"][0]
    # The mean probabilities are those of the label frequencies, or of equal ones.
    assert found["none"][1] == pytest.approx(0.05, abs=0.03)
    assert found["balanced"][1] > 0.12


@pytest.mark.parametrize("kind", KINDS)
def test_balanced_probabilities_are_calibrated_where_labels_are_equally_frequent(kind: str) -> None:
    model, selection = fitted(with_rare_label(), 3, kind=kind, class_weight="balanced", width=16)
    weights = class_weights(np.bincount(selection.targets), "balanced")[selection.targets]
    logits = np.log(np.maximum(selection.probabilities, 1e-12))
    assert fit_temperature(logits, selection.targets, weights) == pytest.approx(1, abs=0.02)
    assert model.temperature > 0


def test_a_hidden_layer_learns_classes_that_are_not_linearly_separable() -> None:
    unseen, of_unseen = chessboard(1000, seed=7)
    linear, _ = fitted(chessboard(1500), 2)
    hidden, selection = fitted(chessboard(1500), 2, kind="hidden", width=64)
    assert (linear.probabilities(unseen).argmax(axis=1) == of_unseen).mean() < 0.6
    assert (hidden.probabilities(unseen).argmax(axis=1) == of_unseen).mean() > 0.85
    assert hidden.hidden is not None
    assert hidden.hidden.kernel.shape == (6, 64)
    assert selection.settings["epochs"] > 0
    out_of_fold = heads.log_loss(selection.probabilities, selection.targets)
    assert heads.log_loss(hidden.probabilities(unseen), of_unseen) == pytest.approx(out_of_fold, abs=0.1)


def test_a_useless_hidden_layer_does_not_increase_the_log_loss() -> None:
    data, (unseen, of_unseen) = blobs(400, 20, 3, noise=4), blobs(2000, 20, 3, noise=4, seed=0)
    unseen = unseen + np.random.default_rng(3).normal(size=unseen.shape).astype(np.float32)
    linear, hidden = (fitted(data, 3, kind=kind)[0].probabilities(unseen) for kind in ("linear", "hidden"))
    assert heads.log_loss(hidden, of_unseen) <= heads.log_loss(linear, of_unseen) + 0.02


def test_the_width_with_the_lowest_held_out_loss_is_selected() -> None:
    _, selection = fitted(chessboard(600), 2, kind="hidden")
    assert selection.settings["width"] in heads.hidden.WIDTHS
    _, selection = fitted(chessboard(600), 2, kind="hidden", width=8)
    assert selection.settings["width"] == 8


@pytest.mark.parametrize("kind", KINDS)
def test_a_fit_of_each_kind_is_repeatable_to_the_bit(kind: str) -> None:
    (one, _), (other, _) = (fitted(chessboard(300), 2, kind=kind, width=16) for _ in range(2))
    np.testing.assert_array_equal(one.kernel, other.kernel)
    assert one.temperature == other.temperature
    if one.hidden and other.hidden:
        np.testing.assert_array_equal(one.hidden.output, other.hidden.output)


def test_the_seed_determines_the_hidden_layer() -> None:
    one, other = (
        heads.fit(*chessboard(300), 2, settings=HeadSettings(kind="hidden", width=16), seed=seed)[0]
        for seed in (0, 1)
    )
    assert one.hidden is not None
    assert other.hidden is not None
    assert (one.hidden.kernel != other.hidden.kernel).any()


def test_the_probabilities_of_a_hidden_head_match_the_formula() -> None:
    model, _ = fitted(chessboard(600), 2, kind="hidden", width=8)
    assert model.hidden is not None
    rows = chessboard(9000, seed=2)[0]
    standardised = (rows.astype(np.float64) - model.scaling.mean) * model.scaling.scale
    features = standardised / np.linalg.norm(standardised, axis=1, keepdims=True)
    raised = np.maximum(features @ model.hidden.kernel + model.hidden.bias, 0)
    logits = (features @ model.kernel + raised @ model.hidden.output + model.bias) / model.temperature
    wanted = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(model.probabilities(rows), wanted, atol=1e-4)
    assert model.probabilities(rows[:0]).shape == (0, 2)


@pytest.mark.parametrize("chosen", [{"kind": "deep"}, {"class_weight": "heavy"}])
def test_unknown_settings_are_an_error(chosen: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=next(iter(chosen.values()))):
        HeadSettings(**chosen)  # type: ignore[arg-type]


def test_an_uninformative_classifier_gets_no_weight() -> None:
    random = np.random.default_rng(0)
    targets = random.integers(0, 3, 3000)
    knows = (2 * np.eye(3)[targets] + random.normal(size=(3000, 3))).astype(np.float32)
    noise = random.normal(size=(3000, 3)).astype(np.float32)
    mixture = fit_mixture([knows, noise], targets)
    assert mixture.weights[1] < 0.05 * mixture.weights[0]
    assert mixture.loss <= fit_mixture([knows], targets).loss + 1e-4
