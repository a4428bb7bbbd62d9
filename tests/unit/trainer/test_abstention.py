"""None of these: answers as precise as stated, and photos of what was not trained on refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from serving.errors import InputError
from tests.support.abstention import energy, fit_novelty, of_all
from tests.support.evaluation_metrics import random_answers
from tests.support.head import blobs, of_length_one
from trainer import heads
from trainer.evaluation import abstention
from trainer.evaluation.abstention import Novelty, auroc, leave_labels_out, threshold_for_precision
from trainer.heads import Floats, Ints

if TYPE_CHECKING:
    pass


# --- A threshold for a stated precision -----------------------------------------------------------------


def answers(best: list[float], right: list[bool]) -> tuple[Floats, Ints]:
    """Two labels; the first has the best probability."""
    sure = np.array(best, np.float32)
    return np.stack([sure, 1 - sure], axis=1), np.where(right, 0, 1).astype(np.int64)


def test_the_point_estimate_is_counted() -> None:
    best = [0.95, 0.9, 0.85, 0.8, 0.7, 0.6]
    found = threshold_for_precision(
        *answers(best, [True, True, False, True, True, False]), 0.75, point_estimate=True
    )
    assert found.value == pytest.approx(0.65)  # midway between the last answered and the next
    assert (found.precision.value, found.precision.n) == (4 / 5, 5)
    assert (found.coverage.value, found.coverage.n) == (5 / 6, 6)
    assert found.bound < 0.75
    found = threshold_for_precision(
        *answers(best, [True, True, False, True, True, False]), 0.85, point_estimate=True
    )
    assert found.value == pytest.approx(0.875)
    assert found.coverage.value == 2 / 6


def test_the_lower_bound_is_that_of_clopper_and_pearson() -> None:
    from scipy.stats import binomtest

    probabilities, targets = random_answers(400, 3, scale=4.0)
    found = threshold_for_precision(probabilities, targets, 0.9)
    n = found.precision.n
    right = round(found.precision.value * n)
    wanted = binomtest(right, n, alternative="greater").proportion_ci(0.95, method="exact")
    assert found.bound == pytest.approx(wanted.low, abs=1e-9)
    assert found.wanted == 0.9
    assert found.bound >= 0.9
    assert json.loads(json.dumps(found.record(), allow_nan=False))["coverage"]["n"] == 400


def test_all_are_answered_where_that_is_precise_enough() -> None:
    found = threshold_for_precision(*answers([0.9] * 99 + [0.6], [True] * 100), 0.9)
    assert (found.value, found.coverage.value) == (0.0, 1.0)
    assert str(found).startswith("0.000: answers 100.0%")


def test_equal_probabilities_are_answered_together() -> None:
    # Of the ten at .8 all wrong ones come last, which must not matter.
    best = [0.9] * 20 + [0.8] * 10 + [0.5]
    right = [True] * 20 + [True] * 5 + [False] * 6
    found = threshold_for_precision(*answers(best, right), 0.9, point_estimate=True)
    assert found.coverage.value == 20 / 31


@given(st.integers(1, 200), st.integers(2, 6), st.floats(0.05, 1.0), st.booleans(), st.integers(0, 50))
@settings(deadline=None, max_examples=60)
def test_the_answered_photos_reach_it_and_no_lower_threshold_does(
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


def test_new_photos_miss_the_stated_precision_in_one_case_of_twenty() -> None:
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
def test_a_precision_that_is_no_share_is_refused(precision: float) -> None:
    with pytest.raises(InputError, match="is no share") as refusal:
        threshold_for_precision(*random_answers(50, 3), precision)
    assert refusal.value.remedy


def test_a_precision_that_no_threshold_reaches_is_refused_with_the_highest() -> None:
    probabilities, targets = answers([0.9, 0.8, 0.7, 0.6], [True, True, True, False])
    with pytest.raises(InputError) as refusal:
        threshold_for_precision(probabilities, targets, 0.9)
    assert refusal.value.what == (
        "No threshold reaches a precision of 90.0% on 4 held-out photos: the highest 95 % lower bound of "
        "the precision is 36.8%, where 3 are answered."
    )
    assert refusal.value.remedy == "Ask for a lower precision, or give more photos of each label."


def test_a_threshold_needs_photos() -> None:
    with pytest.raises(InputError, match="without held-out photos"):
        threshold_for_precision(np.zeros((0, 2), np.float32), np.zeros(0, np.int64), 0.9)


@pytest.fixture(scope="module")
def clouds() -> tuple[Floats, Ints, Floats]:
    """Embeddings and classes of five labels to know, and embeddings of a sixth."""
    embeddings, targets = blobs(600, 40, 6)
    return embeddings[targets < 5], targets[targets < 5], embeddings[targets == 5]


@pytest.fixture(scope="module")
def novelty(clouds: tuple[Floats, Ints, Floats]) -> Novelty:
    return fit_novelty(*clouds[:2])


def test_the_score_is_the_documented_formula(novelty: Novelty, clouds: tuple[Floats, Ints, Floats]) -> None:
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
    np.testing.assert_array_equal(novelty.refused(clouds[2]), found > np.float32(novelty.threshold))


def test_directions_are_the_principal_ones_by_either_way() -> None:
    for count in (300, 60):  # more photos than dimensions, and fewer
        embeddings, _ = blobs(count, 80, 4)
        centre, directions = abstention._principal(of_all(embeddings), 4)
        points = of_length_one(embeddings)
        assert directions.shape == (80, min(32, count // 4))
        np.testing.assert_allclose(centre, points.mean(axis=0), atol=1e-6)
        np.testing.assert_allclose(directions.T @ directions, np.eye(directions.shape[1]), atol=1e-5)
        _, _, wanted = np.linalg.svd(points - centre, full_matrices=False)
        overlap = np.linalg.svd(wanted[: directions.shape[1]] @ directions, compute_uv=False)
        np.testing.assert_allclose(overlap, 1, atol=1e-3)


def test_photos_in_a_file_give_the_score_of_photos_in_memory(
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


def test_the_energy_is_that_of_the_whole_head_whatever_its_kind(clouds: tuple[Floats, Ints, Floats]) -> None:
    embeddings, targets, unknown = clouds
    for kind in ("hidden", "cosine"):
        settings = heads.HeadSettings(kind=kind, width=8)  # type: ignore[arg-type]
        fitted, selection = heads.fit(embeddings, targets, 5, settings=settings)
        found = Novelty.fit(fitted, selection, embeddings, targets)
        logits = fitted.logits(unknown).astype(np.float64)
        np.testing.assert_allclose(
            energy(found, embeddings, targets, unknown), -np.log(np.exp(logits).sum(axis=1)), atol=1e-4
        )
        assert found.kept.value == pytest.approx(0.95, abs=0.01)


def test_the_stated_share_of_known_photos_passes_and_no_lower_threshold_lets_it(novelty: Novelty) -> None:
    assert novelty.known.shape == (500,)
    for kept in (0.95, 0.9, 0.501, 1.0):
        found = novelty.at(kept)
        assert found.kept.value >= kept
        assert found.kept.value <= kept + 1 / 500
        np.testing.assert_array_equal(found.known, novelty.known)
    assert novelty.threshold == novelty.at(0.95).threshold < novelty.at(1.0).threshold


@pytest.mark.parametrize("kept", [0.0, -0.1, 1.01, float("nan")])
def test_a_share_to_keep_must_be_one(novelty: Novelty, kept: float) -> None:
    with pytest.raises(InputError, match="no share of photos"):
        novelty.at(kept)


def test_folds_end_when_enough_photos_were_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(abstention, "ENOUGH_HELD_OUT", 100)
    embeddings, targets = blobs(400, 20, 4)
    assert len(fit_novelty(embeddings, targets).known) == 120  # three folds of ten


def test_a_fit_of_the_score_is_repeatable_to_the_bit(
    novelty: Novelty, clouds: tuple[Floats, Ints, Floats]
) -> None:
    again = fit_novelty(*clouds[:2])
    assert again.threshold == novelty.threshold
    np.testing.assert_array_equal(again.score(clouds[2]), novelty.score(clouds[2]))


def test_terms_that_never_change_have_no_weight() -> None:
    assert abstention._one_over_deviation(np.full(10, 0.7, np.float32)) == 0
    assert abstention._one_over_deviation(np.array([0, 2], np.float32)) == 1


def test_the_area_is_the_one_scikit_learn_finds() -> None:
    from sklearn.metrics import roc_auc_score

    random = np.random.default_rng(0)
    known, unknown = random.integers(0, 20, 200), random.integers(5, 25, 100)  # with ties
    truth = np.append(np.zeros(200), np.ones(100))
    assert auroc(known, unknown) == pytest.approx(roc_auc_score(truth, np.append(known, unknown)))


@given(st.integers(3, 30), st.integers(1, 5), st.integers(1, 40), st.integers(0, 5))
@settings(deadline=None, max_examples=40)
def test_labels_are_hidden_about_equally_often(classes: int, size: int, draws: int, seed: int) -> None:
    assume(size <= classes - 2)
    drawn = list(abstention._hidden(classes, size, draws, seed))
    assert all(len(set(chosen.tolist())) == size for chosen in drawn)
    times = np.bincount(np.concatenate(drawn), minlength=classes)
    assert times.max() - times.min() <= 1


def test_hidden_labels_are_counted_where_they_were_hidden() -> None:
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
    assert json.loads(json.dumps(found.record(), allow_nan=False))["draws"] == 3
    assert str(found).startswith("AUROC 0.")


@pytest.mark.parametrize("hidden", [0, 3, 4])
def test_two_labels_are_left(hidden: int) -> None:
    with pytest.raises(InputError, match="cannot be hidden"):
        leave_labels_out(*blobs(40, 8, 4), list("abcd"), hidden=hidden)
