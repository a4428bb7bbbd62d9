"""Classifier of a labelling session: a head on the answers, weighted against the model that exists."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support.labelling import LABELS, make_candidates
from trainer.labelling.classifier import Classifier, Model, fit_classifier

PHOTOS = make_candidates(300)
EMBEDDINGS, TARGETS = PHOTOS.candidates.embeddings, PHOTOS.targets
REST = slice(200, 300)


def fit_model(*, wrong: bool = False) -> Model:
    """Return a model of the same photos; a wrong one takes each label for the next."""
    found = fit_classifier(LABELS, EMBEDDINGS[100:200], (TARGETS[100:200] + wrong) % 3)
    assert found is not None
    assert found.head is not None
    return Model(LABELS, found.head)


def get_accuracy(classifier: Classifier) -> float:
    return float((classifier.probabilities(EMBEDDINGS[REST]).argmax(axis=1) == TARGETS[REST]).mean())


@pytest.mark.parametrize("rows", [[], [0], [0, 1]])
def test_too_few_answers_leave_the_model_alone(rows: list[int]) -> None:
    targets = np.zeros(len(rows), np.int64)
    assert fit_classifier(LABELS, EMBEDDINGS[rows], targets) is None
    model = fit_model()
    found = fit_classifier(LABELS, EMBEDDINGS[rows], targets, model=model)
    assert found is not None
    np.testing.assert_allclose(
        found.probabilities(EMBEDDINGS[:5]), model.head.probabilities(EMBEDDINGS[:5]), atol=1e-6
    )


def test_a_good_model_outweighs_a_head_of_few_answers() -> None:
    few = np.concatenate([np.flatnonzero(label == TARGETS)[:2] for label in range(3)])
    alone = fit_classifier(LABELS, EMBEDDINGS[few], TARGETS[few])
    both = fit_classifier(LABELS, EMBEDDINGS[few], TARGETS[few], model=fit_model())
    assert alone is not None
    assert both is not None
    assert both.weight < 1
    assert get_accuracy(both) >= get_accuracy(alone)
    assert get_accuracy(both) > 0.8


def test_the_answers_outweigh_a_model_that_is_wrong() -> None:
    model = fit_model(wrong=True)
    found = fit_classifier(LABELS, EMBEDDINGS[:100], TARGETS[:100], model=model)
    assert found is not None
    assert found.weight > 0.8
    assert get_accuracy(found) > 0.8


def test_new_labels_are_learnt_beside_those_of_the_model() -> None:
    names = ("ramen", *LABELS)  # the columns of the model move
    targets = np.where(np.arange(100) < 50, 0, TARGETS[:100] + 1)
    found = fit_classifier(names, EMBEDDINGS[:100], targets, model=fit_model())
    assert found is not None
    probabilities = found.probabilities(EMBEDDINGS[REST])
    assert probabilities.shape == (100, 4)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    assert probabilities[:, 0].max() > 0.1


def test_labels_without_answers_have_no_probability() -> None:
    found = fit_classifier([*LABELS, "ramen"], EMBEDDINGS[:100], TARGETS[:100])
    assert found is not None
    assert (found.probabilities(EMBEDDINGS[REST])[:, 3] == 0).all()


def test_the_novelty_score_is_higher_for_photos_of_no_label() -> None:
    found = fit_classifier(LABELS, EMBEDDINGS[:100], TARGETS[:100], novelty=True)
    assert found is not None
    assert found.novelty is not None
    strange = np.random.default_rng(5).normal(size=(50, EMBEDDINGS.shape[1])).astype(np.float16) * 4
    assert np.median(found.novelty.score(strange)) > np.median(found.novelty.score(EMBEDDINGS[REST]))
