"""Paired comparison of two models: difference, interval and McNemar's test."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from serving.errors import InputError
from tests.support.evaluation_metrics import LABELS, PROBABILITIES, TARGETS
from trainer.evaluation.paired_comparison import PairedComparison, align_columns, compare


def test_comparison_counts_gained_and_lost_photos() -> None:
    other = PROBABILITIES[[0, 0, 0, 0, 0]]  # always apple
    found = compare(PROBABILITIES, other, TARGETS)
    assert (found.n, found.gained, found.lost) == (5, 1, 0)
    assert found.accuracy.value == pytest.approx(1 / 5)
    mine, theirs = -np.log([0.7, 0.2, 0.1, 1.0, 0.25]), -np.log([0.7, 0.1, 0.1, 0.1, 0.7])
    assert found.log_loss.value == pytest.approx((mine - theirs).mean(), rel=1e-5)
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["gained"] == 1
    assert str(found).startswith("accuracy +20.0% (95 % interval ")


def test_p_value_is_the_exact_mcnemar_test() -> None:
    from scipy.stats import binomtest

    for gained, lost in ((0, 0), (3, 3), (9, 1), (0, 6)):
        found = make_comparison(50, gained, lost)
        wanted = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
        assert found.p_value == pytest.approx(wanted)


def make_comparison(count: int, gained: int, lost: int) -> PairedComparison:
    """Return the comparison of models that differ in this many of `count` photos."""
    right, wrong = np.float32([0.9, 0.1]), np.float32([0.1, 0.9])
    mine, theirs = np.tile(right, (count, 1)), np.tile(right, (count, 1))
    theirs[:gained], mine[gained : gained + lost] = wrong, wrong
    return compare(mine, theirs, np.zeros(count, np.int64))


def test_the_interval_of_a_significant_difference_excludes_zero() -> None:
    assert make_comparison(100, 20, 2).accuracy.low > 0
    assert make_comparison(100, 2, 20).accuracy.high < 0
    same = make_comparison(100, 0, 0)
    assert (same.accuracy.value, same.log_loss.value) == (0, 0)
    assert same.accuracy.low < 0 < same.accuracy.high


def test_intervals_of_the_difference_cover_the_true_one() -> None:
    # The other model errs in other places: right for 70 % against 65 %, independently.
    random = np.random.default_rng(0)
    covered = {"accuracy": 0, "log-loss": 0}
    right, wrong = np.float32([0.8, 0.2]), np.float32([0.2, 0.8])
    truth = -0.05 * math.log(0.8 / 0.2)
    for _ in range(200):
        mine, theirs = (np.where(random.random((60, 1)) < share, right, wrong) for share in (0.7, 0.65))
        found = compare(mine, theirs, np.zeros(60, np.int64))
        covered["accuracy"] += found.accuracy.low <= 0.05 <= found.accuracy.high
        covered["log-loss"] += found.log_loss.low <= truth <= found.log_loss.high
    assert min(covered.values()) >= 180, covered


def test_comparison_without_photos_is_rejected() -> None:
    with pytest.raises(InputError, match="without photos"):
        compare(np.zeros((0, 2), np.float32), np.zeros((0, 2), np.float32), np.zeros(0, np.int64))


def test_align_columns_reorders_labels_and_gives_unknown_ones_probability_0() -> None:
    found = align_columns(PROBABILITIES, LABELS, ["dates", "figs", "apple"])
    np.testing.assert_array_equal(found[:, 0], PROBABILITIES[:, 3])
    np.testing.assert_array_equal(found[:, 1], 0)
    np.testing.assert_array_equal(found[:, 2], PROBABILITIES[:, 0])
