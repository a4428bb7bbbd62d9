"""Evaluation metrics: their values, and the coverage of their intervals."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.support.evaluation_metrics import LABELS, PROBABILITIES, TARGETS, random_answers
from trainer import heads
from trainer.evaluation import metrics
from trainer.evaluation.metrics import bootstrap_mean_interval, evaluate, measure_calibration, proportion


@pytest.mark.parametrize(
    ("right", "n"),
    [(0, 1), (1, 1), (0, 40), (40, 40), (34, 45), (1, 3), (500, 1000), (999, 1000), (17, 100_000)],
)
def test_proportion_has_the_wilson_interval(right: int, n: int) -> None:
    from scipy.stats import binomtest

    wanted = binomtest(right, n).proportion_ci(confidence_level=0.95, method="wilson")
    found = proportion(right, n)
    assert (found.value, found.n) == (right / n, n)
    assert found.low == pytest.approx(wanted.low, abs=1e-7)
    assert found.high == pytest.approx(wanted.high, abs=1e-7)


def test_proportion_of_no_photos_is_nan() -> None:
    found = proportion(0, 0)
    assert math.isnan(found.value)
    assert (found.n, found.low, found.high) == (0, 0.0, 1.0)


def test_figures_are_printed_with_n_and_interval() -> None:
    assert str(proportion(34, 45)) == "75.6% (N=45, 95 % interval 61.3% to 85.8%)"
    assert str(metrics.Estimate(0.5, 0.25, 0.75)) == "0.500 (95 % interval 0.250 to 0.750)"


def test_accuracy_top_3_and_recall_are_counted() -> None:
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


def test_precision_f1_and_confusion_matrix_are_counted() -> None:
    found = evaluate(PROBABILITIES, TARGETS, LABELS)
    assert found.labels == tuple(LABELS)
    assert found.confusion == ((2, 0, 0, 0), (0, 0, 0, 1), (0, 0, 1, 0), (1, 0, 0, 0))
    precision = found.precision
    assert (precision["apple"].value, precision["apple"].n) == (2 / 3, 3)
    assert math.isnan(precision["bread"].value)  # no photo is predicted as it
    assert (precision["dates"].value, precision["dates"].n) == (0.0, 1)
    assert [found.f1[label].value for label in LABELS] == pytest.approx([0.8, 0.0, 1.0, 0.0])
    assert found.macro.precision.value == pytest.approx((2 / 3 + 0 + 1 + 0) / 4)
    assert found.macro.recall.value == pytest.approx(0.5)
    assert found.macro.f1.value == pytest.approx(0.45)


def test_metrics_equal_those_of_scikit_learn() -> None:
    from sklearn import metrics as sklearn_metrics

    probabilities, targets = random_answers(300, 6)
    found = evaluate(probabilities, targets, list("abcdef"))
    best = probabilities.argmax(axis=1)
    np.testing.assert_array_equal(found.confusion, sklearn_metrics.confusion_matrix(targets, best))
    precision, recall, f1, counts = sklearn_metrics.precision_recall_fscore_support(targets, best)
    np.testing.assert_allclose([share.value for share in found.precision.values()], precision)
    np.testing.assert_allclose([share.value for share in found.recall.values()], recall)
    np.testing.assert_allclose([estimate.value for estimate in found.f1.values()], f1)
    assert [share.n for share in found.recall.values()] == counts.tolist()
    macro = sklearn_metrics.precision_recall_fscore_support(targets, best, average="macro")[:3]
    averages = (found.macro.precision, found.macro.recall, found.macro.f1)
    np.testing.assert_allclose([average.value for average in averages], macro)
    for k, share in found.top.items():
        assert share.value == pytest.approx(sklearn_metrics.top_k_accuracy_score(targets, probabilities, k=k))
    assert found.log_loss == pytest.approx(sklearn_metrics.log_loss(targets, probabilities), rel=1e-5)


@pytest.mark.parametrize(
    ("classes", "wanted"), [(2, [1]), (3, [1]), (4, [1, 3]), (5, [1, 3]), (6, [1, 3, 5])]
)
def test_top_k_accuracy_is_reported_for_more_than_k_labels(classes: int, wanted: list[int]) -> None:
    found = evaluate(*random_answers(20, classes), [str(index) for index in range(classes)])
    assert list(found.top) == wanted
    assert found.top[1] == found.accuracy


@given(st.integers(0, 40), st.integers(2, 7), st.integers(0, 10))
@settings(deadline=None, max_examples=25)
def test_metrics_are_consistent_with_each_other(count: int, classes: int, seed: int) -> None:
    probabilities, targets = random_answers(count, classes, seed)
    labels = [f"label {index}" for index in range(classes)]
    found = evaluate(probabilities, targets, labels)
    confusion = np.array(found.confusion)
    assert confusion.sum() == found.accuracy.n == count
    if count:
        assert np.trace(confusion) == round(found.accuracy.value * count)
        assert found.calibration
        assert sum(part.accuracy.n for part in found.calibration.bins) == count
        assert found.log_loss_interval[0] <= found.log_loss_interval[1]
        assert 0 <= found.macro.f1.low <= found.macro.f1.high <= 1
    assert [share.n for share in found.recall.values()] == confusion.sum(axis=1).tolist()
    assert [share.n for share in found.precision.values()] == confusion.sum(axis=0).tolist()
    for label in labels:
        precision, recall, f1 = found.precision[label].value, found.recall[label].value, found.f1[label].value
        if precision + recall > 0:  # neither is NaN
            assert f1 == pytest.approx(2 * precision * recall / (precision + recall))
    json.dumps(found.to_dict(), allow_nan=False)
    assert found.to_dict() == evaluate(probabilities, targets, labels).to_dict()


def test_bootstrap_intervals_cover_the_true_f1_and_log_loss() -> None:
    truth = evaluate(*random_answers(200_000, 3, seed=99), ["a", "b", "c"])
    covered = {"f1": 0, "macro": 0, "log-loss": 0}
    for seed in range(100):
        found = evaluate(*random_answers(150, 3, seed), ["a", "b", "c"])
        covered["f1"] += found.f1["b"].low <= truth.f1["b"].value <= found.f1["b"].high
        covered["macro"] += found.macro.f1.low <= truth.macro.f1.value <= found.macro.f1.high
        low, high = found.log_loss_interval
        covered["log-loss"] += low <= truth.log_loss <= high
    assert min(covered.values()) >= 88, covered


def test_log_loss_of_a_certain_error_is_finite() -> None:
    found = evaluate(np.array([[1.0, 0.0]], np.float32), np.array([1]), ["a", "b"])
    assert found.log_loss == pytest.approx(-math.log(1e-15))


def test_to_dict_is_strict_json() -> None:
    record = evaluate(PROBABILITIES[:1], TARGETS[:1], LABELS).to_dict()
    read = json.loads(json.dumps(record, allow_nan=False))
    assert read == record
    assert read["recall"]["bread"] == {"value": None, "n": 0, "low": 0.0, "high": 1.0}
    assert read["f1"]["bread"]["value"] is None
    assert read["confusion"] == {"apple": {"apple": 1}, "bread": {}, "cheese": {}, "dates": {}}
    assert read["top"]["3"]["value"] == 1.0


def test_metrics_without_photos_are_null_in_json() -> None:
    found = evaluate(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), LABELS)
    assert found.calibration is None
    read = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert read["accuracy"]["value"] is None
    assert read["log_loss"] is None
    assert read["log_loss_interval"] == [None, None]
    assert read["macro"]["f1"] == {"value": None, "low": None, "high": None}


# --- Calibration ----------------------------------------------------------------------------------------


def test_expected_calibration_error_of_a_worked_example() -> None:
    confidence = np.array([0.9, 0.5, 0.6, 0.8, 0.7, 1.0], np.float32)
    right = np.array([True, False, True, True, False, True])
    found = measure_calibration(confidence, right, bins=3)
    # Bins of two: {.5 wrong, .6 right}, {.7 wrong, .8 right}, {.9 right, 1 right}.
    assert [part.confidence for part in found.bins] == pytest.approx([0.55, 0.75, 0.95])
    assert [part.accuracy.value for part in found.bins] == [0.5, 0.5, 1.0]
    assert found.error == pytest.approx((0.05 + 0.25 + 0.05) / 3)


@pytest.mark.parametrize(("count", "bins"), [(1, 1), (45, 2), (100, 5), (406, 15), (5000, 15)])
def test_calibration_bins_are_equal_in_mass_and_fewer_for_few_photos(count: int, bins: int) -> None:
    confidence = np.random.default_rng(0).random(count).astype(np.float32)
    found = measure_calibration(confidence, confidence > 0.5)
    sizes = [part.accuracy.n for part in found.bins]
    assert len(sizes) == bins
    assert sum(sizes) == count
    assert max(sizes) - min(sizes) <= 1


def share_within_band(count: int, sharpen: float, trials: int = 300) -> float:
    """Return how often a model is within its band whose logits are `sharpen` times calibrated ones."""
    within = 0
    for seed in range(trials):
        probabilities, targets = random_answers(count, 5, seed)
        answered = heads.softmax(np.log(probabilities) * np.float32(sharpen))
        within += measure_calibration(answered.max(axis=1), answered.argmax(axis=1) == targets).within_band
    return within / trials


@pytest.mark.parametrize("count", [45, 400])
def test_calibrated_models_are_within_the_band_in_95_percent(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "CALIBRATION_DRAWS", 400)
    assert 0.92 <= share_within_band(count, 1.0) <= 0.98


def test_overconfident_and_underconfident_models_are_outside_the_band(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(metrics, "CALIBRATION_DRAWS", 400)
    assert share_within_band(400, 2.0, trials=100) < 0.02
    assert share_within_band(400, 0.5, trials=100) < 0.02


def test_band_equals_that_of_labels_drawn_from_all_probabilities() -> None:
    probabilities, targets = random_answers(200, 4)
    best = probabilities.argmax(axis=1)
    found = measure_calibration(probabilities.max(axis=1), best == targets)
    random = np.random.default_rng(5)
    sums = probabilities.astype(np.float64).cumsum(axis=1)
    errors = []
    for _ in range(4000):
        drawn = (sums < random.random((200, 1)) * sums[:, -1:]).sum(axis=1)
        errors.append(compute_calibration_error(probabilities.max(axis=1), best == drawn, len(found.bins)))
    low, high = np.percentile(errors, [2.5, 97.5])
    assert found.low == pytest.approx(low, abs=0.004)
    assert found.high == pytest.approx(high, abs=0.004)
    assert found.p_value == pytest.approx(float((np.array(errors) >= found.error).mean()), abs=0.06)


def compute_calibration_error(confidence: heads.Floats, right: NDArray[np.bool_], bins: int) -> float:
    """Return the error by its definition, for photos that the bins divide evenly."""
    order = np.argsort(confidence)
    parts = zip(np.split(confidence[order], bins), np.split(right[order], bins), strict=True)
    return float(np.mean([abs(float(sure.mean()) - hit.mean()) for sure, hit in parts]))


def test_bootstrap_interval_of_a_mean_agrees_with_its_standard_error() -> None:
    values = np.random.default_rng(0).normal(size=2000)
    low, high = bootstrap_mean_interval(values)
    error = values.std() / math.sqrt(2000)
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.2 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.2 * error)
