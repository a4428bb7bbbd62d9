"""None of these: answers as precise as stated, and photos of what was not trained on refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.support.abstention import fit_novelty
from tests.support.head import blobs
from trainer.evaluation.novelty import Novelty
from trainer.heads import Floats, Ints

if TYPE_CHECKING:
    pass


@pytest.fixture(scope="module")
def clouds() -> tuple[Floats, Ints, Floats]:
    """Embeddings and classes of five labels to know, and embeddings of a sixth."""
    embeddings, targets = blobs(600, 40, 6)
    return embeddings[targets < 5], targets[targets < 5], embeddings[targets == 5]


@pytest.fixture(scope="module")
def novelty(clouds: tuple[Floats, Ints, Floats]) -> Novelty:
    return fit_novelty(*clouds[:2])


@pytest.mark.tf
def test_the_graph_repeats_the_score(novelty: Novelty, clouds: tuple[Floats, Ints, Floats]) -> None:
    import tensorflow as tf

    model, rows = novelty.head, np.vstack([clouds[2], np.zeros((1, 40), np.float32)])
    features = tf.math.l2_normalize((rows - model.scaling.mean) * model.scaling.scale, axis=1, epsilon=1e-24)
    logits = (features @ model.kernel + model.bias) / np.float32(model.temperature)
    off = tf.math.l2_normalize(rows, axis=1, epsilon=1e-24) - novelty.centre
    outside = tf.reduce_sum(off**2, axis=1) - tf.reduce_sum((off @ novelty.directions) ** 2, axis=1)
    found = np.float32(novelty.residual_weight) * tf.sqrt(tf.maximum(outside, 0.0))
    found -= np.float32(novelty.energy_weight) * tf.reduce_logsumexp(logits, axis=1)
    assert found.dtype == tf.float32
    np.testing.assert_allclose(found, novelty.score(rows), atol=2e-4)
