"""Accuracy, calibration and refusals on the sample photos stay where they are.

One seed each, deterministic; `make bench-accuracy` measures the figures that the documents quote.
"""

from __future__ import annotations

import numpy as np
import pytest

from tests.bench.abstention import measure_aurocs
from tests.bench.heads import compare, fit_kind
from tests.support.abstention import fit_novelty
from tests.support.head import sample_features
from tests.support.open_set import leave_labels_out
from tests.support.trained import Trained
from trainer.evaluation.cross_validation import CrossValidationScheme, cross_validate
from trainer.heads import Floats, Ints

Sample = tuple[Floats, Ints, int]


@pytest.fixture(scope="module")
def features(trained: Trained) -> Sample:
    return sample_features(trained)


def test_accuracy_and_log_loss_by_five_fold_cross_validation(features: Sample) -> None:
    (accuracy, loss), (hidden_accuracy, hidden_loss) = compare(
        *features, {"linear": fit_kind("linear"), "hidden": fit_kind("hidden")}, seeds=1
    ).values()
    assert accuracy >= 0.74
    assert loss <= 0.78
    assert hidden_accuracy == pytest.approx(accuracy, abs=0.02)
    assert hidden_loss == pytest.approx(loss, abs=0.02)


def test_calibration_error_is_that_of_a_calibrated_model(trained: Trained, features: Sample) -> None:
    embeddings, targets, _ = features
    validated = cross_validate(
        embeddings, targets, list(trained.result.labels), scheme=CrossValidationScheme(seed=100)
    )
    (run,) = validated.runs
    assert run.calibration
    assert run.calibration.within_band
    assert validated.figures["calibration_error"].mean <= 0.07
    assert validated.figures["macro_f1"].mean >= 0.64


def test_photos_of_hidden_labels_are_refused(trained: Trained, features: Sample) -> None:
    embeddings, targets, _ = features
    found = leave_labels_out(embeddings, targets, list(trained.result.labels), hidden=3, draws=4)
    assert found.auroc.value >= 0.72
    by_share = {rate.wanted: rate for rate in found.rates}
    assert 0.93 <= by_share[0.95].kept.value <= 0.99
    assert by_share[0.95].refused.value >= 0.15


def test_novelty_score_separates_better_than_the_best_probability(features: Sample) -> None:
    areas = measure_aurocs(*features, draws=3)
    assert areas["hubhead"] >= areas["best probability"] + 0.01


@pytest.mark.tf
def test_pictures_of_nothing_are_refused(trained: Trained, features: Sample) -> None:
    import tensorflow as tf

    embeddings, targets, _ = features
    novelty = fit_novelty(embeddings, targets)
    ramp = np.broadcast_to(np.arange(224)[:, None, None], (224, 224, 3))
    pictures = [np.full((224, 224, 3), level) for level in (0, 128, 255)]
    pictures += [ramp, (ramp // 16 + ramp.transpose(1, 0, 2) // 16) % 2 * 255]
    embed = tf.saved_model.load(str(trained.result.bundle.path)).signatures["embed"]
    pngs = [tf.io.encode_png(picture.astype(np.uint8)).numpy() for picture in pictures]
    found = embed(image_bytes=tf.constant(pngs))["embedding"].numpy()
    assert novelty.is_novel(found).all(), (novelty.score(found), novelty.threshold)
