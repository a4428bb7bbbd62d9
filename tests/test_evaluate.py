"""The figures: counted right, each with the interval that statistics gives it."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from trainer.evaluate import evaluate, proportion


@pytest.mark.parametrize(
    ("right", "n"),
    [(0, 1), (1, 1), (0, 40), (40, 40), (34, 45), (1, 3), (500, 1000), (999, 1000), (17, 100_000)],
)
def test_the_interval_is_wilsons(right: int, n: int) -> None:
    from scipy.stats import binomtest

    wanted = binomtest(right, n).proportion_ci(confidence_level=0.95, method="wilson")
    found = proportion(right, n)
    assert (found.value, found.n) == (right / n, n)
    assert found.low == pytest.approx(wanted.low, abs=1e-7)
    assert found.high == pytest.approx(wanted.high, abs=1e-7)


def test_without_photos_nothing_is_known() -> None:
    found = proportion(0, 0)
    assert math.isnan(found.value)
    assert (found.n, found.low, found.high) == (0, 0.0, 1.0)


def test_a_figure_is_told_with_its_n_and_interval() -> None:
    assert str(proportion(34, 45)) == "75.6% (N=45, 95 % interval 61.3% to 85.8%)"


PROBABILITIES = np.array(
    [
        [0.7, 0.1, 0.1, 0.1],  # right
        [0.1, 0.2, 0.3, 0.4],  # the third best
        [0.4, 0.3, 0.2, 0.1],  # the fourth best
        [0.0, 0.0, 1.0, 0.0],  # right
        [0.25, 0.25, 0.25, 0.25],  # a tie, which the first label wins
    ],
    np.float32,
)
TARGETS = np.array([0, 1, 3, 2, 0])
LABELS = ["apple", "bread", "cheese", "dates"]


def test_hits_are_counted_for_all_photos_and_for_each_label() -> None:
    found = evaluate(PROBABILITIES, TARGETS, LABELS)
    assert (found.accuracy.value, found.accuracy.n) == (3 / 5, 5)
    assert found.top_3.value == 4 / 5
    assert {label: (share.value, share.n) for label, share in found.recall.items()} == {
        "apple": (1.0, 2),
        "bread": (0.0, 1),
        "cheese": (1.0, 1),
        "dates": (0.0, 1),
    }
    losses = -np.log([0.7, 0.2, 0.1, 1.0, 0.25])
    assert found.log_loss == pytest.approx(losses.mean(), rel=1e-6)


def test_a_certain_error_costs_much_and_not_infinity() -> None:
    found = evaluate(np.array([[1.0, 0.0]], np.float32), np.array([1]), ["a", "b"])
    assert found.log_loss == pytest.approx(-math.log(1e-15))


def test_the_record_is_json_that_every_reader_takes() -> None:
    record = evaluate(PROBABILITIES[:1], TARGETS[:1], LABELS).record()
    text = json.dumps(record, allow_nan=False)
    assert json.loads(text)["recall"]["bread"] == {"value": None, "n": 0, "low": 0.0, "high": 1.0}
