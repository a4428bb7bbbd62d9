"""Data and reference implementations for tests of the head."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from trainer import dataset, heads
from trainer.heads.fitter import EXACT_TOLERANCE, Fitter
from trainer.heads.head import Linear

if TYPE_CHECKING:
    from tests.support.trained import Trained

Data = tuple[heads.Floats, heads.Ints]


def blobs(count: int, dimensions: int, classes: int, *, noise: float = 1.5, seed: int = 0) -> Data:
    """Return overlapping clusters of points, one per class."""
    random = np.random.default_rng(seed)
    targets = np.arange(count) % classes
    centres = random.normal(size=(classes, dimensions))
    points = centres[targets] + noise * random.normal(size=(count, dimensions))
    return points.astype(np.float32), targets.astype(np.int64)


def yardstick(
    features: heads.Floats, targets: heads.Ints, strength: float, tolerance: float = 1e-4
) -> NDArray[np.float64]:
    """Return scikit-learn's kernel and bias for the same objective as one matrix [D+1,K]."""
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, user_api="blas"):  # with more it takes twenty times as long
        model = LogisticRegression(C=strength, max_iter=5000, tol=tolerance)
        model.fit(features.astype(np.float64), targets)
    return np.vstack([model.coef_.T, model.intercept_])


def predict(features: heads.Floats, weights: NDArray[np.float64]) -> heads.Floats:
    return heads.softmax((features @ weights[:-1] + weights[-1]).astype(np.float32))


def of_length_one(rows: heads.Floats) -> heads.Floats:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def fit_exactly(
    features: heads.Floats, targets: heads.Ints, strength: float, weights: heads.Floats | None = None
) -> list[Linear]:
    """Return the logistic regression and the discriminant of features, fitted to the exact tolerance."""
    weights = np.ones(int(targets.max()) + 1, np.float32) if weights is None else weights
    return Fitter.from_array(features, targets, weights, tolerance=EXACT_TOLERANCE).fit(strength)


def sample_features(trained: Trained) -> tuple[heads.Floats, heads.Ints, int]:
    """Return embeddings float32 [406,1280] and classes of the sample photos, as in the training."""
    from batch.embeddings import EmbeddingStore
    from trainer.evaluation.features import load_features

    metadata = trained.result.bundle.metadata
    store = EmbeddingStore(trained.settings.embedding_store, metadata.fingerprint, metadata.dimension)
    folder = dataset.scan(Path(trained.settings.image_dir))
    found = load_features(folder, store)
    targets = np.array([example.label for example in found.examples], np.int64)
    return found.embeddings.astype(np.float32), targets, len(folder.labels)
