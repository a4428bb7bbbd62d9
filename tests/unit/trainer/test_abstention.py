"""Abstention: the threshold for a precision, the novelty score, and its open-set evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from serving.errors import InputError
from tests.support.abstention import energy, fit_novelty, to_blocks
from tests.support.evaluation_metrics import random_answers
from tests.support.head import blobs, of_length_one
from tests.support.open_set import auroc, draw_hidden_classes, leave_labels_out
from trainer import heads
from trainer.evaluation import novelty as novelty_module
from trainer.evaluation.abstention import threshold_for_precision
from trainer.evaluation.novelty import Novelty
from trainer.heads import Floats, Ints

# --- Threshold for a precision --------------------------------------------------------------------------


def make_predictions(best: list[float], right: list[bool]) -> tuple[Floats, Ints]:
    """Return probabilities of two labels, of which the first is the best one, and the true classes."""
    confidence = np.array(best, np.float32)
    return np.stack([confidence, 1 - confidence], axis=1), np.where(right, 0, 1).astype(np.int64)


def test_point_estimate_takes_the_observed_precision() -> None:
    best = [0.95, 0.9, 0.85, 0.8, 0.7, 0.6]
    found = threshold_for_precision(
        *make_predictions(best, [True, True, False, True, True, False]), 0.75, point_estimate=True
    )
    assert found.value == pytest.approx(0.65)  # midway between the last answered and the next
    assert (found.precision.value, found.precision.n) == (4 / 5, 5)
    assert (found.coverage.value, found.coverage.n) == (5 / 6, 6)
    assert found.bound < 0.75
    found = threshold_for_precision(
        *make_predictions(best, [True, True, False, True, True, False]), 0.85, point_estimate=True
    )
    assert found.value == pytest.approx(0.875)
    assert found.coverage.value == 2 / 6


def test_lower_bound_of_the_precision_is_clopper_pearson() -> None:
    from scipy.stats import binomtest

    probabilities, targets = random_answers(400, 3, scale=4.0)
    found = threshold_for_precision(probabilities, targets, 0.9)
    n = found.precision.n
    right = round(found.precision.value * n)
    wanted = binomtest(right, n, alternative="greater").proportion_ci(0.95, method="exact")
    assert found.bound == pytest.approx(wanted.low, abs=1e-9)
    assert found.wanted == 0.9
    assert found.bound >= 0.9
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["coverage"]["n"] == 400


def test_threshold_is_0_where_answering_always_is_precise_enough() -> None:
    found = threshold_for_precision(*make_predictions([0.9] * 99 + [0.6], [True] * 100), 0.9)
    assert (found.value, found.coverage.value) == (0.0, 1.0)
    assert str(found).startswith("0.000: answers 100.0%")


def test_threshold_does_not_separate_equal_probabilities() -> None:
    # Five of the ten at 0.8 are wrong; they stand last, and may not be cut off.
    best = [0.9] * 20 + [0.8] * 10 + [0.5]
    right = [True] * 20 + [True] * 5 + [False] * 6
    found = threshold_for_precision(*make_predictions(best, right), 0.9, point_estimate=True)
    assert found.coverage.value == 20 / 31


@given(st.integers(1, 200), st.integers(2, 6), st.floats(0.05, 1.0), st.booleans(), st.integers(0, 50))
@settings(deadline=None, max_examples=60)
def test_threshold_is_the_lowest_that_reaches_the_precision(
    count: int, classes: int, precision: float, point: bool, seed: int
) -> None:
    probabilities, targets = random_answers(count, classes, seed)
    try:
        found = threshold_for_precision(probabilities, targets, precision, point_estimate=point)
    except InputError:
        assume(False)
        return
    best, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == targets
    answered = best >= np.float32(found.value)
    assert found.coverage.value == answered.mean()
    assert found.precision.value == pytest.approx(right[answered].mean())
    assert (found.precision.value if point else found.bound) >= precision
    for lower in np.unique(best[~answered]):
        share = right[best >= lower]
        reached = share.mean() if point else clopper_pearson(int(share.sum()), len(share))
        assert reached < precision


def clopper_pearson(right: int, n: int) -> float:
    from scipy.stats import beta

    return float(beta.ppf(0.05, right, n - right + 1)) if right else 0.0


def test_new_photos_miss_the_precision_in_one_case_of_twenty() -> None:
    missed = {"bound": 0, "point": 0}
    fresh, fresh_targets = random_answers(100_000, 3, seed=12345, scale=4.0)
    for seed in range(200):
        held_out = random_answers(400, 3, seed, scale=4.0)
        for name in missed:
            found = threshold_for_precision(*held_out, 0.9, point_estimate=name == "point")
            answered = fresh.max(axis=1) >= found.value
            missed[name] += (fresh.argmax(axis=1) == fresh_targets)[answered].mean() < 0.9
    assert missed["bound"] <= 20  # 1 in 20, with room for chance
    assert missed["point"] >= 60  # which is why it is not the default


@pytest.mark.parametrize("precision", [0.0, -1.0, 1.5, float("nan")])
def test_precision_out_of_range_is_rejected(precision: float) -> None:
    with pytest.raises(InputError, match="is out of range") as caught:
        threshold_for_precision(*random_answers(50, 3), precision)
    assert caught.value.remedy


def test_error_for_an_unreachable_precision_names_the_highest_one() -> None:
    probabilities, targets = make_predictions([0.9, 0.8, 0.7, 0.6], [True, True, True, False])
    with pytest.raises(InputError) as caught:
        threshold_for_precision(probabilities, targets, 0.9)
    assert caught.value.what == (
        "No threshold reaches a precision of 90.0% on 4 held-out photos: the highest 95 % lower bound of "
        "the precision is 36.8%, where 3 are answered."
    )
    assert caught.value.remedy == "Ask for a lower precision, or give more photos of each label."


def test_threshold_without_held_out_photos_is_rejected() -> None:
    with pytest.raises(InputError, match="without held-out photos"):
        threshold_for_precision(np.zeros((0, 2), np.float32), np.zeros(0, np.int64), 0.9)


# --- Novelty score --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clouds() -> tuple[Floats, Ints, Floats]:
    """Embeddings and classes of five known labels, and embeddings of a sixth, unknown one."""
    embeddings, targets = blobs(600, 40, 6)
    return embeddings[targets < 5], targets[targets < 5], embeddings[targets == 5]


@pytest.fixture(scope="module")
def novelty(clouds: tuple[Floats, Ints, Floats]) -> Novelty:
    """The novelty score of the five known labels."""
    return fit_novelty(*clouds[:2])


def test_novelty_score_is_the_documented_formula(
    novelty: Novelty, clouds: tuple[Floats, Ints, Floats]
) -> None:
    rows = clouds[2].astype(np.float64)
    model = novelty.head

    def l2_normalize(values: Floats) -> Floats:
        return values / np.sqrt((values**2).sum(axis=1, keepdims=True))

    features = l2_normalize((rows - model.scaling.mean) * model.scaling.scale)
    energy = np.log(np.exp((features @ model.kernel + model.bias) / model.temperature).sum(axis=1))
    off = l2_normalize(rows) - novelty.centre
    residual = np.sqrt((off**2).sum(axis=1) - ((off @ novelty.directions) ** 2).sum(axis=1))
    wanted = novelty.residual_weight * residual - novelty.energy_weight * energy
    found = novelty.score(clouds[2])
    assert (found.dtype, found.shape) == (np.float32, (100,))
    np.testing.assert_allclose(found, wanted, atol=2e-4)
    np.testing.assert_array_equal(novelty.is_novel(clouds[2]), found > np.float32(novelty.threshold))


def test_directions_are_principal_components_by_gram_and_by_covariance() -> None:
    for count in (300, 60):  # more photos than dimensions, and fewer
        embeddings, _ = blobs(count, 80, 4)
        centre, directions = novelty_module._fit_directions(to_blocks(embeddings), 4)
        points = of_length_one(embeddings)
        assert directions.shape == (80, min(32, count // 4))
        np.testing.assert_allclose(centre, points.mean(axis=0), atol=1e-6)
        np.testing.assert_allclose(directions.T @ directions, np.eye(directions.shape[1]), atol=1e-5)
        _, _, wanted = np.linalg.svd(points - centre, full_matrices=False)
        overlap = np.linalg.svd(wanted[: directions.shape[1]] @ directions, compute_uv=False)
        np.testing.assert_allclose(overlap, 1, atol=1e-3)


def test_mapped_embeddings_give_the_score_of_embeddings_in_memory(
    clouds: tuple[Floats, Ints, Floats], tmp_path: Path
) -> None:
    embeddings, targets, unknown = clouds
    rows = np.flatnonzero(np.arange(len(targets)) % 7 > 0)
    path = tmp_path / "embeddings.npy"
    np.save(path, embeddings.astype(np.float16))
    mapped = np.load(path, mmap_mode="r")
    fitted, selection = heads.fit(mapped[rows], targets[rows], 5)
    alone = Novelty.fit(fitted, selection, mapped[rows].astype(np.float32), targets[rows])
    chosen = Novelty.fit(fitted, selection, mapped, targets, rows=rows)
    np.testing.assert_array_equal(chosen.score(unknown), alone.score(unknown))
    np.testing.assert_array_equal(chosen.known, alone.known)


def test_energy_uses_all_logits_of_hidden_heads(clouds: tuple[Floats, Ints, Floats]) -> None:
    embeddings, targets, unknown = clouds
    for kind in ("linear", "hidden"):
        settings = heads.HeadSettings(kind=kind, width=8)  # type: ignore[arg-type]
        fitted, selection = heads.fit(embeddings, targets, 5, settings=settings)
        found = Novelty.fit(fitted, selection, embeddings, targets)
        logits = fitted.logits(unknown).astype(np.float64)
        np.testing.assert_allclose(
            energy(found, embeddings, targets, unknown), -np.log(np.exp(logits).sum(axis=1)), atol=1e-4
        )
        assert found.kept.value == pytest.approx(0.95, abs=0.01)


def test_novelty_threshold_is_the_lowest_that_keeps_the_share_of_known_photos(novelty: Novelty) -> None:
    assert novelty.known.shape == (500,)
    for kept in (0.95, 0.9, 0.501, 1.0):
        found = novelty.with_kept(kept)
        assert found.kept.value >= kept
        assert found.kept.value <= kept + 1 / 500
        np.testing.assert_array_equal(found.known, novelty.known)
    assert novelty.threshold == novelty.with_kept(0.95).threshold < novelty.with_kept(1.0).threshold


@pytest.mark.parametrize("kept", [0.0, -0.1, 1.01, float("nan")])
def test_share_to_keep_out_of_range_is_rejected(novelty: Novelty, kept: float) -> None:
    with pytest.raises(InputError, match=r"fraction of photos to keep, .*out of range"):
        novelty.with_kept(kept)


def test_novelty_fit_stops_when_enough_photos_were_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(novelty_module, "ENOUGH_HELD_OUT", 100)
    embeddings, targets = blobs(400, 20, 4)
    assert len(fit_novelty(embeddings, targets).known) == 120  # three folds of ten


def test_novelty_fit_is_deterministic(novelty: Novelty, clouds: tuple[Floats, Ints, Floats]) -> None:
    again = fit_novelty(*clouds[:2])
    assert again.threshold == novelty.threshold
    np.testing.assert_array_equal(again.score(clouds[2]), novelty.score(clouds[2]))


def test_constant_term_has_weight_0() -> None:
    assert novelty_module._inverse_deviation(np.full(10, 0.7, np.float32)) == 0
    assert novelty_module._inverse_deviation(np.array([0, 2], np.float32)) == 1


# --- Open-set evaluation --------------------------------------------------------------------------------


def test_auroc_equals_scikit_learn() -> None:
    from sklearn.metrics import roc_auc_score

    random = np.random.default_rng(0)
    known, unknown = random.integers(0, 20, 200), random.integers(5, 25, 100)  # with ties
    truth = np.append(np.zeros(200), np.ones(100))
    assert auroc(known, unknown) == pytest.approx(roc_auc_score(truth, np.append(known, unknown)))


@given(st.integers(3, 30), st.integers(1, 5), st.integers(1, 40), st.integers(0, 5))
@settings(deadline=None, max_examples=40)
def test_every_label_is_hidden_about_equally_often(classes: int, size: int, draws: int, seed: int) -> None:
    assume(size <= classes - 2)
    drawn = list(draw_hidden_classes(classes, size, draws, seed))
    assert all(len(set(chosen.tolist())) == size for chosen in drawn)
    times = np.bincount(np.concatenate(drawn), minlength=classes)
    assert times.max() - times.min() <= 1


def test_rejection_rates_count_the_photos_of_hidden_labels() -> None:
    embeddings, targets = blobs(300, 40, 6)
    found = leave_labels_out(embeddings, targets, list("abcdef"), hidden=2, draws=3, shares=(0.9, 0.5))
    assert [rate.wanted for rate in found.rates] == [0.9, 0.5]
    assert set(found.rates[0].by_label) == set("abcdef")
    assert found.rates[0].refused.n == 300
    assert found.rates[0].kept.n == 120  # a fifth of 200, three times
    assert found.rates[0].kept.value >= found.rates[1].kept.value
    assert found.rates[0].refused.value <= found.rates[1].refused.value
    assert found.rates[1].refused.value > 0.5
    assert found.auroc.value > 0.6
    assert str(found).startswith("AUROC 0.")


@pytest.mark.parametrize("hidden", [0, 3, 4])
def test_hiding_all_but_one_label_is_rejected(hidden: int) -> None:
    with pytest.raises(InputError, match="cannot be hidden"):
        leave_labels_out(*blobs(40, 8, 4), list("abcd"), hidden=hidden)
