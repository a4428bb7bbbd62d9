"""Simulated labelling: curves, labels needed, flipped labels and rankings."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.bench.labelling import simulate, suspects
from tests.bench.labelling.curve import draw_curves
from tests.bench.labelling.data import Pool
from tests.bench.labelling.simulate import Scheme
from tests.support.head import blobs
from trainer.labelling.types import Strategy


@pytest.fixture(scope="module")
def pool() -> Pool:
    embeddings, targets = blobs(160, 12, 4, noise=0.5)
    return Pool("blobs", embeddings, targets, ("a", "b", "c", "d"))


def test_labels_needed_are_interpolated_and_count_from_where_the_curve_stays() -> None:
    budgets = [10, 20, 30, 40]
    assert simulate.labels_needed(np.array([0.2, 0.4, 0.6, 0.8]), budgets, 0.5) == pytest.approx(25)
    assert simulate.labels_needed(np.array([0.6, 0.4, 0.6, 0.8]), budgets, 0.5) == pytest.approx(25)
    assert simulate.labels_needed(np.array([0.6, 0.7, 0.7, 0.8]), budgets, 0.5) == 10
    assert math.isnan(simulate.labels_needed(np.array([0.1, 0.2, 0.3, 0.4]), budgets, 0.5))


def test_the_random_strategy_needs_as_many_labels_as_the_reference() -> None:
    curves = np.random.default_rng(0).normal([0.3, 0.5, 0.7], 0.01, (20, 3))
    needed, low, high = simulate.interval_of_labels(curves, curves, [10, 20, 30], 20)
    assert (needed, low, high) == pytest.approx((20, 20, 20))


@pytest.mark.parametrize("strategy", simulate.STRATEGIES)
def test_accuracy_rises_with_the_labels_and_depends_on_the_seed_alone(pool: Pool, strategy: Strategy) -> None:
    first = simulate.simulate(pool, strategy, Scheme(10, 6), seed=1)
    assert first == simulate.simulate(pool, strategy, Scheme(10, 6), seed=1)
    assert len(first) == 6
    assert first[-1] > max(0.8, first[0] - 0.1)


def test_a_tenth_of_the_labels_is_flipped_to_others(pool: Pool) -> None:
    given = suspects.flip_labels(pool, 0)
    assert (given != pool.targets).sum() == 16
    assert set(given.tolist()) <= set(range(4))


def test_precision_of_a_perfect_and_of_a_reversed_ranking() -> None:
    wrong = np.array([True, False, False, True, False])
    assert suspects.measure_ranking(np.array([0, 3, 1, 2, 4]), wrong) == (1.0, 1.0)
    at_n, average = suspects.measure_ranking(np.array([4, 2, 1, 3, 0]), wrong)
    assert at_n == 0
    assert average == pytest.approx((1 / 4 + 2 / 5) / 2)


def test_flipped_labels_are_ranked_before_others(pool: Pool) -> None:
    case = suspects.FlippedLabels.draw(pool, 0)
    assert case.wrong.sum() == 16
    [found] = suspects.compare([case], None)
    assert [name for name, _, _ in found] == ["hubhead train", "self-confidence of all"]
    assert all(precision > 0.7 for _, precision, _ in found)


def test_the_drawing_has_a_curve_and_a_name_for_each_strategy() -> None:
    random = np.random.default_rng(0)
    curves = {name: random.uniform(0.4, 0.8, (5, 4)) for name in ("random", "mixed", "uncertain", "diverse")}
    text = draw_curves({"a <b>": curves, "c": curves}, {"a <b>": [20, 40, 60, 80], "c": [5, 10, 15, 20]}, 60)
    assert text.count("<polyline") == 8
    assert text.count(">mixed</text>") == 2
    assert "a &lt;b&gt;" in text
    assert "nan" not in text
