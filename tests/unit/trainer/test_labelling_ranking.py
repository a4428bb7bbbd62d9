"""Ranking of photos to label: greedy coverage, margin, novelty and random order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from trainer.labelling import ranking
from trainer.labelling.ranking import Covering, Predictions, greedy_coverage, predict, rank
from trainer.labelling.types import Strategy

Array = NDArray[np.float32]


def similarities(rows: Array, columns: Array, centre: Array) -> Array:
    """Return max(0, cosine)^2 of centred rows and columns."""
    left, right = (part - centre for part in (rows, columns))
    left /= np.linalg.norm(left, axis=1, keepdims=True)
    right /= np.linalg.norm(right, axis=1, keepdims=True)
    return np.maximum(left @ right.T, 0) ** 2


def greedy_by_definition(table: Array, value: Array, count: int) -> list[int]:
    """Return the greedy order, computing every gain in every step."""
    order: list[int] = []
    for _ in range(count):
        gains = np.maximum(table - value, 0).sum(axis=1)
        gains[order] = -1
        order.append(int(gains.argmax()))
        value = np.maximum(value, table[order[-1]])
    return order


def make_predictions(probabilities: Array) -> Predictions:
    return predict(probabilities, lambda rows: np.asarray(rows, np.float32))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.booleans(), st.booleans())
def test_lazy_greedy_is_the_greedy_order(seed: int, weighted: bool, covered: bool) -> None:
    random = np.random.default_rng(seed)
    rows = random.normal(size=(40, 6)).astype(np.float32)
    u = random.uniform(0.1, 1, 40).astype(np.float32) if weighted else np.ones(40, np.float32)
    covering = random.normal(size=(3, 6)).astype(np.float32) if covered else None
    centre = rows.mean(axis=0)
    table = similarities(rows, rows, centre) * u * u[:, None]
    value = np.zeros(40, np.float32)
    if covering is not None:
        value = (similarities(covering, rows, centre) * u).max(axis=0)
    found = greedy_coverage(rows, rows, weights=u, sample_weights=u, covering=covering, count=10)
    expected = greedy_by_definition(table, value, 10)
    gains = [np.maximum(table[order], value).max(axis=0).sum() for order in (found, expected)]
    # Ties may be broken differently by rounding; the coverage reached is the same.
    assert gains[0] == pytest.approx(gains[1], rel=1e-4)
    assert len(set(found.tolist())) == 10


def test_the_first_photos_come_from_different_clusters() -> None:
    random = np.random.default_rng(0)
    centres = 5 * random.normal(size=(4, 16))
    cluster = np.repeat(np.arange(4), 25)
    rows = (centres[cluster] + random.normal(size=(100, 16))).astype(np.float16)
    assert {int(cluster[row]) for row in rank(Strategy.DIVERSE, rows, count=4)} == {0, 1, 2, 3}


def test_clusters_that_labelled_photos_cover_come_last() -> None:
    random = np.random.default_rng(0)
    centres = 5 * random.normal(size=(4, 16))
    cluster = np.repeat(np.arange(4), 25)
    rows = (centres[cluster] + random.normal(size=(100, 16))).astype(np.float16)
    found = rank(Strategy.DIVERSE, rows, labelled=Covering(rows[cluster < 2][::5]), count=2)
    assert {int(cluster[row]) for row in found} == {2, 3}


def test_uncertain_photos_are_ordered_by_their_margin() -> None:
    probabilities = np.array([[0.9, 0.1, 0], [0.5, 0.45, 0.05], [0.4, 0.2, 0.4], [0.6, 0.3, 0.1]], np.float32)
    found = rank(Strategy.UNCERTAIN, probabilities, predictions=make_predictions(probabilities), count=3)
    assert found.tolist() == [2, 1, 3]


def test_mixed_prefers_uncertain_photos_among_equally_covering_ones() -> None:
    random = np.random.default_rng(1)
    rows = random.normal(size=(200, 8)).astype(np.float32)
    top = np.where(np.arange(200) < 100, 0.99, 0.4).astype(np.float32)
    predictions = Predictions(np.zeros(200, np.int32), top, top)
    found = rank(Strategy.MIXED, rows, predictions=predictions, count=20)
    assert (found >= 100).all()


def test_novel_photos_come_from_the_most_novel_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking, "CANDIDATES", 40)
    rows = np.random.default_rng(0).normal(size=(300, 8)).astype(np.float32)
    novelty = np.arange(300, dtype=np.float32)
    assert (rank(Strategy.NOVEL, rows, novelty=novelty, count=10) >= 260).all()


def test_random_order_is_reproducible_and_of_available_photos() -> None:
    rows = np.zeros((50, 4), np.float32)
    available = np.arange(50) % 2 == 0
    first, second, other = (rank(Strategy.RANDOM, rows, available=available, seed=seed) for seed in (1, 1, 2))
    assert first.tolist() == second.tolist() != other.tolist()
    assert sorted(first.tolist()) == list(range(0, 50, 2))


@pytest.mark.parametrize("strategy", [Strategy.MIXED, Strategy.UNCERTAIN, Strategy.DIVERSE, Strategy.NOVEL])
def test_all_strategies_work_without_a_model_and_on_many_photos(
    strategy: Strategy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranking, "CANDIDATES", 64)
    monkeypatch.setattr(ranking, "SAMPLE", 64)
    rows = np.random.default_rng(0).normal(size=(1000, 8)).astype(np.float16)
    available = np.random.default_rng(1).random(1000) < 0.5
    found = rank(strategy, rows, available=available, count=32)
    assert len(set(found.tolist())) == 32
    assert available[found].all()


def test_no_photo_is_left() -> None:
    rows = np.zeros((3, 4), np.float32)
    for strategy in (Strategy.MIXED, Strategy.RANDOM):
        assert rank(strategy, rows, available=np.zeros(3, bool)).tolist() == []


def test_predictions_of_many_blocks_are_those_of_the_rows() -> None:
    random = np.random.default_rng(0)
    probabilities = random.dirichlet(np.ones(5), 5000).astype(np.float32)
    found = make_predictions(probabilities)
    ordered = np.sort(probabilities, axis=1)
    assert found.best.tolist() == probabilities.argmax(axis=1).tolist()
    np.testing.assert_array_equal(found.top, ordered[:, -1])
    np.testing.assert_allclose(found.margin, ordered[:, -1] - ordered[:, -2], atol=1e-7)


def test_stored_embeddings_are_predicted_as_their_numbers() -> None:
    halves = np.random.default_rng(0).normal(size=(700, 8)).astype(np.float16)
    kernel = np.random.default_rng(1).normal(size=(8, 3)).astype(np.float32)

    def probabilities(rows: Array) -> Array:
        assert rows.dtype == np.float32
        return rows @ kernel

    found, expected = (predict(rows, probabilities) for rows in (halves, halves.astype(np.float32)))
    assert found.best.tolist() == expected.best.tolist()
    np.testing.assert_array_equal(found.top, expected.top)


def test_suspects_have_their_own_order() -> None:
    with pytest.raises(ValueError, match="suspects"):
        rank(Strategy.SUSPECTS, np.zeros((3, 4), np.float32))
