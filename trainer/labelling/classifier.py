"""Classifier of a labelling session: a head fitted on the answers, beside the model that exists already."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trainer import heads
from trainer.evaluation.novelty import Novelty
from trainer.heads import Floats, Head, Ints, Selection, Vectors

MIN_PHOTOS_FOR_NOVELTY = 20

_WEIGHTS = np.linspace(0, 1, 11)


@dataclass(frozen=True)
class Model:
    """Head of a model that exists, for embeddings of its backbone.

    Attributes:
        labels: label names in the order of its outputs.
        head: the head.
        novelty: its novelty score; None where it has none.
    """

    labels: tuple[str, ...]
    head: Head
    novelty: Novelty | None = None


@dataclass(frozen=True)
class Classifier:
    """Weighted mean of the probabilities of a model and of a head fitted on the answers.

    Attributes:
        labels: label names, K, in the order of the columns.
        model: existing model; None for none.
        model_columns: column of each of its labels, int64.
        head: head fitted on the answers; None for none.
        columns: column of each class of the head, int64.
        weight: weight of the head, 0 to 1; the model has the rest.
        novelty: novelty score; None for none.
    """

    labels: tuple[str, ...]
    model: Model | None
    model_columns: Ints
    head: Head | None
    columns: Ints
    weight: float
    novelty: Novelty | None = None

    def probabilities(self, embeddings: Vectors) -> Floats:
        """Return calibrated probabilities float32 [N,K] of embeddings float32 or float16 [N,D]."""
        found = np.zeros((len(embeddings), len(self.labels)), np.float32)
        if self.model is not None and self.weight < 1:
            part = self.model.head.probabilities(embeddings)
            found[:, self.model_columns] += np.float32(1 - self.weight) * part
        if self.head is not None and self.weight > 0:
            found[:, self.columns] += np.float32(self.weight) * self.head.probabilities(embeddings)
        return found


def fit_classifier(
    labels: Sequence[str],
    embeddings: Vectors,
    targets: Ints,
    *,
    model: Model | None = None,
    novelty: bool = False,
    seed: int = 0,
) -> Classifier | None:
    """Fit a head on labelled photos, and weight it against the model.

    The weight is the one with the lowest log-loss of the photos, which the head predicts out of fold.

    Args:
        labels: names of the labels, K; those of the model are among them.
        embeddings: float32 or float16 [N,D].
        targets: int64 [N], indices into the labels.
        model: existing model, which was trained on other photos.
        novelty: fit a novelty score too.
        seed: seed of the folds.

    Returns:
        The classifier; the model alone where the photos do not suffice for a head, which needs two labels and
        two photos of one of them; None if there is no model either.
    """
    at = {name: column for column, name in enumerate(labels)}
    model_columns = np.array([at[name] for name in model.labels] if model else [], np.int64)
    columns, compact, counts = np.unique(targets, return_inverse=True, return_counts=True)
    if len(columns) < 2 or counts.max() < 2:
        if model is None:
            return None
        nothing = np.zeros(0, np.int64)
        return Classifier(tuple(labels), model, model_columns, None, nothing, 0.0, model.novelty)
    head, selection = heads.fit(embeddings, compact, len(columns), seed=seed)
    found = Classifier(tuple(labels), model, model_columns, head, columns, 1.0)
    score = None
    if novelty and len(embeddings) >= MIN_PHOTOS_FOR_NOVELTY:
        score = Novelty.fit(head, selection, embeddings, compact, seed=seed)
    weight = _choose_weight(found, selection, embeddings, targets)
    return Classifier(tuple(labels), model, model_columns, head, columns, weight, score)


def _choose_weight(fitted: Classifier, selection: Selection, rows: Vectors, targets: Ints) -> float:
    """Return the weight of the head with the lowest log-loss on photos that it did not see."""
    model = fitted.model
    # From heads.LARGE_DATASET photos on a part is held out instead: then the head has seen enough.
    if model is None or len(selection.targets) != len(targets) or selection.method != "cross-validation":
        return 1.0
    own = np.zeros((len(rows), len(fitted.labels)), np.float32)
    own[:, fitted.columns] = selection.probabilities
    other = np.zeros_like(own)
    other[:, fitted.model_columns] = model.head.probabilities(rows)
    losses = [heads.log_loss(np.float32(w) * own + np.float32(1 - w) * other, targets) for w in _WEIGHTS]
    return float(_WEIGHTS[int(np.argmin(losses))])
